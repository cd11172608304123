#include "../arithmetic/copy.h"

#include <numeric>

#include "kernel_util.h"

namespace libai_ext {
namespace {

void ComputeCopy(Context* ctx) { Copy(Size(ctx, "out"), Input(ctx, "in"), Output(ctx, "out")); }

void ComputeTranspose(Context* ctx) {
  Permute(Dims(ctx, "input"), ctx->Attr<std::vector<int32_t>>("perm"), Input(ctx, "input"),
          Output(ctx, "output"));
}

// Calls cut(rows, cols, start, length) for the axis that is cut, seen as the columns of a matrix.
template<typename Cut>
void AlongAxis(Context* ctx, const std::vector<int64_t>& dims, const Cut& cut) {
  const int64_t axis = ctx->Attr<int64_t>("dim");
  const auto product = [](auto begin, auto end) {
    return std::accumulate(begin, end, int64_t{1}, std::multiplies<int64_t>());
  };
  const int64_t inner = product(dims.begin() + axis + 1, dims.end());
  cut(product(dims.begin(), dims.begin() + axis), dims[axis] * inner,
      ctx->Attr<int64_t>("start") * inner, ctx->Attr<int64_t>("length") * inner);
}

void ComputeNarrow(Context* ctx) {
  AlongAxis(ctx, Dims(ctx, "in"), [&](int64_t rows, int64_t cols, int64_t start, int64_t length) {
    Narrow(rows, cols, start, length, Input(ctx, "in"), Output(ctx, "out"));
  });
}

void ComputeNarrowGrad(Context* ctx) {
  AlongAxis(ctx, Dims(ctx, "dx"), [&](int64_t rows, int64_t cols, int64_t start, int64_t length) {
    Widen(rows, cols, start, length, Input(ctx, "dy"), Output(ctx, "dx"));
  });
}

}  // namespace

void RegisterCopy() {
  // On several ranks, LiBai's Linear copies its input: `x.to_global(grad_sbp=x.sbp)`.
  Register<ComputeCopy>("copy", OnCpu("out"));
  Register<ComputeCopy>("reshape", OnCpu("out"));
  Register<ComputeTranspose>("transpose", OnCpu("input"));
  Register<ComputeNarrow>("narrow", OnCpu("in"));
  Register<ComputeNarrowGrad>("narrow_grad", OnCpu("dx"));
}

}  // namespace libai_ext
