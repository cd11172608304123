// Bicubic resampling of 8-bit images with Pillow's arithmetic, bit for bit: the same weights in
// 22-bit fixed point, columns before rows, rounded to 8 bits in between. Only the order in which
// integers are added differs, which changes no sum. Pillow's own loops use no vector instructions.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

namespace libai_ext {
namespace resample {

// Four numbers a pixel. Written out, because compilers make a poor job of it.
typedef int32_t OnePixel __attribute__((vector_size(16)));
typedef int32_t TwoPixels __attribute__((vector_size(32)));

constexpr int kPrecision = 32 - 8 - 2;  // Pillow's PRECISION_BITS
constexpr int kTaps = 2;                // weights are padded with zeros to a multiple of it
constexpr int kLanes = 4;               // channels of a pixel while it is resampled

__attribute__((always_inline)) inline double Cubic(double x) {  // with MakeWeights' rounding
  constexpr double a = -0.5;
  x = std::fabs(x);
  if (x < 1.0) { return ((a + 2.0) * x - (a + 3.0)) * x * x + 1; }
  if (x < 2.0) { return (((x - 5) * x + 8) * x - 4) * a; }
  return 0.0;
}

// For each place of the output: the first place of the input it depends on, and `taps` weights.
struct Weights {
  int64_t taps;
  std::vector<int64_t> first;
  std::vector<int32_t> values;
};

// Without fused operations, as Pillow is compiled: the last bit of a weight may decide a rounding.
__attribute__((optimize("fp-contract=off"))) inline Weights MakeWeights(int64_t in, int64_t out) {
  const double scale = static_cast<double>(in) / out;
  const double stretch = std::max(scale, 1.0);
  const double support = 2.0 * stretch;
  const int64_t most = static_cast<int64_t>(std::ceil(support)) * 2 + 1;
  Weights result;
  result.taps = (most + kTaps - 1) / kTaps * kTaps;
  result.first.resize(out);
  result.values.assign(out * result.taps, 0);
  std::vector<double> exact(most);
  for (int64_t place = 0; place < out; ++place) {
    const double centre = (place + 0.5) * scale;
    const int64_t first = std::max<int64_t>(0, static_cast<int64_t>(centre - support + 0.5));
    const int64_t last = std::min<int64_t>(in, static_cast<int64_t>(centre + support + 0.5));
    double sum = 0.0;
    const double shrink = 1.0 / stretch;
    for (int64_t at = first; at < last; ++at) {
      exact[at - first] = Cubic((at - centre + 0.5) * shrink);
      sum += exact[at - first];
    }
    result.first[place] = first;
    for (int64_t at = first; at < last; ++at) {
      const double weight = sum != 0.0 ? exact[at - first] / sum : exact[at - first];
      const double fixed = weight * (1 << kPrecision);
      result.values[place * result.taps + at - first] =
          static_cast<int32_t>(fixed < 0 ? fixed - 0.5 : fixed + 0.5);
    }
  }
  return result;
}

inline uint8_t Rounded(int32_t sum) {
  return static_cast<uint8_t>(std::min(255, std::max(0, sum >> kPrecision)));
}

constexpr int32_t kHalf = 1 << (kPrecision - 1);

// kRows rows of `width` pixels to `out_width`, each of `bytes` channels, `stride` apart in `out`.
// Together, because the weights, each four times in `spread`, are too many for the first-level
// cache. `wide` holds each row as 4 numbers a pixel, with `taps` pixels of zeros behind; `total`
// has room for a row of sums and a pixel more, for each row.
template<int bytes, int kRows>
void Rows(const uint8_t* const* rows, int64_t left, int64_t width, int64_t out_width, int64_t taps,
          const int64_t* __restrict first, const int32_t* __restrict spread,
          int32_t* __restrict wide, int32_t* __restrict total, uint8_t* __restrict out,
          int64_t stride) {
  const int64_t wide_row = (width + taps) * kLanes, total_row = out_width * bytes + kLanes;
  for (int r = 0; r < kRows; ++r) {
    const uint8_t* __restrict row = rows[r] + left * bytes;
    int32_t* __restrict to = wide + r * wide_row;
    for (int64_t x = 0; x < width; ++x) {
      for (int c = 0; c < bytes; ++c) { to[x * kLanes + c] = row[x * bytes + c]; }
    }
  }
  for (int64_t place = 0; place < out_width; ++place) {
    const int32_t* pixels = wide + first[place] * kLanes;
    const int32_t* factors = spread + place * taps * kLanes;
    TwoPixels sums[kRows] = {};
    for (int64_t at = 0; at < taps * kLanes; at += 2 * kLanes) {
      TwoPixels factor;
      std::memcpy(&factor, factors + at, sizeof(factor));
      for (int r = 0; r < kRows; ++r) {
        TwoPixels pixel;
        std::memcpy(&pixel, pixels + r * wide_row + at, sizeof(pixel));
        sums[r] += pixel * factor;
      }
    }
    for (int r = 0; r < kRows; ++r) {
      OnePixel halves[2];
      std::memcpy(halves, &sums[r], sizeof(halves));
      const OnePixel sum = halves[0] + halves[1];
      // The next one covers what is over.
      std::memcpy(total + r * total_row + place * bytes, &sum, sizeof(sum));
    }
  }
  for (int r = 0; r < kRows; ++r) {
    const int32_t* __restrict from = total + r * total_row;
    uint8_t* __restrict to = out + r * stride;
    for (int64_t i = 0; i < out_width * bytes; ++i) { to[i] = Rounded(kHalf + from[i]); }
  }
}

// Sums `taps` rows of `stride` bytes, a multiple of 64, each times its weight.
inline void Column(const uint8_t* rows, int64_t stride, const int32_t* factors, int64_t taps,
                   uint8_t* out) {
  constexpr int kWidth = 64;  // so many sums stay in registers
  for (int64_t x = 0; x < stride; x += kWidth) {
    int32_t sums[kWidth];
    for (int i = 0; i < kWidth; ++i) { sums[i] = kHalf; }
    for (int64_t at = 0; at < taps; ++at) {
      const int32_t factor = factors[at];
      if (factor == 0) { continue; }  // padding lies beyond the last row
      const uint8_t* row = rows + at * stride + x;
      for (int i = 0; i < kWidth; ++i) { sums[i] += row[i] * factor; }
    }
    for (int i = 0; i < kWidth; ++i) { out[x + i] = Rounded(sums[i]); }
  }
}

// One channel of a row, normalised. Without fused operations: NumPy's bits.
template<int bytes>
__attribute__((optimize("fp-contract=off"))) void Normalise(const uint8_t* __restrict row,
                                                            int64_t width, float scale, float shift,
                                                            float* __restrict out) {
  for (int64_t x = 0; x < width; ++x) {
    out[x] = static_cast<float>(row[x * bytes]) * scale + shift;
  }
}

}  // namespace resample

// A rectangle of an image as Pillow holds it: a pointer to each row; 1 byte a pixel (grey) or 4
// (colour, the last one unused).
struct Region {
  const uint8_t* const* rows;
  int64_t left, top, width, height;
};

// Resizes a region, which it does not look beyond, and calls store(y, row) for each row of the
// result. Mirroring reverses each row.
template<int bytes, typename Store>
void ResizeBicubic(const Region& region, int64_t out_height, int64_t out_width, bool mirrored,
                   const Store& store) {
  using namespace resample;
  // A pass that changes no size has weights of 0 and 1: Pillow, which leaves it out, agrees.
  const int64_t stride = (out_width * bytes + 63) / 64 * 64;
  const std::unique_ptr<uint8_t[]> between(new uint8_t[region.height * stride]);
  {
    Weights weights = MakeWeights(region.width, out_width);
    std::vector<int32_t> spread(weights.values.size() * kLanes);
    const int64_t taps = weights.taps;
    for (int64_t place = 0; place < out_width; ++place) {
      const int64_t to = mirrored ? out_width - 1 - place : place;
      for (int64_t i = 0; i < taps * kLanes; ++i) {
        spread[to * taps * kLanes + i] = weights.values[place * taps + i / kLanes];
      }
    }
    if (mirrored) { std::reverse(weights.first.begin(), weights.first.end()); }
    constexpr int kTogether = 4;
    std::vector<int32_t> wide(kTogether * (region.width + taps) * kLanes);
    std::vector<int32_t> total(kTogether * (out_width * bytes + kLanes));
    for (int64_t y = 0; y < region.height;) {
      const bool several = region.height - y >= kTogether;
      const auto resize = several ? &Rows<bytes, kTogether> : &Rows<bytes, 1>;
      resize(region.rows + region.top + y, region.left, region.width, out_width, taps,
             weights.first.data(), spread.data(), wide.data(), total.data(), &between[y * stride],
             stride);
      y += several ? kTogether : 1;
    }
  }
  const Weights weights = MakeWeights(region.height, out_height);
  std::vector<uint8_t> row(stride);
  for (int64_t y = 0; y < out_height; ++y) {
    Column(&between[weights.first[y] * stride], stride, &weights.values[y * weights.taps],
           weights.taps, row.data());
    store(y, row.data());
  }
}

// To another image as Pillow holds it.
template<int bytes>
void ResizeToRows(const Region& region, int64_t out_height, int64_t out_width, uint8_t** out) {
  ResizeBicubic<bytes>(region, out_height, out_width, false, [&](int64_t y, const uint8_t* row) {
    std::memcpy(out[y], row, out_width * bytes);
  });
}

// To out [channels, out_height, out_width], normalised: value * scale + shift of its channel.
template<int bytes>
void ResizeToFloats(const Region& region, int64_t out_height, int64_t out_width, bool mirrored,
                    const float* scale, const float* shift, float* out) {
  constexpr int channels = bytes == 4 ? 3 : 1;
  ResizeBicubic<bytes>(region, out_height, out_width, mirrored, [&](int64_t y, const uint8_t* row) {
    for (int c = 0; c < channels; ++c) {
      resample::Normalise<bytes>(row + c, out_width, scale[c], shift[c],
                                 out + (c * out_height + y) * out_width);
    }
  });
}

}  // namespace libai_ext
