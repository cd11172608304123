// Copies that change the order or the extent of a tensor. Memory bounds them: all there is to gain
// is that every thread takes part.
#pragma once

#include <cstring>
#include <vector>

#include "parallel.h"

namespace libai_ext {

inline void Copy(int64_t n, const float* in, float* out) {
  ParallelFor(n, /*grain=*/16384, [&](int64_t begin, int64_t end) {
    std::memcpy(out + begin, in + begin, (end - begin) * sizeof(float));
  });
}

// Axis i of `out` is axis perm[i] of `in`, whose sizes are `dims`.
inline void Permute(const std::vector<int64_t>& dims, const std::vector<int32_t>& perm,
                    const float* in, float* out) {
  int64_t elements = 1;
  std::vector<int64_t> strides(dims.size());
  for (size_t i = dims.size(); i-- > 0; elements *= dims[i]) { strides[i] = elements; }
  if (dims.size() < 2) { return Copy(elements, in, out); }
  const size_t last = perm.size() - 1;
  const int64_t cols = dims[perm[last]], step = strides[perm[last]];
  if (elements == 0) { return; }
  ParallelRows(elements / cols, cols, [&](int64_t row) {
    const float* from = in;
    int64_t rest = row;
    for (size_t i = last; i-- > 0; rest /= dims[perm[i]]) {
      from += rest % dims[perm[i]] * strides[perm[i]];
    }
    float* to = out + row * cols;
    if (step == 1) {
      std::memcpy(to, from, cols * sizeof(float));
    } else {
      for (int64_t col = 0; col < cols; ++col) { to[col] = from[col * step]; }
    }
  });
}

// Copies a [rows, cols] matrix. Rows of `in` are in_row apart, those of `out` out_row.
inline void CopyRows(int64_t rows, int64_t cols, const float* in, int64_t in_row, float* out,
                     int64_t out_row) {
  if (rows == 1) { return Copy(cols, in, out); }
  ParallelRows(rows, cols, [=](int64_t row) {
    std::memcpy(out + row * out_row, in + row * in_row, cols * sizeof(float));
  });
}

// Columns [start, start + length) of a [rows, cols] matrix.
inline void Narrow(int64_t rows, int64_t cols, int64_t start, int64_t length, const float* in,
                   float* out) {
  CopyRows(rows, length, in + start, cols, out, length);
}

// The gradient of Narrow: zeros around `in` [rows, length].
inline void NarrowGrad(int64_t rows, int64_t cols, int64_t start, int64_t length, const float* in,
                       float* out) {
  ParallelRows(rows, cols, [&](int64_t row) {
    float* to = out + row * cols;
    std::memset(to, 0, start * sizeof(float));
    std::memcpy(to + start, in + row * length, length * sizeof(float));
    std::memset(to + start + length, 0, (cols - start - length) * sizeof(float));
  });
}

// out[b, i] = in[b, ids[b, i]], rows of `cols` elements: `from` of them in a matrix of `in`, `to`
// in one of `out`.
template<typename Index>
void GatherRows(int64_t batch, int64_t from, int64_t to, int64_t cols, const float* in,
                const Index* ids, float* out) {
  ParallelRows(batch * to, cols, [=](int64_t row) {
    const float* source = in + (row / to * from + ids[row]) * cols;
    std::memcpy(out + row * cols, source, cols * sizeof(float));
  });
}

// The gradient of GatherRows: out[b, ids[b, i]] += in[b, i], in this order, from zero.
template<typename Index>
void ScatterAddRows(int64_t batch, int64_t from, int64_t to, int64_t cols, const float* in,
                    const Index* ids, float* out) {
  ParallelRows(batch, std::max(from, to) * cols, [=](int64_t b) {
    float* const sums = out + b * to * cols;
    std::memset(sums, 0, to * cols * sizeof(float));
    for (int64_t row = b * from; row < (b + 1) * from; ++row) {
      float* const sum = sums + ids[row] * cols;
      for (int64_t col = 0; col < cols; ++col) { sum[col] += in[row * cols + col]; }
    }
  });
}

}  // namespace libai_ext
