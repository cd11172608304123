#include "../arithmetic/adam.h"

#include "kernel_util.h"

namespace libai_ext {
namespace {

void ComputeAdam(Context* ctx) {
  // Set in a step whose gradients are not finite (dynamic loss scaling).
  const int64_t* skip = OptionalInput<int64_t>(ctx, "skip_if");
  if (skip && *skip != 0) { return; }
  // Each of these comes as a tensor where it changes while a graph runs, else as an attribute.
  const auto value = [&](const char* tensor, const char* attribute) {
    const float* given = OptionalInput(ctx, tensor);
    return given ? *given : ctx->Attr<float>(attribute);
  };
  const float* scale_by = OptionalInput(ctx, "scale_by_tensor");
  AdamStep step;
  step.learning_rate =
      value("learning_rate", "learning_rate_val") * ctx->Attr<float>("learning_rate_scale");
  step.bias_correction1 = value("bias_correction1", "bias_correction1_val");
  step.bias_correction2 = value("bias_correction2", "bias_correction2_val");
  step.gradient_scale =
      static_cast<float>(ctx->Attr<double>("scale")) * (scale_by ? *scale_by : 1.f);
  step.l2 = ctx->Attr<float>("l2");
  step.beta1 = ctx->Attr<float>("beta1");
  step.beta2 = ctx->Attr<float>("beta2");
  step.epsilon = ctx->Attr<float>("epsilon");
  step.weight_decay = ctx->Attr<float>("weight_decay");
  AdamUpdate(Size(ctx, "model"), step, Input(ctx, "model_diff"), Output(ctx, "model"),
             Output(ctx, "m"), Output(ctx, "v"));
}

}  // namespace

void RegisterAdam() {
  using oneflow::user_op::HobAttr;
  using oneflow::user_op::HobInputSize;
  Register<ComputeAdam>(
      "adam_update", OnCpu("model") && OnCpu("model_diff") && (HobAttr<bool>("amsgrad") == false) &&
                         (HobAttr<float>("l1") == 0.f) && (HobInputSize("model_copy") == 0));
}

}  // namespace libai_ext
