// The exact GELU (not its tanh approximation): x * Phi(x), Phi the standard normal distribution.
#pragma once

#include "parallel.h"
#include "vector_math.h"

namespace libai_ext {

constexpr int64_t kGeluGrain = 4096;  // elements a thread should have

inline void Gelu(int64_t n, const float* x, float* y) {
  ParallelFor(n, kGeluGrain, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      float gaussian;
      y[i] = x[i] * NormalCdf(x[i], &gaussian);
    }
  });
}

inline void GeluGrad(int64_t n, const float* x, const float* dy, float* dx) {
  constexpr float kInvSqrt2Pi = 0.398942280f;
  ParallelFor(n, kGeluGrain, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      float gaussian;
      const float cdf = NormalCdf(x[i], &gaussian);
      dx[i] = dy[i] * (cdf + kInvSqrt2Pi * x[i] * gaussian);
    }
  });
}

}  // namespace libai_ext
