// The product of gemm.h with A and B rounded to bfloat16 and sums in float32.
//
// Chunks of both are packed by all threads together, in blocks that the CPU's instructions take as
// they are; then each thread computes a part of C. A tile is 32 x 32, by AMX or by AVX-512; plain
// C++ where the CPU has neither, only to test the rest.
//
// Every element of C is summed over k in an order that depends on k alone, by the same instructions
// in a full tile and at an edge, so the number of threads does not change a bit.
#pragma once

#include "bfloat16.h"
#include "gemm.h"

#if defined(LIBAI_EXT_AVX512_BF16) && defined(__AMX_BF16__)
#define LIBAI_EXT_AMX_BF16
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace libai_ext {
namespace bf16 {

constexpr int kTile = 2 * kLanes;
constexpr int kTileFloats = kTile * kTile;

// Whether this process may use AMX: Linux wants to be asked, for the registers are large.
inline bool HasAmx() {
#ifdef LIBAI_EXT_AMX_BF16
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // of arch_prctl(2)
  static const bool granted = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return granted;
#else
  return false;
#endif
}

// How much is packed at a time: depth of both, rows of A, columns of B. A tile's panel of A stays
// in the first-level cache and `kNearCols` columns of B in the second, as in gemm.h. With AMX the
// panel fills the first level of a Xeon (48 KB), and is faster all the same: reading and writing C
// once for each depth takes a larger part of the time there.
constexpr int kMaxDepth = 768;
constexpr int kChunkRows = 2048;
constexpr int kChunkCols = 3072;
constexpr int kNearCols = 512;
inline int DepthAtOnce() { return HasAmx() ? kMaxDepth : 384; }

struct Buffers {
  alignas(64) Pair a[kChunkRows * kMaxDepth / 2];
  alignas(64) Pair b[kChunkCols * kMaxDepth / 2];

  static Buffers& OfThisThread() {
    static thread_local const std::unique_ptr<Buffers> buffers(new Buffers);
    return *buffers;
  }
};

// c (32 x 32, rows c_row apart, or the first half of its rows or columns) = addend + a b. The
// addend may be c. A panel of 16 lanes is `blocks` blocks long, and the next one follows it.
using TileFunction = void (*)(int blocks, const Pair* a, const Pair* b, float* c, int64_t c_row,
                              const Addend& addend);

// Asks for row `i` of the tile of C after this one.
inline void PrefetchRow(const float* c, int64_t c_row, int i) {
  const float* const row = c + std::min(i, kTile - 1) * c_row + kTile;
  __builtin_prefetch(row, 1);
  __builtin_prefetch(row + kLanes, 1);
}

#ifdef LIBAI_EXT_AMX_BF16
// Asks for a block that is read soon. The second-level cache alone is too slow for AMX.
inline void PrefetchBlock(const Pair* block) {
#pragma GCC unroll 16
  for (int i = 0; i < kBlockSize; i += kLanes) { __builtin_prefetch(block + i); }
}

struct TileConfiguration {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

template<int row_panels, int col_panels>
void AmxTile(int blocks, const Pair* a, const Pair* b, float* c, int64_t c_row,
             const Addend& addend) {
  constexpr bool low = row_panels == 2, right = col_panels == 2;
  const int64_t next = static_cast<int64_t>(blocks) * kBlockSize, stride = c_row * 4;
  float* const c_low = c + kLanes * c_row;
  asm volatile("" ::: "memory");  // GCC's tile loads do not say that they read memory
  if (addend.data) {
    const int64_t from_stride = addend.row * 4;
    const float* const from = addend.data;
    const float* const from_low = from + kLanes * addend.row;
    _tile_loadd(0, from, from_stride);
    if (right) { _tile_loadd(1, from + kLanes, from_stride); }
    if (low) { _tile_loadd(2, from_low, from_stride); }
    if (low && right) { _tile_loadd(3, from_low + kLanes, from_stride); }
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int k = 0; k < blocks; ++k, a += kBlockSize, b += kBlockSize) {
    PrefetchRow(c, c_row, 3 * k);
    PrefetchRow(c, c_row, 3 * k + 1);
    PrefetchRow(c, c_row, 3 * k + 2);
    PrefetchBlock(b + kAhead * kBlockSize);
    if (right) { PrefetchBlock(b + next + kAhead * kBlockSize); }
    _tile_loadd(4, a, 64);
    _tile_loadd(6, b, 64);
    _tile_dpbf16ps(0, 4, 6);
    if (right) {
      _tile_loadd(7, b + next, 64);
      _tile_dpbf16ps(1, 4, 7);
    }
    if (low) {
      _tile_loadd(5, a + next, 64);
      _tile_dpbf16ps(2, 5, 6);
    }
    if (low && right) { _tile_dpbf16ps(3, 5, 7); }
  }
  _tile_stored(0, c, stride);
  if (right) { _tile_stored(1, c + kLanes, stride); }
  if (low) { _tile_stored(2, c_low, stride); }
  if (low && right) { _tile_stored(3, c_low + kLanes, stride); }
  asm volatile("" ::: "memory");
}
#endif

#ifdef LIBAI_EXT_AVX512_BF16
typedef __m512 Sums;
inline __m512bh RowOfB(const Pair* b) { return (__m512bh)_mm512_load_si512(b); }
inline Sums AddProducts(Sums sums, Pair a, __m512bh b) {
  return _mm512_dpbf16_ps(sums, (__m512bh)_mm512_set1_epi32(static_cast<int>(a)), b);
}
#else
typedef float Sums __attribute__((vector_size(64)));
inline const Pair* RowOfB(const Pair* b) { return b; }
inline Sums AddProducts(Sums sums, Pair a, const Pair* b) {
  for (int i = 0; i < kLanes; ++i) {
    sums[i] += Widen(a & 0xffff) * Widen(b[i] & 0xffff);
    sums[i] += Widen(a >> 16) * Widen(b[i] >> 16);
  }
  return sums;
}
#endif

// 8 rows at a time: 16 sums in registers, which hide the time that one takes.
template<int row_panels, int col_panels>
void VectorTile(int blocks, const Pair* a, const Pair* b, float* c, int64_t c_row,
                const Addend& addend) {
  constexpr int kRows = 8;
  const int64_t next = static_cast<int64_t>(blocks) * kBlockSize;
  for (int i0 = 0; i0 < row_panels * kLanes; i0 += kRows) {
    const Pair* rows = a + i0 / kLanes * next + i0 % kLanes * kPairs;
    float* out = c + i0 * c_row;
    Sums sums[kRows][col_panels];
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
      for (int j = 0; j < col_panels; ++j) {
        sums[i][j] = Sums{};
        const Addend from = addend.At(i0 + i, j * kLanes);
        if (from.data) { std::memcpy(&sums[i][j], from.data, sizeof(Sums)); }
      }
    }
    for (int k = 0; k < blocks * kBlockSize; k += kBlockSize) {
      for (int p = 0; p < kPairs; ++p) {
        const auto b0 = RowOfB(b + k + p * kLanes);
        const auto b1 = RowOfB(b + k + p * kLanes + (col_panels - 1) * next);
#pragma GCC unroll 8
        for (int i = 0; i < kRows; ++i) {
          const Pair x = rows[k + i * kPairs + p];
          sums[i][0] = AddProducts(sums[i][0], x, b0);
          if (col_panels == 2) { sums[i][1] = AddProducts(sums[i][1], x, b1); }
        }
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
      for (int j = 0; j < col_panels; ++j) {
        std::memcpy(out + i * c_row + j * kLanes, &sums[i][j], sizeof(Sums));
      }
    }
  }
}

template<int row_panels, int col_panels>
constexpr TileFunction Tile([[maybe_unused]] bool amx) {
#ifdef LIBAI_EXT_AMX_BF16
  if (amx) { return &AmxTile<row_panels, col_panels>; }
#endif
  return &VectorTile<row_panels, col_panels>;
}

// While it lives, this thread's AMX registers are set up.
class TileRegisters {
 public:
#ifdef LIBAI_EXT_AMX_BF16
  TileRegisters() {
    alignas(64) static const TileConfiguration configuration;
    if (HasAmx()) { _tile_loadconfig(&configuration); }
  }
  ~TileRegisters() {
    if (HasAmx()) { _tile_release(); }
  }
#else
  TileRegisters() {}
#endif
  TileRegisters(const TileRegisters&) = delete;
};

// A tile of which only m x n elements are in C.
inline void Edge(TileFunction compute, int blocks, const Pair* a, const Pair* b, float* c,
                 int64_t c_row, int m, int n, const Addend& addend) {
  alignas(64) float tile[kTileFloats];
  if (addend.data) { std::fill_n(tile, kTileFloats, 0.f); }  // all of it is read
  for (int i = 0; addend.data && i < m; ++i) {
    std::memcpy(tile + i * kTile, addend.At(i, 0).data, n * sizeof(float));
  }
  compute(blocks, a, b, tile, kTile, addend.data ? Addend{tile, kTile} : Addend{});
  for (int i = 0; i < m; ++i) { std::memcpy(c + i * c_row, tile + i * kTile, n * sizeof(float)); }
}

// The elements [i0, i1) x [j0, j1) of c from packed chunks; i0 and j0 are at tiles.
inline void ComputePart(int blocks, const Pair* a, const Pair* b, float* c, int64_t c_row, int i0,
                        int i1, int j0, int j1, const Addend& addend) {
  const bool amx = HasAmx();
  const TileFunction tiles[2][2] = {{Tile<1, 1>(amx), Tile<1, 2>(amx)},
                                    {Tile<2, 1>(amx), Tile<2, 2>(amx)}};
  const TileRegisters registers;
  const int64_t lane = static_cast<int64_t>(blocks) * kPairs;
  for (int near = j0; near < j1; near += kNearCols) {
    for (int i = i0; i < i1; i += kTile) {
      const int m = std::min(kTile, i1 - i);
      for (int j = near; j < std::min(near + kNearCols, j1); j += kTile) {
        const int n = std::min(kTile, j1 - j);
        const TileFunction compute = tiles[m > kLanes][n > kLanes];
        float* const out = c + i * c_row + j;
        if (m % kLanes == 0 && n % kLanes == 0) {
          compute(blocks, a + i * lane, b + j * lane, out, c_row, addend.At(i, j));
        } else {
          Edge(compute, blocks, a + i * lane, b + j * lane, out, c_row, m, n, addend.At(i, j));
        }
      }
    }
  }
}

// Adds the sums of `depth` rows of `lanes` columns, made in float, to `sums`.
inline void AddColumns(const float* src, int64_t row, int lanes, int depth, double* sums) {
  Sums block = {};
  if (lanes == kLanes) {
    for (int k = 0; k < depth; ++k) {
      Sums values;
      std::memcpy(&values, src + k * row, sizeof values);
      block += values;
    }
  } else {
    for (int i = 0; i < lanes; ++i) {
      for (int k = 0; k < depth; ++k) { block[i] += src[k * row + i]; }
    }
  }
  for (int i = 0; i < lanes; ++i) { sums[i] += block[i]; }
}

// Panels of 16 lanes, one after the other; those of thread `rank` of `threads`. Blocks are taken in
// the order of the source in memory. If `sums` are given, each lane of the source is added to its
// own; lanes must be neighbours in memory then.
template<bool by_lane>
void Pack(const float* src, int64_t across, int64_t along, int64_t lanes, int depth, float scale,
          int rank, int threads, Pair* dst, double* sums = nullptr) {
  const int blocks = (depth + kBlockDepth - 1) / kBlockDepth;
  const int panels = static_cast<int>((lanes + kLanes - 1) / kLanes);
  const int begin = panels * rank / threads, end = panels * (rank + 1) / threads;
  const auto pack = [&](int p, int k) {
    const float* const from = src + p * kLanes * across + k * kBlockDepth * along;
    const int width = static_cast<int>(std::min<int64_t>(kLanes, lanes - p * kLanes));
    const int rows = std::min(kBlockDepth, depth - k * kBlockDepth);
    PackBlock<by_lane>(from, across, along, width, rows, scale,
                       dst + (static_cast<int64_t>(p) * blocks + k) * kBlockSize);
    if (sums) { AddColumns(from, along, width, rows, sums + p * kLanes); }
  };
  if (along == 1) {
    for (int p = begin; p < end; ++p) {
      for (int k = 0; k < blocks; ++k) { pack(p, k); }
    }
  } else {
    for (int k = 0; k < blocks; ++k) {
      for (int p = begin; p < end; ++p) { pack(p, k); }
    }
  }
}

// One matrix of a batch.
struct Product {
  int64_t m, n, k;
  float alpha;
  Matrix a, b;
  float* c;
  int64_t c_row;
  Addend addend;
  double* b_sums = nullptr;  // n zeros, to which the columns of b are added
};

// The share of thread `rank` in a product that all `threads` of a team compute by this call.
LIBAI_EXT_ONE_COPY inline void Multiply(const Product& x, Buffers& packed, int rank, int threads) {
  const auto wait = [=]() {
    if (threads > 1) {
#pragma omp barrier
    }
  };
  const int64_t depth = DepthAtOnce();
  for (int64_t j0 = 0; j0 < x.n; j0 += kChunkCols) {
    const int64_t n = std::min<int64_t>(kChunkCols, x.n - j0);
    for (int64_t k0 = 0; k0 < x.k; k0 += depth) {
      const int k = static_cast<int>(std::min(depth, x.k - k0));
      Pack<false>(x.b.At(k0, j0), x.b.col, x.b.row, n, k, 1.f, rank, threads, packed.b,
                  x.b_sums ? x.b_sums + j0 : nullptr);
      const Addend sum = k0 == 0 ? x.addend : Addend{x.c, x.c_row};
      for (int64_t i0 = 0; i0 < x.m; i0 += kChunkRows) {
        const int64_t m = std::min<int64_t>(kChunkRows, x.m - i0);
        Pack<true>(x.a.At(i0, k0), x.a.row, x.a.col, m, k, x.alpha, rank, threads, packed.a);
        wait();
        int down, across;
        gemm::ChooseGrid(threads, m, n, &down, &across);
        const auto cut = [](int64_t size, int part, int parts) {
          return static_cast<int>(
              std::min(size, (size + kTile - 1) / kTile * part / parts * kTile));
        };
        const int i = rank / across, j = rank % across;
        ComputePart((k + kBlockDepth - 1) / kBlockDepth, packed.a, packed.b,
                    x.c + i0 * x.c_row + j0, x.c_row, cut(m, i, down), cut(m, i + 1, down),
                    cut(n, j, across), cut(n, j + 1, across), sum.At(i0, j0));
        wait();  // before the next chunk takes the place of this one
      }
    }
  }
}

}  // namespace bf16

// As Gemm of gemm.h, with alpha * A and B rounded to bfloat16. If `b_sums` (n) are given, columns
// of B before rounding are added to them; B is one matrix then, not transposed, and m > 0.
inline void GemmBfloat16(int64_t batch, int64_t m, int64_t n, int64_t k, float alpha,
                         const MatrixBatch& a, const MatrixBatch& b, float* c,
                         const Addend& addend = {}, int64_t addend_step = 0,
                         double* b_sums = nullptr) {
  if (batch == 0 || m == 0 || n == 0) { return; }
  if (k == 0) { return Gemm(batch, m, n, k, alpha, a, b, c, addend, addend_step); }
  const auto product = [&](int64_t q) {
    const Addend from = addend.At(0, q * addend_step);
    return bf16::Product{m, n, k, alpha, a[q], b[q], c + q * m * n, n, from, b_sums};
  };
  constexpr double kGrain = 5e5;  // multiply-adds a thread should have
  const int threads = ThreadsFor(static_cast<double>(batch) * m * n * k, kGrain);
  const bool whole = batch % threads == 0 || batch >= 8 * threads;
  bf16::Buffers& shared = bf16::Buffers::OfThisThread();
#pragma omp parallel num_threads(threads)
  {
    const int rank = omp_get_thread_num(), team = omp_get_num_threads();
    if (whole) {
      for (int64_t q = batch * rank / team; q < batch * (rank + 1) / team; ++q) {
        bf16::Multiply(product(q), bf16::Buffers::OfThisThread(), 0, 1);
      }
    } else {
      for (int64_t q = 0; q < batch; ++q) { bf16::Multiply(product(q), shared, rank, team); }
    }
  }
}

// The product of either kind.
template<typename... Arguments>
void GemmAs(bool bfloat16, Arguments... arguments) {
  bfloat16 ? GemmBfloat16(arguments...) : Gemm(arguments...);
}

}  // namespace libai_ext
