// Bicubic resampling of 8-bit images with Pillow's arithmetic, bit for bit: the same weights in
// 22-bit fixed point, columns before rows, rounded to 8 bits in between. Only the order in which
// integers are added differs, which changes no sum. Pillow's own loops use no vector instructions.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace libai_ext {
namespace resample {

// Four numbers a pixel. Written out, because compilers make a poor job of it.
typedef int32_t OnePixel __attribute__((vector_size(16)));
typedef int32_t TwoPixels __attribute__((vector_size(32)));

constexpr int kPrecision = 32 - 8 - 2;  // Pillow's PRECISION_BITS
constexpr int kTaps = 2;                // weights are padded with zeros to a multiple of it
constexpr int kLanes = 4;               // channels of a pixel while it is resampled

inline double Cubic(double x) {
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

// One row of pixels [width, channels] to [out, channels]. `wide` holds the row as 4 numbers a
// pixel, with kTaps pixels of zeros behind; `spread` holds each weight four times; `total`
// has room for the row of sums and a pixel more.
template<int channels>
void Row(const uint8_t* __restrict row, int64_t width, int64_t out_width, int64_t taps,
         const int64_t* __restrict first, const int32_t* __restrict spread,
         int32_t* __restrict wide, int32_t* __restrict total, uint8_t* __restrict out) {
  for (int64_t x = 0; x < width; ++x) {
    for (int c = 0; c < channels; ++c) { wide[x * kLanes + c] = row[x * channels + c]; }
  }
  for (int64_t place = 0; place < out_width; ++place) {
    const int32_t* pixels = wide + first[place] * kLanes;
    const int32_t* factors = spread + place * taps * kLanes;
    TwoPixels sums = {};
    for (int64_t at = 0; at < taps * kLanes; at += 2 * kLanes) {
      TwoPixels pixel, factor;
      std::memcpy(&pixel, pixels + at, sizeof(pixel));
      std::memcpy(&factor, factors + at, sizeof(factor));
      sums += pixel * factor;
    }
    OnePixel halves[2];
    std::memcpy(halves, &sums, sizeof(sums));
    const OnePixel sum = halves[0] + halves[1];
    std::memcpy(total + place * channels, &sum, sizeof(sum));  // the next one covers what is over
  }
  for (int64_t i = 0; i < out_width * channels; ++i) { out[i] = Rounded(kHalf + total[i]); }
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

}  // namespace resample

// pixels [height, width, channels] to out [out_height, out_width, channels]; channels 1 or 3.
inline void ResizeBicubic(const uint8_t* pixels, int64_t height, int64_t width, int64_t channels,
                          int64_t out_height, int64_t out_width, uint8_t* out) {
  using namespace resample;
  const int64_t length = out_width * channels;
  const int64_t stride = (length + 63) / 64 * 64;
  std::vector<uint8_t> between(height * stride);
  if (width == out_width) {  // Pillow leaves out a pass that changes no size
    for (int64_t y = 0; y < height; ++y) {
      std::memcpy(&between[y * stride], pixels + y * length, length);
    }
  } else {
    const Weights weights = MakeWeights(width, out_width);
    std::vector<int32_t> spread(weights.values.size() * kLanes);
    for (size_t i = 0; i < spread.size(); ++i) { spread[i] = weights.values[i / kLanes]; }
    std::vector<int32_t> wide((width + weights.taps) * kLanes);
    std::vector<int32_t> total(length + kLanes);
    const auto row = channels == 3 ? Row<3> : Row<1>;
    for (int64_t y = 0; y < height; ++y) {
      row(pixels + y * width * channels, width, out_width, weights.taps, weights.first.data(),
          spread.data(), wide.data(), total.data(), &between[y * stride]);
    }
  }
  if (height == out_height) {
    for (int64_t y = 0; y < height; ++y) {
      std::memcpy(out + y * length, &between[y * stride], length);
    }
    return;
  }
  const Weights weights = MakeWeights(height, out_height);
  std::vector<uint8_t> row(stride);
  for (int64_t y = 0; y < out_height; ++y) {
    Column(&between[weights.first[y] * stride], stride, &weights.values[y * weights.taps],
           weights.taps, row.data());
    std::memcpy(out + y * length, row.data(), length);
  }
}

}  // namespace libai_ext
