// Sums of tensors of one shape, and binary operations with broadcasting.
#pragma once

#include <vector>

#include "parallel.h"

namespace libai_ext {

constexpr int64_t kElementwiseGrain = 16384;  // elements a thread should have

// y = inputs[0] + inputs[1] + ..., at least one; y may be one of them.
inline void AddAll(int64_t n, const std::vector<const float*>& inputs, float* y) {
  const size_t count = inputs.size();
  ParallelFor(n, kElementwiseGrain, [&](int64_t begin, int64_t end) {
    if (count == 2) {
      const float* a = inputs[0];
      const float* b = inputs[1];
      for (int64_t i = begin; i < end; ++i) { y[i] = a[i] + b[i]; }
      return;
    }
    for (int64_t i = begin; i < end; ++i) {
      float sum = inputs[0][i];
      for (size_t k = 1; k < count; ++k) { sum += inputs[k][i]; }
      y[i] = sum;
    }
  });
}

inline void Square(int64_t n, const float* x, float* y) {
  ParallelFor(n, kElementwiseGrain, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) { y[i] = x[i] * x[i]; }
  });
}

// The shapes of z = op(x, y), axes merged where both operands go on the same way. A stride is in
// elements, 0 along the axes in which an operand is repeated.
struct BroadcastPlan {
  std::vector<int64_t> dims;
  std::vector<int64_t> x_strides;
  std::vector<int64_t> y_strides;
};

// Shapes aligned at their last axis; axes of size 1, and axes an operand lacks, are repeated.
inline BroadcastPlan PlanBroadcast(const std::vector<int64_t>& x, const std::vector<int64_t>& y,
                                   const std::vector<int64_t>& z) {
  const auto dim = [&](const std::vector<int64_t>& shape, size_t axis) -> int64_t {
    const size_t missing = z.size() - shape.size();
    return axis < missing ? 1 : shape[axis - missing];
  };
  BroadcastPlan plan;
  std::vector<bool> x_varies, y_varies;
  for (size_t axis = 0; axis < z.size(); ++axis) {
    if (z[axis] == 1) { continue; }
    const bool xv = dim(x, axis) != 1;
    const bool yv = dim(y, axis) != 1;
    if (!plan.dims.empty() && x_varies.back() == xv && y_varies.back() == yv) {
      plan.dims.back() *= z[axis];
    } else {
      plan.dims.push_back(z[axis]);
      x_varies.push_back(xv);
      y_varies.push_back(yv);
    }
  }
  if (plan.dims.empty()) {
    plan.dims.push_back(1);
    x_varies.push_back(true);
    y_varies.push_back(true);
  }
  const auto strides = [&](const std::vector<bool>& varies) {
    std::vector<int64_t> result(varies.size(), 0);
    int64_t stride = 1;
    for (size_t axis = varies.size(); axis-- > 0;) {
      if (!varies[axis]) { continue; }
      result[axis] = stride;
      stride *= plan.dims[axis];
    }
    return result;
  };
  plan.x_strides = strides(x_varies);
  plan.y_strides = strides(y_varies);
  return plan;
}

// z = op(x, y). z may be x or y where that one is not repeated.
template<typename Op>
void Broadcast(const BroadcastPlan& plan, const float* x, const float* y, float* z, const Op& op) {
  const size_t last = plan.dims.size() - 1;
  const int64_t inner = plan.dims[last];
  int64_t size = 1;
  for (const int64_t dim : plan.dims) { size *= dim; }
  ParallelFor(size, kElementwiseGrain, [&](int64_t begin, int64_t end) {
    while (begin < end) {  // one row, or the part of it that is ours
      const int64_t column = begin % inner;
      const int64_t count = std::min(inner - column, end - begin);
      int64_t x_offset = column * plan.x_strides[last];
      int64_t y_offset = column * plan.y_strides[last];
      int64_t rest = begin / inner;
      for (size_t axis = last; axis-- > 0; rest /= plan.dims[axis]) {
        x_offset += rest % plan.dims[axis] * plan.x_strides[axis];
        y_offset += rest % plan.dims[axis] * plan.y_strides[axis];
      }
      const float* a = x + x_offset;
      const float* b = y + y_offset;
      float* out = z + begin;
      if (plan.x_strides[last] == 0) {
        const float value = *a;
        for (int64_t i = 0; i < count; ++i) { out[i] = op(value, b[i]); }
      } else if (plan.y_strides[last] == 0) {
        const float value = *b;
        for (int64_t i = 0; i < count; ++i) { out[i] = op(a[i], value); }
      } else {
        for (int64_t i = 0; i < count; ++i) { out[i] = op(a[i], b[i]); }
      }
      begin += count;
    }
  });
}

}  // namespace libai_ext
