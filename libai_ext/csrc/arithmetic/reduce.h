// Sums over axes. All sums are made block by block, which keeps the rounding error small for long
// axes, and in an order that does not depend on the number of threads.
#pragma once

#include <memory>
#include <vector>

#include "parallel.h"

namespace libai_ext {

constexpr int64_t kSumBlock = 4096;   // elements summed in float before going on in double
constexpr int64_t kSumLanes = 16;     // running sums of a block, side by side
constexpr int64_t kColumnStrip = 64;  // columns summed together
constexpr int64_t kRowBlock = 128;    // rows summed in Float before going on in double

// Sum of f(0) ... f(n - 1). The lanes are spelled out: GCC 12 makes a loop with `omp simd` scalar
// where it does not inline it, and then its rounding error grows too.
template<typename Float, typename F>
Float BlockedSum(int64_t n, const F& f) {
  double total = 0;
  for (int64_t begin = 0; begin < n; begin += kSumBlock) {
    const int64_t end = std::min(n, begin + kSumBlock);
    Float sums[kSumLanes] = {};
    int64_t i = begin;
    for (; i + kSumLanes <= end; i += kSumLanes) {
      for (int64_t lane = 0; lane < kSumLanes; ++lane) { sums[lane] += f(i + lane); }
    }
    for (int64_t lane = 0; i < end; ++i, ++lane) { sums[lane] += f(i); }
    for (const Float sum : sums) { total += sum; }
  }
  return static_cast<Float>(total);
}

// sums[c] = f(0, c) + ... + f(rows - 1, c) for the columns begin <= c < end.
template<typename Float, typename F>
void ColumnSums(int64_t rows, int64_t begin, int64_t end, const F& f, Float* sums) {
  for (int64_t c0 = begin; c0 < end; c0 += kColumnStrip) {
    const int64_t width = std::min(kColumnStrip, end - c0);
    double total[kColumnStrip] = {};
    for (int64_t r0 = 0; r0 < rows; r0 += kRowBlock) {
      Float block[kColumnStrip] = {};
      for (int64_t r = r0; r < std::min(rows, r0 + kRowBlock); ++r) {
        for (int64_t c = 0; c < width; ++c) { block[c] += f(r, c0 + c); }
      }
      for (int64_t c = 0; c < width; ++c) { total[c] += block[c]; }
    }
    for (int64_t c = 0; c < width; ++c) { sums[c0 + c] = static_cast<Float>(total[c]); }
  }
}

// y[o, i] = sum over r of x[o, r, i], for x of shape [outer, reduced, inner].
inline void SumMiddle(int64_t outer, int64_t reduced, int64_t inner, const float* x, float* y) {
  if (inner == 1 && outer == 1 && reduced > 16 * kSumBlock) {
    const int64_t blocks = (reduced + kSumBlock - 1) / kSumBlock;
    const std::unique_ptr<float[]> partial(new float[blocks]);
    ParallelFor(
        blocks, 8,
        [&](int64_t begin, int64_t end) {
          for (int64_t b = begin; b < end; ++b) {
            const float* block = x + b * kSumBlock;
            partial[b] = BlockedSum<float>(std::min(kSumBlock, reduced - b * kSumBlock),
                                           [=](int64_t i) { return block[i]; });
          }
        },
        /*align=*/1);
    double total = 0;
    for (int64_t b = 0; b < blocks; ++b) { total += partial[b]; }
    *y = static_cast<float>(total);
  } else if (inner == 1) {
    ParallelRows(outer, reduced, [=](int64_t o) {
      const float* row = x + o * reduced;
      y[o] = BlockedSum<float>(reduced, [=](int64_t i) { return row[i]; });
    });
  } else {
    const int64_t strips = (inner + kColumnStrip - 1) / kColumnStrip;
    ParallelRows(outer * strips, reduced * kColumnStrip, [=](int64_t job) {
      const int64_t o = job / strips;
      const int64_t begin = job % strips * kColumnStrip;
      const float* slice = x + o * reduced * inner;
      ColumnSums<float>(
          reduced, begin, std::min(inner, begin + kColumnStrip),
          [=](int64_t r, int64_t c) { return slice[r * inner + c]; }, y + o * inner);
    });
  }
}

// y = x of shape `dims` summed over the axes with is_reduced[axis].
inline void SumAxes(const std::vector<int64_t>& dims, const std::vector<bool>& is_reduced,
                    const float* x, float* y) {
  // Neighbouring axes of one kind act as one.
  std::vector<int64_t> merged{1};
  std::vector<bool> reduced{false};
  for (size_t axis = 0; axis < dims.size(); ++axis) {
    if (dims[axis] == 1) { continue; }
    if (reduced.back() == is_reduced[axis]) {
      merged.back() *= dims[axis];
    } else {
      merged.push_back(dims[axis]);
      reduced.push_back(is_reduced[axis]);
    }
  }
  int64_t size = 1;
  for (const int64_t dim : merged) { size *= dim; }
  if (reduced.size() == 1) {
    std::copy(x, x + size, y);
    return;
  }
  // Kept and reduced axes alternate: sum over the reduced ones one by one, the last one first.
  std::unique_ptr<float[]> held;
  int64_t inner = 1;
  for (int axis = static_cast<int>(merged.size()) - 1; axis >= 0; --axis) {
    if (!reduced[axis]) {
      inner *= merged[axis];
      continue;
    }
    const int64_t outer = size / (inner * merged[axis]);
    const bool is_last = axis == 1;
    std::unique_ptr<float[]> next(is_last ? nullptr : new float[outer * inner]);
    SumMiddle(outer, merged[axis], inner, x, is_last ? y : next.get());
    held = std::move(next);
    x = held.get();
    size = outer * inner;
  }
}

}  // namespace libai_ext
