// The softmax of a row and its gradient, for scores that are computed anew whenever they are
// needed. Sums run over 16 lanes and then over these, in an order that depends on the row's length
// alone.
#pragma once

#include <algorithm>
#include <cmath>

#include "vector_math.h"

namespace libai_ext {

// Rows are in arrays whose length is a multiple of this, so that loops need no rest.
constexpr int64_t kRowLanes = 16;

inline int64_t PaddedRow(int64_t cols) { return (cols + kRowLanes - 1) / kRowLanes * kRowLanes; }

namespace softmax {

typedef float Lanes __attribute__((vector_size(kRowLanes * 4), aligned(4), may_alias));
typedef uint32_t LaneBits __attribute__((vector_size(kRowLanes * 4)));

inline Lanes& At(float* row, int64_t j) { return *reinterpret_cast<Lanes*>(row + j); }

inline void FillEnd(float* row, int64_t cols, float value) {
  std::fill(row + cols, row + PaddedRow(cols), value);
}

// All lanes joined in pairs, then pairs of these, and so on.
template<typename Join>
float Fold(Lanes lanes, const Join& join) {
  lanes = join(lanes, __builtin_shuffle(
                          lanes, LaneBits{8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7}));
  lanes = join(lanes, __builtin_shuffle(
                          lanes, LaneBits{4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11}));
  lanes = join(lanes, __builtin_shuffle(
                          lanes, LaneBits{2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13}));
  return join(lanes, __builtin_shuffle(
                         lanes, LaneBits{1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14}))[0];
}

inline float Sum(Lanes lanes) {
  return Fold(lanes, [](Lanes a, Lanes b) { return a + b; });
}

// NaN is left to the exponentials, which keep it.
inline float Largest(int64_t cols, float* row) {
  const auto larger = [](Lanes a, Lanes b) { return a > b ? a : b; };
  Lanes lanes = At(row, 0);
  for (int64_t j = kRowLanes; j < cols; j += kRowLanes) { lanes = larger(At(row, j), lanes); }
  return Fold(lanes, larger);
}

// Replaces the row by exp(row - its largest element), 0 in the padding; calls use(j, lanes).
template<typename Use>
void Exponentials(int64_t cols, float* row, const Use& use) {
  FillEnd(row, cols, -INFINITY);
  const float largest = Largest(cols, row);
  for (int64_t j = 0; j < cols; j += kRowLanes) {
    At(row, j) = ExpOfNegative<LaneBits>(At(row, j) - largest);
    use(j, At(row, j));
  }
}

}  // namespace softmax

// Replaces a row of scores by its softmax. A row with NaN or +infinity becomes NaN.
inline void Softmax(int64_t cols, float* row) {
  softmax::Lanes sum{};
  softmax::Exponentials(cols, row, [&](int64_t, const softmax::Lanes& power) { sum += power; });
  const float factor = 1.f / softmax::Sum(sum);
  for (int64_t j = 0; j < cols; j += kRowLanes) { softmax::At(row, j) *= factor; }
}

// The same, and replaces the gradient of the softmax in `grad` by that of the scores.
inline void SoftmaxAndGrad(int64_t cols, float* row, float* grad) {
  softmax::FillEnd(grad, cols, 0.f);
  softmax::Lanes sum{}, dot{};
  softmax::Exponentials(cols, row, [&](int64_t j, const softmax::Lanes& power) {
    sum += power;
    dot += power * softmax::At(grad, j);
  });
  const float factor = 1.f / softmax::Sum(sum);
  const float mean = softmax::Sum(dot) * factor;
  for (int64_t j = 0; j < cols; j += kRowLanes) {
    const softmax::Lanes weight = softmax::At(row, j) * factor;
    softmax::At(row, j) = weight;
    softmax::At(grad, j) = weight * (softmax::At(grad, j) - mean);
  }
}

}  // namespace libai_ext
