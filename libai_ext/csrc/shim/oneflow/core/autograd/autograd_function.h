// The type of a gradient written in Python, which a header of OneFlow's mentions. The wheel leaves
// its own header out.
#pragma once

#include <functional>
#include <memory>

namespace oneflow {
namespace one {

class FunctionAutoGradCaptureState;
class TensorTuple;

struct AutogradFunctionBase {
  using FType = std::function<std::shared_ptr<TensorTuple>(
      std::shared_ptr<FunctionAutoGradCaptureState> const&, TensorTuple const&)>;
};

}  // namespace one
}  // namespace oneflow
