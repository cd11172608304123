// The self-attention of every head, softmax(scale Q K^T) V, and its gradient, from packed queries,
// keys and values. The scores are kept for a block of queries only: the gradient computes them
// again (as Dao et al., "FlashAttention", 2022, without its blocks of keys).
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

// c (m x n, rows c_row apart) = alpha a b, plus c if `accumulate`, on the calling thread.
inline void Multiply(bool bfloat16, int64_t m, int64_t n, int64_t k, float alpha, const Matrix& a,
                     const Matrix& b, float* c, int64_t c_row, bool accumulate) {
  const Addend addend{accumulate ? c : nullptr, c_row};
  if (bfloat16) {
    bf16::Multiply({m, n, k, alpha, a, b, c, c_row, addend}, bf16::Buffers::OfThisThread(),
                   /*rank=*/0, /*threads=*/1);
  } else {
    gemm::Slab(m, n, k, alpha, a, b, c, c_row, addend);
  }
}

// Queries at a time: all up to 256, else equal blocks.
inline int64_t BlockRows(int64_t tokens) {
  constexpr int64_t kMost = 256;
  const int64_t blocks = (tokens + kMost - 1) / kMost;
  return PaddedRow((tokens + blocks - 1) / blocks);
}

// The size of the scores of a block of queries.
inline int64_t BlockSize(int64_t tokens) { return BlockRows(tokens) * PaddedRow(tokens); }

// Calls compute(first, rows) for blocks of queries.
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

// Asks for a row of what lies after this head: the next head.
inline void PrefetchNext(const float* row, int64_t width) {
  constexpr int64_t kLine = 16;
  for (int64_t j = 0; j < width; j += kLine) { __builtin_prefetch(row + width + j, 0, 2); }
}

// Calls compute(head, scores) for every head of every image, with memory for `blocks` blocks of
// scores.
template<typename Compute>
void ForHeads(const AttentionShape& x, const float* packed, int blocks, const Compute& compute) {
  constexpr double kGrain = 2e5;  // multiply-adds a thread should have
  const double work = 2. * x.tokens * x.tokens * x.width;
  const int64_t grain = static_cast<int64_t>(std::max(1., kGrain / std::max(1., work)));
  ParallelFor(
      x.tokens == 0 ? 0 : x.batch * x.heads, grain,
      [&](int64_t begin, int64_t end) {
        std::vector<float> scores(blocks * BlockSize(x.tokens));
        for (int64_t i = begin; i < end; ++i) { compute(Head(x, i, packed), scores.data()); }
      },
      /*align=*/1);
}

}  // namespace attention

// out [batch, tokens, heads, width] = softmax(scale Q K^T) V of each head.
inline void Attention(const AttentionShape& x, const float* packed, float* out) {
  using namespace attention;
  const int64_t n = x.tokens, d = x.width, row = PaddedRow(n);
  ForHeads(x, packed, /*blocks=*/1, [&](const Head& head, float* p) {
    ForBlocks(n, [&](int64_t first, int64_t rows) {
      Multiply(x.bfloat16, rows, n, d, x.scale, head.query.From(first, 0), head.key.Transposed(), p,
               row, false);
      for (int64_t i = 0; i < rows; ++i) {
        PrefetchNext(head.query.data + (first + i) * head.in_row, 3 * d);
        Softmax(n, p + i * row);
      }
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
  ForHeads(x, packed, /*blocks=*/2, [&](const Head& head, float* p) {
    float* const dp = p + BlockSize(n);
    float* const query_grad = packed_grad + head.in_offset;
    float* const key_grad = query_grad + d;
    float* const value_grad = key_grad + d;
    ForBlocks(n, [&](int64_t first, int64_t rows) {
      const Matrix grad{out_grad + head.out_offset + first * head.out_row, head.out_row, 1};
      const Matrix query = head.query.From(first, 0);
      Multiply(x.bfloat16, rows, n, d, x.scale, query, head.key.Transposed(), p, row, false);
      Multiply(x.bfloat16, rows, n, d, 1.f, grad, head.value.Transposed(), dp, row, false);
      for (int64_t i = 0; i < rows; ++i) {
        PrefetchNext(query.data + i * head.in_row, 3 * d);
        PrefetchNext(grad.data + i * head.out_row, d);
        SoftmaxAndGrad(n, p + i * row, dp + i * row);
      }
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
