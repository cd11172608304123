// How an op of a plug-in gets a gradient in OneFlow 0.9.0. The wheel has OneFlow's header for this,
// but not those that it includes, so here are the same classes as far as a plug-in needs them.
// Virtual functions and members must stand in OneFlow's order.
#pragma once

#include "oneflow/core/common/auto_registration_factory.h"
#include "oneflow/core/framework/op_builder.h"

namespace oneflow {
namespace one {

struct SavedTensorHook {
  virtual ~SavedTensorHook() = default;
};

// What one call of an op keeps for its gradient. OneFlow takes a call without saved tensors for one
// whose memory has been freed.
class AutoGradCaptureState {
 public:
  virtual ~AutoGradCaptureState();
  const TensorTuple& saved() const { return saved_; }
  size_t SaveTensorForBackward(const std::shared_ptr<Tensor>& tensor);

 private:
  std::vector<bool> input_requires_grad_;
  TensorTuple saved_;
  small_vector<std::unique_ptr<SavedTensorHook>, TensorTuple::kInitialSize> hooks_;
};

struct OpExprInterpContext {
  AttrMap attrs;
  // more follows
};

// Made once for each op of a plug-in.
struct OpExprGradFunctionIf {
  virtual ~OpExprGradFunctionIf() = default;
  virtual std::shared_ptr<AutoGradCaptureState> MakeCustomState() const = 0;
  virtual Maybe<void> Init(const OpExpr& op) = 0;
  // After each call that needs a gradient.
  virtual Maybe<void> CaptureIf(AutoGradCaptureState* state, const TensorTuple& inputs,
                                const TensorTuple& outputs,
                                const OpExprInterpContext& context) const = 0;
  virtual Maybe<void> ApplyIf(const AutoGradCaptureState* state, const TensorTuple& out_grads,
                              TensorTuple* in_grads) const = 0;
};

struct OpInterpUtil {
  template<typename Result>
  static Maybe<Result> Dispatch(const OpExpr& op, const TensorTuple& inputs, const AttrMap& attrs);
};

}  // namespace one
}  // namespace oneflow
