#include "../arithmetic/reduce.h"

#include "kernel_util.h"

namespace libai_ext {
namespace {

void Sum(Context* ctx, const char* from, const char* to) {
  float* out = Output(ctx, to);
  const std::vector<int64_t> dims = Dims(ctx, from);
  if (Size(ctx, from) == 0) {  // an empty sum
    std::fill_n(out, Size(ctx, to), 0.f);
    return;
  }
  std::vector<bool> is_reduced(dims.size(), false);
  for (const int32_t axis : ctx->Attr<std::vector<int32_t>>("axis")) {
    is_reduced[axis < 0 ? axis + dims.size() : axis] = true;
  }
  SumAxes(dims, is_reduced, Input(ctx, from), out);
}

void ComputeReduceSum(Context* ctx) { Sum(ctx, "input_tensor", "output_tensor"); }

void ComputeReduceSumLike(Context* ctx) { Sum(ctx, "x", "y"); }

}  // namespace

void RegisterReduce() {
  Register<ComputeReduceSum>("reduce_sum", OnCpu("input_tensor"));
  Register<ComputeReduceSumLike>("reduce_sum_like", OnCpu("x"));
}

}  // namespace libai_ext
