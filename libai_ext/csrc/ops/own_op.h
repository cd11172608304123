// What ops that OneFlow lacks share: how they are described to it, and how they get a gradient.
#pragma once

#include "kernel_util.h"
#include "gradient_interface.h"
#include "oneflow/core/framework/infer_util.h"
#include "oneflow/core/framework/sbp_context.h"

namespace libai_ext {

namespace one = oneflow::one;
namespace user_op = oneflow::user_op;

// Python can call such an op only through a function of OneFlow's for one of its own ops
// (libai_ext/compat/own_ops.py), which sets the attributes of that one. Two are used: the op's own
// numbers, and for each input 1 if it needs a gradient, else 0.
constexpr char kNumbers[] = "mean", kNeedsGrad[] = "std";

template<typename AnyContext>
float Number(AnyContext* ctx, int index) {
  return ctx->template Attr<std::vector<float>>(kNumbers).at(index);
}

// `describe` adds inputs, outputs, and functions for shapes, types and layouts.
template<typename Describe>
void RegisterOp(const char* name, const Describe& describe) {
  auto& registries = user_op::UserOpRegistryMgr::Get();
  oneflow::CatchRegistryError([&]() -> Maybe<void> {
    auto registry = registries.CheckAndGetOpRegistry(name);
    registry.SupportCpuOnly()
        .Attr<std::vector<float>>(kNumbers)
        .Attr<std::vector<float>>(kNeedsGrad)
        .Attr<int64_t>("crop_h")
        .Attr<int64_t>("crop_w")
        .Attr<float>("crop_pos_x")
        .Attr<float>("crop_pos_y")
        .Attr<DataType>("output_dtype")
        .Attr<std::string>("output_layout")
        .Attr<std::string>("color_space");
    describe(registry);
    return registries.Register(JUST(registry.Finish()).GetResult());
  });
}

// All inputs have one type, and the outputs too.
inline Maybe<void> InferTypes(user_op::InferContext* ctx) {
  const auto& [first, first_index] = ctx->inputs().at(0);
  const DataType type = ctx->InputDType(first, first_index);
  for (const auto& [name, index] : ctx->inputs()) {
    if (ctx->InputDType(name, index) != type) {
      return oneflow::Error::RuntimeError() << name << " has another type than " << first;
    }
  }
  for (const auto& [name, index] : ctx->outputs()) { ctx->SetOutputDType(name, index, type); }
  return Maybe<void>::Ok();
}

// What one call of an op keeps for its gradient.
struct Saved final : public one::AutoGradCaptureState {
  oneflow::AttrMap attributes;
  std::vector<float> needs_grad;
};

// The gradient of an op that needs its first `kept` inputs again.
template<int kept>
class Gradient : public one::OpExprGradFunctionIf {
 public:
  std::shared_ptr<one::AutoGradCaptureState> MakeCustomState() const override {
    return std::make_shared<Saved>();
  }

  Maybe<void> CaptureIf(one::AutoGradCaptureState* state, const one::TensorTuple& inputs,
                        const one::TensorTuple&,
                        const one::OpExprInterpContext& context) const override {
    auto* const saved = static_cast<Saved*>(state);
    saved->attributes = context.attrs;
    saved->needs_grad = JUST(context.attrs.GetAttr<std::vector<float>>(kNeedsGrad));
    for (int i = 0; i < kept; ++i) { saved->SaveTensorForBackward(inputs.at(i)); }
    return Maybe<void>::Ok();
  }

  Maybe<void> ApplyIf(const one::AutoGradCaptureState* state, const one::TensorTuple& out_grads,
                      one::TensorTuple* in_grads) const override {
    const auto& saved = *static_cast<const Saved*>(state);
    in_grads->resize(saved.needs_grad.size());
    return Compute(saved, out_grads.at(0), in_grads);
  }

 protected:
  // Sets the gradient of each input that needs one, and no other.
  virtual Maybe<void> Compute(const Saved& saved, const std::shared_ptr<one::Tensor>& out_grad,
                              one::TensorTuple* in_grads) const = 0;
};

template<typename AGradient>
void RegisterGradient(const char* op) {
  using Gradients = oneflow::AutoRegistrationFactory<std::string, one::OpExprGradFunctionIf>;
  const Gradients::CreatorRegisterType gradient(op, [] { return new AGradient; });
}

}  // namespace libai_ext
