// Three ops of our own for linear layers: the product with its bias, and the gradients of the input
// and of weight and bias. libai_ext/compat/linear.py calls the first.
#include "../arithmetic/linear.h"

#include "own_op.h"

namespace libai_ext {
namespace {

constexpr char kLinear[] = "libai_ext_linear";
constexpr char kInputGrad[] = "libai_ext_linear_input_grad";
constexpr char kParameterGrads[] = "libai_ext_linear_parameter_grads";
constexpr char kX[] = "x", kWeight[] = "weight", kBias[] = "bias", kY[] = "y";
constexpr char kXGrad[] = "x_grad", kYGrad[] = "y_grad";
constexpr char kWeightGrad[] = "weight_grad", kBiasGrad[] = "bias_grad";

LinearShape LinearShapeOf(Context* ctx, const char* in, const char* out) {
  const ShapeView x = Shape(ctx, in), y = Shape(ctx, out);
  const int last = x.NumAxes() - 1;
  return {x.Count(0, last), x.At(last), y.At(last), ProductsAreBfloat16()};
}

void ComputeLinear(Context* ctx) {
  Linear(LinearShapeOf(ctx, kX, kY), Input(ctx, kX), Input(ctx, kWeight), Input(ctx, kBias),
         Output(ctx, kY));
}

void ComputeInputGrad(Context* ctx) {
  LinearInputGrad(LinearShapeOf(ctx, kXGrad, kYGrad), Input(ctx, kYGrad), Input(ctx, kWeight),
                  Output(ctx, kXGrad));
}

void ComputeParameterGrads(Context* ctx) {
  LinearParameterGrads(LinearShapeOf(ctx, kX, kYGrad), Input(ctx, kX), Input(ctx, kYGrad),
                       Output(ctx, kWeightGrad), Output(ctx, kBiasGrad));
}

Maybe<void> InferLinearShape(user_op::InferContext* ctx) {
  oneflow::Shape shape = ctx->InputShape(kX, 0);
  const oneflow::Shape& weight = ctx->InputShape(kWeight, 0);
  const oneflow::Shape& bias = ctx->InputShape(kBias, 0);
  const int64_t last = shape.NumAxes() - 1;
  if (last < 1 || weight.NumAxes() != 2 || bias.NumAxes() != 1 || weight.At(0) != shape.At(last) ||
      weight.At(1) != bias.At(0)) {
    return oneflow::Error::RuntimeError()
           << "a linear layer cannot have an input of shape " << shape.ToString()
           << ", a weight of " << weight.ToString() << " and a bias of " << bias.ToString();
  }
  shape.Set(last, bias.At(0));
  ctx->SetOutputShape(kY, 0, shape);
  return Maybe<void>::Ok();
}

Maybe<void> InferInputShape(user_op::InferContext* ctx) {
  oneflow::Shape shape = ctx->InputShape(kYGrad, 0);
  shape.Set(shape.NumAxes() - 1, ctx->InputShape(kWeight, 0).At(0));
  ctx->SetOutputShape(kXGrad, 0, shape);
  return Maybe<void>::Ok();
}

Maybe<void> InferParameterShapes(user_op::InferContext* ctx) {
  const int64_t last = ctx->InputShape(kX, 0).NumAxes() - 1;
  const int64_t in = ctx->InputShape(kX, 0).At(last), out = ctx->InputShape(kYGrad, 0).At(last);
  ctx->SetOutputShape(kWeightGrad, 0, oneflow::Shape({in, out}));
  ctx->SetOutputShape(kBiasGrad, 0, oneflow::Shape({out}));
  return Maybe<void>::Ok();
}

int64_t LastAxis(user_op::SbpContext* ctx, const char* rows) {
  return ctx->LogicalTensorDesc4InputArgNameAndIndex(rows, 0).shape().NumAxes() - 1;
}

// Rows may be on different ranks, or columns of the weight.
Maybe<void> GetLinearSplits(user_op::SbpContext* ctx) {
  const user_op::OpArg x(kX, 0), weight(kWeight, 0), bias(kBias, 0), y(kY, 0);
  const int64_t last = LastAxis(ctx, kX);
  for (int64_t axis = 0; axis < last; ++axis) {
    ctx->NewBuilder().Split(x, axis).Broadcast(weight).Broadcast(bias).Split(y, axis).Build();
  }
  ctx->NewBuilder().Broadcast(x).Split(weight, 1).Split(bias, 0).Split(y, last).Build();
  return Maybe<void>::Ok();
}

Maybe<void> GetInputSplits(user_op::SbpContext* ctx) {
  const user_op::OpArg y_grad(kYGrad, 0), weight(kWeight, 0), x_grad(kXGrad, 0);
  const int64_t last = LastAxis(ctx, kYGrad);
  for (int64_t axis = 0; axis < last; ++axis) {
    ctx->NewBuilder().Split(y_grad, axis).Broadcast(weight).Split(x_grad, axis).Build();
  }
  ctx->NewBuilder().Split(y_grad, last).Split(weight, 1).PartialSum(x_grad).Build();
  return Maybe<void>::Ok();
}

Maybe<void> GetParameterSplits(user_op::SbpContext* ctx) {
  const user_op::OpArg x(kX, 0), y_grad(kYGrad, 0), weight(kWeightGrad, 0), bias(kBiasGrad, 0);
  const int64_t last = LastAxis(ctx, kX);
  for (int64_t axis = 0; axis < last; ++axis) {
    ctx->NewBuilder().Split(ctx->inputs(), axis).PartialSum(ctx->outputs()).Build();
  }
  ctx->NewBuilder().Broadcast(x).Split(y_grad, last).Split(weight, 1).Split(bias, 0).Build();
  return Maybe<void>::Ok();
}

class LinearGradient final : public Gradient</*kept=*/2> {
 public:
  Maybe<void> Init(const one::OpExpr&) override {
    one::OpBuilder input(kInputGrad), parameters(kParameterGrads);
    input.Input(kYGrad).Input(kWeight).Output(kXGrad);
    parameters.Input(kX).Input(kYGrad).Output(kWeightGrad).Output(kBiasGrad);
    input_op_ = JUST(input.Build());
    parameters_op_ = JUST(parameters.Build());
    return Maybe<void>::Ok();
  }

 protected:
  Maybe<void> Compute(const Saved& saved, const std::shared_ptr<one::Tensor>& y_grad,
                      one::TensorTuple* in_grads) const override {
    const auto &x = saved.saved().at(0), &weight = saved.saved().at(1);
    if (saved.needs_grad[0]) {
      in_grads->at(0) = JUST(
          one::OpInterpUtil::Dispatch<one::Tensor>(*input_op_, {y_grad, weight}, saved.attributes));
    }
    if (!saved.needs_grad[1] && !saved.needs_grad[2]) { return Maybe<void>::Ok(); }
    const auto grads = JUST(one::OpInterpUtil::Dispatch<one::TensorTuple>(
        *parameters_op_, {x, y_grad}, saved.attributes));
    for (int i = 0; i < 2; ++i) {
      if (saved.needs_grad[1 + i]) { in_grads->at(1 + i) = grads->at(i); }
    }
    return Maybe<void>::Ok();
  }

 private:
  std::shared_ptr<one::OpExpr> input_op_, parameters_op_;
};

}  // namespace

void RegisterLinear() {
  RegisterOp(kLinear, [](user_op::OpRegistry& op) {
    op.Input(kX).Input(kWeight).Input(kBias).Output(kY).SetGetSbpFn(GetLinearSplits);
    op.SetTensorDescInferFn(InferLinearShape).SetDataTypeInferFn(InferTypes);
  });
  RegisterOp(kInputGrad, [](user_op::OpRegistry& op) {
    op.Input(kYGrad).Input(kWeight).Output(kXGrad).NoGrad().SetGetSbpFn(GetInputSplits);
    op.SetTensorDescInferFn(InferInputShape).SetDataTypeInferFn(InferTypes);
  });
  RegisterOp(kParameterGrads, [](user_op::OpRegistry& op) {
    op.Input(kX).Input(kYGrad).Output(kWeightGrad).Output(kBiasGrad).NoGrad();
    op.SetGetSbpFn(GetParameterSplits);
    op.SetTensorDescInferFn(InferParameterShapes).SetDataTypeInferFn(InferTypes);
  });
  Register<ComputeLinear>(kLinear, OnCpu(kX));
  Register<ComputeInputGrad>(kInputGrad, OnCpu(kYGrad));
  Register<ComputeParameterGrads>(kParameterGrads, OnCpu(kX));
  RegisterGradient<LinearGradient>(kLinear);
}

}  // namespace libai_ext
