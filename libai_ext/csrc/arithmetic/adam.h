// One step of Adam (decay inside the gradient, l2) or AdamW (decoupled weight decay).
#pragma once

#include <cmath>

#include "parallel.h"

namespace libai_ext {

struct AdamStep {
  float learning_rate;
  float bias_correction1;  // 1 - beta1^t, or 1
  float bias_correction2;
  float gradient_scale;
  float l2;
  float beta1;
  float beta2;
  float epsilon;
  float weight_decay;
};

// Updates weight, m (first moment) and v (second moment) in place.
inline void AdamUpdate(int64_t n, const AdamStep& step, const float* gradient, float* weight,
                       float* m, float* v) {
  constexpr int64_t kGrain = 8192;  // elements a thread should have
  const float rate = step.learning_rate / step.bias_correction1;
  const float inv_sqrt_correction2 = 1.f / std::sqrt(step.bias_correction2);
  const float decay = step.learning_rate * step.weight_decay;
  ParallelFor(n, kGrain, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const float w = weight[i];
      const float g = gradient[i] * step.gradient_scale + step.l2 * w;
      m[i] = step.beta1 * m[i] + (1 - step.beta1) * g;
      v[i] = step.beta2 * v[i] + (1 - step.beta2) * g * g;
      const float denominator = std::sqrt(v[i]) * inv_sqrt_correction2 + step.epsilon;
      weight[i] = w - rate * (m[i] / denominator) - decay * w;
    }
  });
}

}  // namespace libai_ext
