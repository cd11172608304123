// Packs float32 matrices as bfloat16, for the products of gemm_bf16.h.
//
// A bfloat16 is the upper half of a float32. Rounding is to nearest, ties to even. NaN stays NaN
// and infinity infinity; what rounds to more than 3.39e38 becomes infinity. Subnormal floats become
// zeros of their sign, as the CPU's instruction has it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#if defined(__AVX512BF16__) && defined(__AVX512BW__)
#define LIBAI_EXT_AVX512_BF16
#include <immintrin.h>
#endif

namespace libai_ext {
namespace bf16 {

// A block: 16 lanes (rows of A, columns of B) x 16 pairs of neighbours along the depth. A is packed
// lane by lane, B pair by pair.
constexpr int kLanes = 16;
constexpr int kPairs = 16;
constexpr int kBlockDepth = 2 * kPairs;
constexpr int kBlockSize = kLanes * kPairs;

using Pair = uint32_t;  // the one of lesser depth in the lower half

inline uint32_t Round(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) { return (bits >> 16) | 0x40u; }
  if (magnitude < 0x00800000u) { return (bits & 0x80000000u) >> 16; }
  return (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
}

inline float Widen(uint32_t rounded) {
  const uint32_t bits = rounded << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

#ifdef LIBAI_EXT_AVX512_BF16
constexpr int kAhead = 2;  // blocks, of what is asked from memory before it is read

inline __mmask16 First(int count) {
  return static_cast<__mmask16>((1u << std::max(0, std::min(count, 16))) - 1);
}

// Element j of rows[i] changes places with element i of rows[j].
inline void Transpose(__m512i* rows) {
  __m512i t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_maskz_unpacklo_epi32(0xffff, rows[i], rows[i + 1]);
    t[i + 1] = _mm512_maskz_unpackhi_epi32(0xffff, rows[i], rows[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    rows[i] = _mm512_maskz_unpacklo_epi64(0xff, t[i], t[i + 2]);
    rows[i + 1] = _mm512_maskz_unpackhi_epi64(0xff, t[i], t[i + 2]);
    rows[i + 2] = _mm512_maskz_unpacklo_epi64(0xff, t[i + 1], t[i + 3]);
    rows[i + 3] = _mm512_maskz_unpackhi_epi64(0xff, t[i + 1], t[i + 3]);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {  // quarters of rows: 4 x 4 of them to transpose
    t[j] = _mm512_maskz_shuffle_i32x4(0xffff, rows[j], rows[4 + j], 0x88);
    t[4 + j] = _mm512_maskz_shuffle_i32x4(0xffff, rows[j], rows[4 + j], 0xdd);
    t[8 + j] = _mm512_maskz_shuffle_i32x4(0xffff, rows[8 + j], rows[12 + j], 0x88);
    t[12 + j] = _mm512_maskz_shuffle_i32x4(0xffff, rows[8 + j], rows[12 + j], 0xdd);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    rows[j] = _mm512_maskz_shuffle_i32x4(0xffff, t[j], t[8 + j], 0x88);
    rows[4 + j] = _mm512_maskz_shuffle_i32x4(0xffff, t[4 + j], t[12 + j], 0x88);
    rows[8 + j] = _mm512_maskz_shuffle_i32x4(0xffff, t[j], t[8 + j], 0xdd);
    rows[12 + j] = _mm512_maskz_shuffle_i32x4(0xffff, t[4 + j], t[12 + j], 0xdd);
  }
}

// Rows of a block as they lie in memory: of lanes, or of pairs.
inline void LoadLanes(const float* src, int64_t across, int lanes, int depth, __m512 scale,
                      __m512i* rows) {
  const __mmask16 low = First(depth), high = First(depth - 16);
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    const float* lane = src + (i < lanes ? i : 0) * across;
    __builtin_prefetch(lane + kAhead * kBlockDepth);
    __builtin_prefetch(lane + kAhead * kBlockDepth + 16);
    const __m512 first = _mm512_maskz_loadu_ps(i < lanes ? low : __mmask16{}, lane);
    const __m512 second = _mm512_maskz_loadu_ps(i < lanes ? high : __mmask16{}, lane + 16);
    rows[i] = (__m512i)_mm512_cvtne2ps_pbh(scale * second, scale * first);
  }
}

inline void LoadPairs(const float* src, int64_t along, int lanes, int depth, __m512 scale,
                      __m512i* rows) {
  alignas(64) static const uint16_t kInterleave[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                       21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                       11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i interleave = _mm512_load_si512(kInterleave);
  const __mmask16 mask = First(lanes);
#pragma GCC unroll 16
  for (int p = 0; p < kPairs; ++p) {
    const int k = 2 * p;
    __builtin_prefetch(src + k * along + kAhead * kLanes);
    __builtin_prefetch(src + (k + 1) * along + kAhead * kLanes);
    const __m512 first = _mm512_maskz_loadu_ps(k < depth ? mask : __mmask16{}, src + k * along);
    const __m512 second =
        _mm512_maskz_loadu_ps(k + 1 < depth ? mask : __mmask16{}, src + (k + 1) * along);
    const __m512i halves = (__m512i)_mm512_cvtne2ps_pbh(scale * second, scale * first);
    rows[p] = _mm512_permutexvar_epi16(interleave, halves);
  }
}
#endif

// Packs `lanes` x `depth` elements, scaled, padded with zeros to a whole block. Element k of lane i
// is src[i * across + k * along]; one of the strides is 1.
template<bool by_lane>
void PackBlock(const float* src, int64_t across, int64_t along, int lanes, int depth, float scale,
               Pair* dst) {
#ifdef LIBAI_EXT_AVX512_BF16
  __m512i rows[16];
  const bool lanes_in_memory = along == 1;
  if (lanes_in_memory) {
    LoadLanes(src, across, lanes, depth, _mm512_set1_ps(scale), rows);
  } else {
    LoadPairs(src, along, lanes, depth, _mm512_set1_ps(scale), rows);
  }
  if (lanes_in_memory != by_lane) { Transpose(rows); }
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) { _mm512_store_si512(dst + i * 16, rows[i]); }
#else
  const auto at = [&](int i, int k) {
    return i < lanes && k < depth ? Round(scale * src[i * across + k * along]) : 0u;
  };
  for (int i = 0; i < kLanes; ++i) {
    for (int p = 0; p < kPairs; ++p) {
      dst[by_lane ? i * kPairs + p : p * kLanes + i] = at(i, 2 * p) | at(i, 2 * p + 1) << 16;
    }
  }
#endif
}

}  // namespace bf16
}  // namespace libai_ext
