// Single-precision matrix product, C = alpha * A * B (+ a matrix or a row), row-major C, any
// transposition of A, B.
//
// The scheme is the usual one of packed panels (Goto and van de Geijn, "Anatomy of High-Performance
// Matrix Multiplication", 2008): A and B are copied block by block into panels that the innermost
// loop reads front to back, and that loop keeps a kTileRows x kTileCols tile of C in registers.
//
// Every element of C is summed over k in an order that depends on k alone: how C is cut among
// threads, and whether a tile is full or at the edge, does not change a bit.
#pragma once

#include <memory>

#include "parallel.h"

namespace libai_ext {

// Element (i, j) is data[i * row + j * col]; one of `row` and `col` is 1.
struct Matrix {
  const float* data;
  int64_t row, col;

  const float* At(int64_t i, int64_t j) const { return data + i * row + j * col; }
  Matrix From(int64_t i, int64_t j) const { return {At(i, j), row, col}; }
  Matrix Transposed() const { return {data, col, row}; }
};

// Matrices that begin `step` apart; 0 repeats one matrix.
struct MatrixBatch {
  Matrix first;
  int64_t step;

  // Of [rows, cols] matrices; `transposed`: they are [cols, rows] in memory.
  static MatrixBatch Make(const float* data, bool transposed, int64_t rows, int64_t cols,
                          int64_t step = 0) {
    return {transposed ? Matrix{data, 1, rows} : Matrix{data, cols, 1}, step};
  }
  Matrix operator[](int64_t q) const { return {first.data + q * step, first.row, first.col}; }
};

// What a product is added to: element (i, j) is data[i * row + j]; a bias has `row` 0. Without
// data: zeros.
struct Addend {
  const float* data = nullptr;
  int64_t row = 0;

  Addend At(int64_t i, int64_t j) const { return {data ? data + i * row + j : nullptr, row}; }
};

namespace gemm {

// The register tile: 24 accumulators of 32 registers with AVX-512, 12 of 16 with AVX2; the rest
// hold the row of B and the broadcast element of A.
#if defined(__AVX512F__)
constexpr int kLanes = 16;
constexpr int kTileRows = 12;
#else
constexpr int kLanes = 8;
constexpr int kTileRows = 6;
#endif
constexpr int kTileVectors = 2;
constexpr int kTileCols = kLanes * kTileVectors;

// Cache blocks: a panel of A of depth kBlockDepth stays in the first-level cache while a block of B
// (kBlockDepth x kBlockCols) stays in the second. Tiles follow each other along the rows of C,
// which lie in few pages of memory and which the CPU asks for by itself.
constexpr int kBlockDepth = 384;
constexpr int kBlockRows = kTileRows * 40;
constexpr int kBlockCols = kTileCols * 16;

// Unaligned, and allowed to alias float.
typedef float Vector __attribute__((vector_size(kLanes * sizeof(float)), aligned(4), may_alias));

// Room for one packed block of A and of B; each thread keeps one between calls.
struct PackBuffers {
  alignas(64) float a[kBlockRows * kBlockDepth];
  alignas(64) float b[kBlockDepth * kBlockCols];

  static PackBuffers& OfThisThread() {
    static thread_local const std::unique_ptr<PackBuffers> buffers(new PackBuffers);
    return *buffers;
  }
};

typedef float Vector4 __attribute__((vector_size(16), aligned(4), may_alias));

// dst[i * dst_row + j] = scale * src[j * src_row + i] for i, j < 4.
inline void Transpose4x4(const float* src, int64_t src_row, float scale, float* dst,
                         int64_t dst_row) {
  typedef int Index4 __attribute__((vector_size(16)));
  const auto load = [=](int j) {
    return scale * *reinterpret_cast<const Vector4*>(src + j * src_row);
  };
  const Vector4 r0 = load(0), r1 = load(1), r2 = load(2), r3 = load(3);
  const Index4 low{0, 4, 1, 5}, high{2, 6, 3, 7};
  const Vector4 t0 = __builtin_shuffle(r0, r2, low), t1 = __builtin_shuffle(r0, r2, high);
  const Vector4 t2 = __builtin_shuffle(r1, r3, low), t3 = __builtin_shuffle(r1, r3, high);
  const auto store = [=](int i, Vector4 v) { *reinterpret_cast<Vector4*>(dst + i * dst_row) = v; };
  store(0, __builtin_shuffle(t0, t2, low));
  store(1, __builtin_shuffle(t0, t2, high));
  store(2, __builtin_shuffle(t1, t3, low));
  store(3, __builtin_shuffle(t1, t3, high));
}

// Copies `depth` slices of `width` <= kWidth elements to dst[depth][kWidth], scaled, padded with 0.
// Element j of slice k is src[j * across + k * along]; one of the strides is 1.
template<int kWidth>
void PackPanel(const float* src, int64_t across, int64_t along, int width, int depth, float scale,
               float* dst) {
  int k = 0;
  if (width == kWidth && across == 1) {
    for (; k < depth; ++k) {
      const float* s = src + k * along;
      for (int j = 0; j < kWidth; ++j) { dst[k * kWidth + j] = scale * s[j]; }
    }
  } else if (width == kWidth && along == 1) {
    constexpr int kLine = 16;  // floats of a cache line: all are used while it is there
    for (; k + kLine <= depth; k += kLine) {
      float* d = dst + k * kWidth;
      int j = 0;
      for (; j + 4 <= kWidth; j += 4) {
        for (int q = 0; q < kLine; q += 4) {
          Transpose4x4(src + j * across + k + q, across, scale, d + q * kWidth + j, kWidth);
        }
      }
      for (; j < kWidth; ++j) {
        for (int q = 0; q < kLine; ++q) { d[q * kWidth + j] = scale * src[j * across + k + q]; }
      }
    }
  }
  for (; k < depth; ++k) {
    float* d = dst + k * kWidth;
    for (int j = 0; j < width; ++j) { d[j] = scale * src[j * across + k * along]; }
    for (int j = width; j < kWidth; ++j) { d[j] = 0; }
  }
}

// Packs `lanes` x `depth` elements as panels of kWidth lanes, one after the other. Where lanes are
// neighbours in memory, all panels get a few slices at a time: the source is read almost in its
// order, from a few pages of memory at once.
template<int kWidth>
void Pack(const float* src, int64_t across, int64_t along, int lanes, int depth, float scale,
          float* dst) {
  constexpr int kSlices = 16;
  const int step = along == 1 ? depth : kSlices;
  for (int k = 0; k < depth; k += step) {
    for (int i = 0; i < lanes; i += kWidth) {
      PackPanel<kWidth>(src + i * across + k * along, across, along, std::min(kWidth, lanes - i),
                        std::min(step, depth - k), scale, dst + i * depth + k * kWidth);
    }
  }
}

// One tile of C, kVectors vectors wide; m x n of it are valid. Rows of the panel of B are kTileCols
// long in any case. The addend may be C.
template<int kVectors>
void ComputeTile(int depth, const float* __restrict a, const float* __restrict b, float* c,
                 int64_t c_row, int m, int n, const Addend& addend) {
  for (int i = 0; i < kTileRows; ++i) {  // C is there when the sums are
    const float* row = c + std::min(i, m - 1) * c_row;
    __builtin_prefetch(row, 1);
    __builtin_prefetch(row + kLanes, 1);
  }
  Vector sum[kTileRows][kVectors];
#pragma GCC unroll 16
  for (int i = 0; i < kTileRows; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) { sum[i][v] = Vector{}; }
  }
  for (int k = 0; k < depth; ++k, a += kTileRows, b += kTileCols) {
    Vector row[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      row[v] = *reinterpret_cast<const Vector*>(b + v * kLanes);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kTileRows; ++i) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) { sum[i][v] += a[i] * row[v]; }
    }
  }
  const float* const from = addend.data;
  if (m == kTileRows && n == kVectors * kLanes) {
#pragma GCC unroll 16
    for (int i = 0; i < kTileRows; ++i) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        const int64_t at = i * addend.row + v * kLanes;
        if (from) { sum[i][v] += *reinterpret_cast<const Vector*>(from + at); }
        *reinterpret_cast<Vector*>(c + i * c_row + v * kLanes) = sum[i][v];
      }
    }
    return;
  }
  float tile[kTileRows][kVectors * kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kTileRows; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      *reinterpret_cast<Vector*>(tile[i] + v * kLanes) = sum[i][v];
    }
  }
  for (int i = 0; i < m; ++i) {
    for (int j = 0; j < n; ++j) {
      c[i * c_row + j] = from ? from[i * addend.row + j] + tile[i][j] : tile[i][j];
    }
  }
}

// The product of one slab of C, on the calling thread.
LIBAI_EXT_ONE_COPY inline void Slab(int64_t m, int64_t n, int64_t k, float alpha, const Matrix& a,
                                    const Matrix& b, float* c, int64_t c_row,
                                    const Addend& addend) {
  PackBuffers& packed = PackBuffers::OfThisThread();
  for (int64_t j0 = 0; j0 < n; j0 += kBlockCols) {
    const int nb = static_cast<int>(std::min<int64_t>(kBlockCols, n - j0));
    for (int64_t k0 = 0; k0 < k; k0 += kBlockDepth) {
      const Addend sum = k0 == 0 ? addend : Addend{c, c_row};
      const int kb = static_cast<int>(std::min<int64_t>(kBlockDepth, k - k0));
      Pack<kTileCols>(b.At(k0, j0), b.col, b.row, nb, kb, 1.f, packed.b);
      for (int64_t i0 = 0; i0 < m; i0 += kBlockRows) {
        const int mb = static_cast<int>(std::min<int64_t>(kBlockRows, m - i0));
        Pack<kTileRows>(a.At(i0, k0), a.row, a.col, mb, kb, alpha, packed.a);
        for (int i = 0; i < mb; i += kTileRows) {
          for (int j = 0; j < nb; j += kTileCols) {
            const int width = std::min(kTileCols, nb - j);
            // A narrow last panel does not pay for the vectors that it does not fill.
            const auto compute = width > kLanes ? &ComputeTile<kTileVectors> : &ComputeTile<1>;
            compute(kb, packed.a + i * kb, packed.b + j * kb, c + (i0 + i) * c_row + j0 + j, c_row,
                    std::min(kTileRows, mb - i), width, sum.At(i0 + i, j0 + j));
          }
        }
      }
    }
  }
}

// Cuts m x n into `threads` slabs, down times across, with the least edge to copy.
inline void ChooseGrid(int threads, int64_t m, int64_t n, int* down, int* across) {
  *down = 1;
  *across = threads;
  int64_t least = -1;
  for (int d = 1; d <= threads; ++d) {
    if (threads % d != 0) { continue; }
    const int64_t edge = (m + d - 1) / d + (n + threads / d - 1) / (threads / d);
    if (least < 0 || edge < least) {
      least = edge;
      *down = d;
      *across = threads / d;
    }
  }
}

}  // namespace gemm

// c [batch, m, n] = alpha * a[q] (m x k) * b[q] (k x n), plus an addend: one for all, or one for
// each matrix, `addend_step` apart. An addend may be its part of c.
inline void Gemm(int64_t batch, int64_t m, int64_t n, int64_t k, float alpha, const MatrixBatch& a,
                 const MatrixBatch& b, float* c, const Addend& addend = {},
                 int64_t addend_step = 0) {
  if (batch == 0 || m == 0 || n == 0) { return; }
  if (k == 0) {  // an empty sum
    for (int64_t row = 0; row < batch * m; ++row) {
      const Addend from = addend.At(row % m, row / m * addend_step);
      from.data ? std::copy_n(from.data, n, c + row * n) : std::fill_n(c + row * n, n, 0.f);
    }
    return;
  }
  constexpr double kGrain = 1.5e5;  // multiply-adds a thread should have
  const int threads = ThreadsFor(static_cast<double>(batch) * m * n * k, kGrain);
  const auto slab = [&](int64_t q, int64_t i0, int64_t i1, int64_t j0, int64_t j1) {
    if (i0 >= i1 || j0 >= j1) { return; }
    gemm::Slab(i1 - i0, j1 - j0, k, alpha, a[q].From(i0, 0), b[q].From(0, j0),
               c + (q * m + i0) * n + j0, n, addend.At(i0, q * addend_step + j0));
  };
  if (threads == 1) {
    for (int64_t q = 0; q < batch; ++q) { slab(q, 0, m, 0, n); }
    return;
  }
  // Whole matrices where they share out evenly, else slabs of each.
  if (batch % threads == 0 || batch >= 8 * threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t q = 0; q < batch; ++q) { slab(q, 0, m, 0, n); }
    return;
  }
  int down, across;
  gemm::ChooseGrid(threads, m, n, &down, &across);
  const auto piece = [](int64_t size, int pieces, int tile) {
    return ((size + pieces - 1) / pieces + tile - 1) / tile * tile;
  };
  const int64_t rows = piece(m, down, gemm::kTileRows);
  const int64_t cols = piece(n, across, gemm::kTileCols);
#pragma omp parallel for num_threads(threads) schedule(static) collapse(3)
  for (int64_t q = 0; q < batch; ++q) {
    for (int i = 0; i < down; ++i) {
      for (int j = 0; j < across; ++j) {
        slab(q, i * rows, std::min(m, (i + 1) * rows), j * cols, std::min(n, (j + 1) * cols));
      }
    }
  }
}

}  // namespace libai_ext
