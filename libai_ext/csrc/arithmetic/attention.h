// The self-attention of every head, softmax(scale Q K^T) V, and its gradient, from packed queries,
// keys and values. The scores of a block of queries are kept in the second-level cache only: the
// gradient computes them again (as Dao et al., "FlashAttention", 2022, without its blocks of keys).
//
// A head is the work of one thread, in blocks of queries whose size depends on the number of tokens
// alone, so the number of threads does not change a bit.
#pragma once

#include <vector>

#include "gemm_bf16.h"
#include "softmax.h"

namespace libai_ext {

// Packed rows are [heads, 3, width]: query, key, value of each head; rows of the output and of its
// gradient are [heads, width]. Both arrays are [batch, tokens, row].
struct AttentionShape {
  int64_t batch, tokens, heads, width;
  float scale;
  bool bfloat16;  // products round their factors to bfloat16
};

namespace attention {

struct Matrix {
  const float* data;
  int64_t row, col;  // one of them is 1

  Matrix Transposed() const { return {data, col, row}; }
  Matrix From(int64_t i) const { return {data + i * row, row, col}; }
};

// c (m x n, rows c_row apart) = alpha a b, plus c if `accumulate`, on the calling thread.
inline void Multiply(bool bfloat16, int64_t m, int64_t n, int64_t k, float alpha, const Matrix& a,
                     const Matrix& b, float* c, int64_t c_row, bool accumulate) {
  if (bfloat16) {
    bf16::Multiply(
        {m, n, k, alpha, a.data, a.row, a.col, b.data, b.row, b.col, c, c_row, accumulate},
        bf16::Buffers::OfThisThread(), /*rank=*/0, /*threads=*/1);
  } else {
    gemm::Slab(m, n, k, alpha, a.data, a.row, a.col, b.data, b.row, b.col, c, c_row, accumulate);
  }
}

// Queries at a time: all up to 256, else equal blocks.
inline int64_t BlockRows(int64_t tokens) {
  constexpr int64_t kMost = 256;
  const int64_t blocks = (tokens + kMost - 1) / kMost;
  return PaddedRow((tokens + blocks - 1) / blocks);
}

// Memory for the scores of a block of queries, and for as many gradients.
struct Scores {
  std::vector<float> values, grads;

  explicit Scores(int64_t tokens) {
    const size_t size = BlockRows(tokens) * PaddedRow(tokens);
    values.resize(size);
    grads.resize(size);
  }
};

// Calls compute(rows, first, scores) for blocks of queries.
template<typename Compute>
void ForBlocks(int64_t tokens, const Compute& compute) {
  const int64_t block = BlockRows(tokens);
  for (int64_t first = 0; first < tokens; first += block) {
    compute(first, std::min(block, tokens - first));
  }
}

// One head: where its queries, keys, values and results begin, and how far their rows are apart.
struct Head {
  Matrix query, key, value;
  int64_t in_offset, in_row, out_offset, out_row;

  Head(const AttentionShape& x, int64_t index, const float* packed) {
    const int64_t image = index / x.heads, head = index % x.heads;
    out_row = x.heads * x.width;
    in_row = 3 * out_row;
    in_offset = image * x.tokens * in_row + head * 3 * x.width;
    out_offset = image * x.tokens * out_row + head * x.width;
    query = {packed + in_offset, in_row, 1};
    key = {query.data + x.width, in_row, 1};
    value = {key.data + x.width, in_row, 1};
  }
};

// Calls compute(head, scores) for every head of every image.
template<typename Compute>
void ForHeads(const AttentionShape& x, const float* packed, const Compute& compute) {
  constexpr double kGrain = 2e5;  // multiply-adds a thread should have
  const double work = 2. * x.tokens * x.tokens * x.width;
  const int64_t grain = static_cast<int64_t>(std::max(1., kGrain / std::max(1., work)));
  ParallelFor(
      x.tokens == 0 ? 0 : x.batch * x.heads, grain,
      [&](int64_t begin, int64_t end) {
        Scores scores(x.tokens);
        for (int64_t i = begin; i < end; ++i) { compute(Head(x, i, packed), scores); }
      },
      /*align=*/1);
}

}  // namespace attention

// out [batch, tokens, heads, width] = softmax(scale Q K^T) V of each head.
inline void Attention(const AttentionShape& x, const float* packed, float* out) {
  using namespace attention;
  const int64_t n = x.tokens, d = x.width, row = PaddedRow(n);
  ForHeads(x, packed, [&](const Head& head, Scores& scores) {
    float* const p = scores.values.data();
    ForBlocks(n, [&](int64_t first, int64_t rows) {
      Multiply(x.bfloat16, rows, n, d, x.scale, head.query.From(first), head.key.Transposed(), p,
               row, false);
      for (int64_t i = 0; i < rows; ++i) { Softmax(n, p + i * row); }
      Multiply(x.bfloat16, rows, d, n, 1.f, {p, row, 1}, head.value,
               out + head.out_offset + first * head.out_row, head.out_row, false);
    });
  });
}

// The gradient of `packed` from that of the output.
inline void AttentionGrad(const AttentionShape& x, const float* packed, const float* out_grad,
                          float* packed_grad) {
  using namespace attention;
  const int64_t n = x.tokens, d = x.width, row = PaddedRow(n);
  ForHeads(x, packed, [&](const Head& head, Scores& scores) {
    float* const p = scores.values.data();
    float* const dp = scores.grads.data();
    float* const query_grad = packed_grad + head.in_offset;
    float* const key_grad = query_grad + d;
    float* const value_grad = key_grad + d;
    ForBlocks(n, [&](int64_t first, int64_t rows) {
      const Matrix grad{out_grad + head.out_offset + first * head.out_row, head.out_row, 1};
      const Matrix query = head.query.From(first);
      Multiply(x.bfloat16, rows, n, d, x.scale, query, head.key.Transposed(), p, row, false);
      Multiply(x.bfloat16, rows, n, d, 1.f, grad, head.value.Transposed(), dp, row, false);
      for (int64_t i = 0; i < rows; ++i) { SoftmaxAndGrad(n, p + i * row, dp + i * row); }
      const Matrix weights{p, row, 1}, scores_grad{dp, row, 1};
      Multiply(x.bfloat16, n, d, rows, 1.f, weights.Transposed(), grad, value_grad, head.in_row,
               first > 0);
      Multiply(x.bfloat16, rows, d, n, x.scale, scores_grad, head.key,
               query_grad + first * head.in_row, head.in_row, false);
      Multiply(x.bfloat16, n, d, rows, x.scale, scores_grad.Transposed(), query, key_grad,
               head.in_row, first > 0);
    });
  });
}

}  // namespace libai_ext
