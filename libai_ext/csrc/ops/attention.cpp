// Two ops of our own, with shapes, layouts and a gradient, for attention from packed queries, keys
// and values. libai_ext/compat/attention.py calls them.
#include "../arithmetic/attention.h"

#include "kernel_util.h"
#include "gradient_interface.h"
#include "oneflow/core/framework/infer_util.h"
#include "oneflow/core/framework/sbp_context.h"

namespace libai_ext {
namespace {

namespace one = oneflow::one;
namespace user_op = oneflow::user_op;

constexpr char kAttention[] = "libai_ext_self_attention";
constexpr char kAttentionGrad[] = "libai_ext_self_attention_grad";
constexpr char kIn[] = "query_key_value", kInGrad[] = "query_key_value_grad";
constexpr char kOut[] = "context", kOutGrad[] = "context_grad";
// Python can set the attributes of such an op only through a function of OneFlow's for one of its
// own ops, which has attributes of these names.
constexpr char kScale[] = "mean", kHeadSize[] = "std";

template<typename AnyContext>
int64_t HeadSize(AnyContext* ctx) {
  return static_cast<int64_t>(ctx->template Attr<std::vector<float>>(kHeadSize).at(0));
}

AttentionShape ShapeOf(Context* ctx) {
  const ShapeView shape = Shape(ctx, kIn);
  const int axes = shape.NumAxes();
  const int64_t width = HeadSize(ctx);
  return {shape.Count(0, axes - 2),
          shape.At(axes - 2),
          shape.At(axes - 1) / (3 * width),
          width,
          ctx->Attr<std::vector<float>>(kScale).at(0),
          ProductsAreBfloat16()};
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

template<const char* kResult>
Maybe<void> InferType(user_op::InferContext* ctx) {
  ctx->SetOutputDType(kResult, 0, ctx->InputDType(kIn, 0));
  return Maybe<void>::Ok();
}

// Images and heads may be on different ranks, tokens not.
Maybe<void> GetSplits(user_op::SbpContext* ctx) {
  const int64_t axes = ctx->LogicalTensorDesc4InputArgNameAndIndex(kIn, 0).shape().NumAxes();
  for (int64_t axis = 0; axis < axes; ++axis) {
    if (axis == axes - 2) { continue; }
    ctx->NewBuilder().Split(ctx->inputs(), axis).Split(ctx->outputs(), axis).Build();
  }
  return Maybe<void>::Ok();
}

// Keeps the op's input alone: its gradient computes everything else again.
struct Saved final : public one::AutoGradCaptureState {
  oneflow::AttrMap attributes;
};

class AttentionGradient final : public one::OpExprGradFunctionIf {
 public:
  Maybe<void> Init(const one::OpExpr&) override {
    op_ = JUST(one::OpBuilder(kAttentionGrad).Input(kIn).Input(kOutGrad).Output(kInGrad).Build());
    return Maybe<void>::Ok();
  }

  std::shared_ptr<one::AutoGradCaptureState> MakeCustomState() const override {
    return std::make_shared<Saved>();
  }

  Maybe<void> CaptureIf(one::AutoGradCaptureState* state, const one::TensorTuple& inputs,
                        const one::TensorTuple&,
                        const one::OpExprInterpContext& context) const override {
    static_cast<Saved*>(state)->attributes = context.attrs;
    state->SaveTensorForBackward(inputs.at(0));
    return Maybe<void>::Ok();
  }

  Maybe<void> ApplyIf(const one::AutoGradCaptureState* state, const one::TensorTuple& out_grads,
                      one::TensorTuple* in_grads) const override {
    in_grads->resize(1);
    in_grads->at(0) = JUST(
        one::OpInterpUtil::Dispatch<one::Tensor>(*op_, {state->saved().at(0), out_grads.at(0)},
                                                 static_cast<const Saved*>(state)->attributes));
    return Maybe<void>::Ok();
  }

 private:
  std::shared_ptr<one::OpExpr> op_;
};

template<typename Describe>
void RegisterOp(const char* name, const Describe& describe) {
  auto& registries = user_op::UserOpRegistryMgr::Get();
  oneflow::CatchRegistryError([&]() -> Maybe<void> {
    auto registry = registries.CheckAndGetOpRegistry(name);
    registry.Input(kIn)
        .Attr<std::vector<float>>(kScale)
        .Attr<std::vector<float>>(kHeadSize)
        .SetGetSbpFn(GetSplits)
        .SupportCpuOnly();
    describe(registry);
    return registries.Register(JUST(registry.Finish()).GetResult());
  });
}

}  // namespace

void RegisterAttention() {
  RegisterOp(kAttention, [](user_op::OpRegistry& op) {
    op.Output(kOut).SetTensorDescInferFn(InferShape).SetDataTypeInferFn(InferType<kOut>);
  });
  RegisterOp(kAttentionGrad, [](user_op::OpRegistry& op) {
    op.Input(kOutGrad).Output(kInGrad).NoGrad();
    op.SetTensorDescInferFn(InferGradShape).SetDataTypeInferFn(InferType<kInGrad>);
  });
  Register<ComputeAttention>(kAttention, OnCpu(kIn));
  Register<ComputeAttentionGrad>(kAttentionGrad, OnCpu(kIn));
  using Gradients = oneflow::AutoRegistrationFactory<std::string, one::OpExprGradFunctionIf>;
  const Gradients::CreatorRegisterType gradient(kAttention, [] { return new AttentionGradient; });
}

}  // namespace libai_ext
