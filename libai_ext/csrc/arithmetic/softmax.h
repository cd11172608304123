// The softmax of a row and its gradient, for scores that are computed anew whenever they are
// needed. Sums run over 16 lanes and then over these, in an order that depends on the row's length
// alone.
#pragma once

#include <cmath>
#include <cstdint>

#include "vector_math.h"

namespace libai_ext {

// Rows are in arrays whose length is a multiple of this, so that loops need no rest.
constexpr int64_t kRowLanes = 16;

inline int64_t PaddedRow(int64_t cols) { return (cols + kRowLanes - 1) / kRowLanes * kRowLanes; }

namespace softmax {

typedef float Lanes __attribute__((vector_size(kRowLanes * sizeof(float)), aligned(4), may_alias));

inline const Lanes& At(const float* row, int64_t j) {
  return *reinterpret_cast<const Lanes*>(row + j);
}

inline void FillEnd(float* row, int64_t cols, float value) {
  for (int64_t j = cols; j < PaddedRow(cols); ++j) { row[j] = value; }
}

inline float Sum(Lanes lanes) {
  float sum = 0;
  for (int i = 0; i < kRowLanes; ++i) { sum += lanes[i]; }
  return sum;
}

inline float Largest(int64_t cols, const float* row) {
  Lanes lanes = At(row, 0);
  for (int64_t j = kRowLanes; j < cols; j += kRowLanes) {
    lanes = At(row, j) > lanes ? At(row, j) : lanes;
  }
  float largest = lanes[0];
  for (int i = 1; i < kRowLanes; ++i) { largest = lanes[i] > largest ? lanes[i] : largest; }
  return largest;
}

// Replaces the row by exp(row - its largest element), which is 0 in the padding.
inline void Exponentials(int64_t cols, float* row) {
  FillEnd(row, cols, -INFINITY);
  const float largest = Largest(cols, row);
  const int64_t padded = PaddedRow(cols);
  for (int64_t j = 0; j < padded; ++j) { row[j] = ExpOfNegative(row[j] - largest); }
}

}  // namespace softmax

// Replaces a row of scores by its softmax. A row with NaN or +infinity becomes NaN.
inline void Softmax(int64_t cols, float* row) {
  softmax::Exponentials(cols, row);
  softmax::Lanes sum{};
  for (int64_t j = 0; j < cols; j += kRowLanes) { sum += softmax::At(row, j); }
  const float factor = 1.f / softmax::Sum(sum);
  const int64_t padded = PaddedRow(cols);
  for (int64_t j = 0; j < padded; ++j) { row[j] *= factor; }
}

// The same, and replaces the gradient of the softmax in `grad` by that of the scores.
inline void SoftmaxAndGrad(int64_t cols, float* row, float* grad) {
  softmax::Exponentials(cols, row);
  softmax::FillEnd(grad, cols, 0.f);
  softmax::Lanes sum{}, dot{};
  for (int64_t j = 0; j < cols; j += kRowLanes) {
    sum += softmax::At(row, j);
    dot += softmax::At(row, j) * softmax::At(grad, j);
  }
  const float factor = 1.f / softmax::Sum(sum);
  const float mean = softmax::Sum(dot) * factor;
  const int64_t padded = PaddedRow(cols);
  for (int64_t j = 0; j < padded; ++j) {
    row[j] *= factor;
    grad[j] = row[j] * (grad[j] - mean);
  }
}

}  // namespace libai_ext
