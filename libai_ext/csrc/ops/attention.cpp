// Two ops of our own, with shapes, layouts and a gradient, for attention from packed queries, keys
// and values. libai_ext/compat/attention.py calls them.
#include "../arithmetic/attention.h"

#include "own_op.h"

namespace libai_ext {
namespace {

constexpr char kAttention[] = "libai_ext_self_attention";
constexpr char kAttentionGrad[] = "libai_ext_self_attention_grad";
constexpr char kIn[] = "query_key_value", kInGrad[] = "query_key_value_grad";
constexpr char kOut[] = "context", kOutGrad[] = "context_grad";

template<typename AnyContext>
int64_t HeadSize(AnyContext* ctx) {
  return static_cast<int64_t>(Number(ctx, 1));
}

AttentionShape ShapeOf(Context* ctx) {
  const ShapeView shape = Shape(ctx, kIn);
  const int axes = shape.NumAxes();
  const int64_t width = HeadSize(ctx);
  return {shape.Count(0, axes - 2), shape.At(axes - 2),   shape.At(axes - 1) / (3 * width), width,
          /*scale=*/Number(ctx, 0), ProductsAreBfloat16()};
}

void ComputeAttention(Context* ctx) { Attention(ShapeOf(ctx), Input(ctx, kIn), Output(ctx, kOut)); }

void ComputeAttentionGrad(Context* ctx) {
  AttentionGrad(ShapeOf(ctx), Input(ctx, kIn), Input(ctx, kOutGrad), Output(ctx, kInGrad));
}

Maybe<void> InferShape(user_op::InferContext* ctx) {
  oneflow::Shape shape = ctx->InputShape(kIn, 0);
  const int64_t axes = shape.NumAxes(), packed = 3 * HeadSize(ctx);
  if (axes < 2 || packed <= 0 || shape.At(axes - 1) % packed != 0) {
    return oneflow::Error::RuntimeError()
           << "queries, keys and values of shape " << shape.ToString()
           << " are not tokens of heads of " << packed << " values";
  }
  shape.Set(axes - 1, shape.At(axes - 1) / 3);
  ctx->SetOutputShape(kOut, 0, shape);
  return Maybe<void>::Ok();
}

Maybe<void> InferGradShape(user_op::InferContext* ctx) {
  ctx->SetOutputShape(kInGrad, 0, ctx->InputShape(kIn, 0));
  return Maybe<void>::Ok();
}

// Images and whole heads may be on different ranks, tokens not.
Maybe<void> GetSplits(user_op::SbpContext* ctx) {
  const auto& shape = ctx->LogicalTensorDesc4InputArgNameAndIndex(kIn, 0).shape();
  const int64_t axes = shape.NumAxes();
  const int64_t heads = shape.At(axes - 1) / (3 * HeadSize(ctx));
  for (int64_t axis = 0; axis < axes; ++axis) {
    if (axis == axes - 2 || (axis == axes - 1 && heads % ctx->hierarchy_value() != 0)) { continue; }
    ctx->NewBuilder().Split(ctx->inputs(), axis).Split(ctx->outputs(), axis).Build();
  }
  return Maybe<void>::Ok();
}

// Keeps the op's input alone: everything else is computed again.
class AttentionGradient final : public Gradient</*kept=*/1> {
 public:
  Maybe<void> Init(const one::OpExpr&) override {
    op_ = JUST(one::OpBuilder(kAttentionGrad).Input(kIn).Input(kOutGrad).Output(kInGrad).Build());
    return Maybe<void>::Ok();
  }

 protected:
  Maybe<void> Compute(const Saved& saved, const std::shared_ptr<one::Tensor>& out_grad,
                      one::TensorTuple* in_grads) const override {
    in_grads->at(0) = JUST(one::OpInterpUtil::Dispatch<one::Tensor>(
        *op_, {saved.saved().at(0), out_grad}, saved.attributes));
    return Maybe<void>::Ok();
  }

 private:
  std::shared_ptr<one::OpExpr> op_;
};

}  // namespace

void RegisterAttention() {
  RegisterOp(kAttention, [](user_op::OpRegistry& op) {
    op.Input(kIn).Output(kOut).SetGetSbpFn(GetSplits);
    op.SetTensorDescInferFn(InferShape).SetDataTypeInferFn(InferTypes);
  });
  RegisterOp(kAttentionGrad, [](user_op::OpRegistry& op) {
    op.Input(kIn).Input(kOutGrad).Output(kInGrad).NoGrad().SetGetSbpFn(GetSplits);
    op.SetTensorDescInferFn(InferGradShape).SetDataTypeInferFn(InferTypes);
  });
  Register<ComputeAttention>(kAttention, OnCpu(kIn));
  Register<ComputeAttentionGrad>(kAttentionGrad, OnCpu(kIn));
  RegisterGradient<AttentionGradient>(kAttention);
}

}  // namespace libai_ext
