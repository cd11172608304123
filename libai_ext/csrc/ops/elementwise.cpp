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

void ComputeSquare(Context* ctx) { Square(Size(ctx, "x"), Input(ctx, "x"), Output(ctx, "y")); }

void ComputeBiasAdd(Context* ctx) {
  const std::vector<int64_t> shape = Dims(ctx, "a");
  std::vector<int64_t> bias_shape(shape.size(), 1);
  const int32_t axis = ctx->Attr<int32_t>("axis");
  bias_shape[axis] = shape[axis];
  Broadcast(PlanBroadcast(shape, bias_shape, shape), Input(ctx, "a"), Input(ctx, "b"),
            Output(ctx, "out"), std::plus<float>());
}

// Repeats `name`, whose shape is `from`, along its axes of size 1 that `out` has more of.
void Repeat(Context* ctx, const char* name, const std::vector<int64_t>& from, const char* out) {
  const std::vector<int64_t> to = Dims(ctx, out);
  // The second operand is not read.
  Broadcast(PlanBroadcast(from, to, to), Input(ctx, name), Output(ctx, out), Output(ctx, out),
            [](float value, float) { return value; });
}

void ComputeExpand(Context* ctx) { Repeat(ctx, "in", Dims(ctx, "in"), "out"); }

void ComputeBroadcastLike(Context* ctx) {
  std::vector<int64_t> from = Dims(ctx, "like");
  const auto& axes = ctx->Attr<std::vector<int32_t>>("broadcast_axes");
  if (axes.empty()) { from.assign(from.size(), 1); }
  for (const int32_t axis : axes) { from[axis < 0 ? axis + from.size() : axis] = 1; }
  Repeat(ctx, "x", from, "y");
}

}  // namespace

void RegisterElementwise() {
  Register<ComputeAddN>("add_n", OnCpu("out"));
  Register<ComputeBroadcast<std::plus<float>>>("broadcast_add", OnCpu("x"));
  Register<ComputeBroadcast<std::minus<float>>>("broadcast_sub", OnCpu("x"));
  Register<ComputeBroadcast<std::multiplies<float>>>("broadcast_mul", OnCpu("x"));
  Register<ComputeBroadcast<std::divides<float>>>("broadcast_div", OnCpu("x"));
  Register<ComputeBiasAdd>("bias_add", OnCpu("out"));
  Register<ComputeSquare>("square", OnCpu("x"));  // for the norms of gradients
  Register<ComputeExpand>("expand", OnCpu("in"));
  Register<ComputeBroadcastLike>("broadcast_like", OnCpu("x"));
}

}  // namespace libai_ext
