#include "../arithmetic/elementwise.h"

#include <functional>

#include "kernel_util.h"

namespace libai_ext {
namespace {

void ComputeAddN(Context* ctx) {
  std::vector<const float*> inputs;
  for (size_t i = 0; i < ctx->inputs().size(); ++i) { inputs.push_back(Input(ctx, "in", i)); }
  AddAll(Size(ctx, "out"), inputs, Output(ctx, "out"));
}

template<typename Op>
void ComputeBroadcast(Context* ctx) {
  const BroadcastPlan plan = PlanBroadcast(Dims(ctx, "x"), Dims(ctx, "y"), Dims(ctx, "z"));
  Broadcast(plan, Input(ctx, "x"), Input(ctx, "y"), Output(ctx, "z"), Op());
}

void ComputeBiasAdd(Context* ctx) {
  const std::vector<int64_t> shape = Dims(ctx, "a");
  std::vector<int64_t> bias_shape(shape.size(), 1);
  const int32_t axis = ctx->Attr<int32_t>("axis");
  bias_shape[axis] = shape[axis];
  Broadcast(PlanBroadcast(shape, bias_shape, shape), Input(ctx, "a"), Input(ctx, "b"),
            Output(ctx, "out"), std::plus<float>());
}

}  // namespace

void RegisterElementwise() {
  Register<ComputeAddN>("add_n", OnCpu("out"));
  Register<ComputeBroadcast<std::plus<float>>>("broadcast_add", OnCpu("x"));
  Register<ComputeBroadcast<std::minus<float>>>("broadcast_sub", OnCpu("x"));
  Register<ComputeBroadcast<std::multiplies<float>>>("broadcast_mul", OnCpu("x"));
  Register<ComputeBroadcast<std::divides<float>>>("broadcast_div", OnCpu("x"));
  Register<ComputeBiasAdd>("bias_add", OnCpu("out"));
}

}  // namespace libai_ext
