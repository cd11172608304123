// Layer normalisation of the rows of x [rows, cols], and its gradients.
// Rows are independent of each other, and so of the number of threads.
#pragma once

#include <cmath>

#include "reduce.h"

namespace libai_ext {

// y = (x - mean) * inv_std * gamma + beta. gamma and beta [cols] may be null; mean and inv_std
// [rows] are kept for the gradients. The variance is the biased one, from the centred row.
template<typename Float>
void LayerNorm(int64_t rows, int64_t cols, double epsilon, const Float* x, const Float* gamma,
               const Float* beta, Float* y, Float* mean, Float* inv_std) {
  ParallelRows(rows, cols, [=](int64_t i) {
    const Float* row = x + i * cols;
    Float* out = y + i * cols;
    const Float m = BlockedSum<Float>(cols, [=](int64_t j) { return row[j]; }) / cols;
    const Float variance =
        BlockedSum<Float>(cols, [=](int64_t j) { return (row[j] - m) * (row[j] - m); }) / cols;
    const Float r = 1 / std::sqrt(variance + static_cast<Float>(epsilon));
    mean[i] = m;
    inv_std[i] = r;
    if (gamma && beta) {
      for (int64_t j = 0; j < cols; ++j) { out[j] = (row[j] - m) * r * gamma[j] + beta[j]; }
    } else if (gamma) {
      for (int64_t j = 0; j < cols; ++j) { out[j] = (row[j] - m) * r * gamma[j]; }
    } else if (beta) {
      for (int64_t j = 0; j < cols; ++j) { out[j] = (row[j] - m) * r + beta[j]; }
    } else {
      for (int64_t j = 0; j < cols; ++j) { out[j] = (row[j] - m) * r; }
    }
  });
}

// dx = inv_std * (g - mean(g) - h * mean(g * h)) (+ addend), where g = dy * gamma and h is the
// normalised row. gamma and addend may be null; addend may be dx itself.
template<typename Float>
void LayerNormGrad(int64_t rows, int64_t cols, const Float* dy, const Float* x, const Float* mean,
                   const Float* inv_std, const Float* gamma, const Float* addend, Float* dx) {
  ParallelRows(rows, cols, [=](int64_t i) {
    const Float* row = x + i * cols;
    const Float* grad = dy + i * cols;
    Float* out = dx + i * cols;
    const Float m = mean[i];
    const Float r = inv_std[i];
    const auto compute = [=](const auto& g) {
      const Float mean_g = BlockedSum<Float>(cols, g) / cols;
      const Float mean_gh =
          BlockedSum<Float>(cols, [=](int64_t j) { return g(j) * ((row[j] - m) * r); }) / cols;
      if (addend) {
        const Float* add = addend + i * cols;
        for (int64_t j = 0; j < cols; ++j) {
          out[j] = add[j] + r * (g(j) - mean_g - (row[j] - m) * r * mean_gh);
        }
      } else {
        for (int64_t j = 0; j < cols; ++j) {
          out[j] = r * (g(j) - mean_g - (row[j] - m) * r * mean_gh);
        }
      }
    };
    if (gamma) {
      compute([=](int64_t j) { return grad[j] * gamma[j]; });
    } else {
      compute([=](int64_t j) { return grad[j]; });
    }
  });
}

// dgamma = sum over rows of dy * (x - mean) * inv_std, dbeta = sum over rows of dy.
// Either may be null.
template<typename Float>
void LayerNormParamGrad(int64_t rows, int64_t cols, const Float* dy, const Float* x,
                        const Float* mean, const Float* inv_std, Float* dgamma, Float* dbeta) {
  const int64_t strips = (cols + kColumnStrip - 1) / kColumnStrip;
  ParallelRows(strips, rows * kColumnStrip, [=](int64_t strip) {
    const int64_t begin = strip * kColumnStrip;
    const int64_t end = std::min(cols, begin + kColumnStrip);
    if (dgamma) {
      const auto term = [=](int64_t i, int64_t j) {
        return dy[i * cols + j] * ((x[i * cols + j] - mean[i]) * inv_std[i]);
      };
      ColumnSums<Float>(rows, begin, end, term, dgamma);
    }
    if (dbeta) {
      const auto term = [=](int64_t i, int64_t j) { return dy[i * cols + j]; };
      ColumnSums<Float>(rows, begin, end, term, dbeta);
    }
  });
}

}  // namespace libai_ext
