// What the files of this folder share: access to an op's tensors, and the registration of a kernel
// under a priority that wins over OneFlow's own.
#pragma once

#include <cstring>
#include <string>
#include <vector>

#include "oneflow/core/framework/op_kernel.h"
#include "oneflow/core/framework/user_op_hob.h"
#include "oneflow/core/framework/user_op_registry_manager.h"

namespace libai_ext {

using oneflow::DataType;
using oneflow::DeviceType;
using oneflow::Maybe;
using oneflow::ShapeView;
using Context = oneflow::user_op::KernelComputeContext;

inline oneflow::user_op::Tensor* Tensor(Context* ctx, const std::string& name, int index) {
  return ctx->Tensor4ArgNameAndIndex(name, index);
}

inline ShapeView Shape(Context* ctx, const char* name) {
  return Tensor(ctx, name, 0)->shape_view();
}

inline std::vector<int64_t> Dims(Context* ctx, const char* name) {
  const ShapeView shape = Shape(ctx, name);
  return std::vector<int64_t>(shape.ptr(), shape.ptr() + shape.NumAxes());
}

inline int64_t Size(Context* ctx, const char* name) { return Shape(ctx, name).elem_cnt(); }

template<typename T = float>
const T* Input(Context* ctx, const char* name, int index = 0) {
  return ctx->Tensor4ArgNameAndIndex(name, index)->dptr<T>();
}

template<typename T = float>
const T* OptionalInput(Context* ctx, const char* name) {
  return ctx->has_input(name, 0) ? Input<T>(ctx, name) : nullptr;
}

template<typename T = float>
T* Output(Context* ctx, const char* name) {
  return ctx->Tensor4ArgNameAndIndex(name, 0)->mut_dptr<T>();
}

template<typename T = float>
T* OptionalOutput(Context* ctx, const char* name) {
  return ctx->has_output(name, 0) ? Output<T>(ctx, name) : nullptr;
}

template<void (*kCompute)(Context*)>
class FunctionKernel final : public oneflow::user_op::OpKernel {
  using oneflow::user_op::OpKernel::Compute;
  void Compute(Context* ctx) const override { kCompute(ctx); }
  bool AlwaysComputeWhenAllOutputsEmpty() const override { return false; }
};

// Matches ops on CPU whose tensor `name` has elements of type `type`. Combine it by && with what
// else a kernel needs: OneFlow's own kernel runs where that does not hold.
inline auto OnCpu(const std::string& name, DataType type = DataType::kFloat) {
  return (oneflow::user_op::HobDeviceType() == DeviceType::kCPU) &&
         (oneflow::user_op::HobDataType(name, 0) == type);
}

// Registers kCompute as the kernel of `op` where `matches` holds. It proposes no output to be
// computed in place of an input: OneFlow 0.9.0's graphs compute nothing in place on CPU.
template<void (*kCompute)(Context*), typename Hob>
void Register(const std::string& op, const Hob& matches) {
  namespace user_op = oneflow::user_op;
  auto& registries = user_op::UserOpRegistryMgr::Get();
  oneflow::CatchRegistryError([&]() -> Maybe<void> {
    auto registry = registries.CheckAndGetOpKernelRegistry(op);
    registry.SetCreateFn<FunctionKernel<kCompute>>().SetIsMatchedHob(matches).SetPriority(
        user_op::kKernelPriorityOptimized);
    return registries.Register(JUST(registry.Finish()).GetResult());
  });
}

// Whether products round their factors to bfloat16 (matmul.cpp).
bool ProductsAreBfloat16();

// One a file of this folder.
void RegisterAdam();
void RegisterAttention();
void RegisterCopy();
void RegisterElementwise();
void RegisterGelu();
void RegisterLayerNorm();
void RegisterLinear();
void RegisterMatmul();
void RegisterReduce();

}  // namespace libai_ext
