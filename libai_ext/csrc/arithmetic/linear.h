// A linear layer, y = x W + bias, and its gradients. The bias is added to the sums of the product
// before they are written.
#pragma once

#include "gemm_bf16.h"
#include "reduce.h"

namespace libai_ext {

// x is [rows, in], the weight [in, out], y [rows, out].
struct LinearShape {
  int64_t rows, in, out;
  bool bfloat16;  // products round their factors to bfloat16
};

inline void Linear(const LinearShape& s, const float* x, const float* weight, const float* bias,
                   float* y) {
  const MatrixBatch a = MatrixBatch::Make(x, /*transposed=*/false, s.rows, s.in);
  const MatrixBatch b = MatrixBatch::Make(weight, /*transposed=*/false, s.in, s.out);
  GemmAs(s.bfloat16, 1, s.rows, s.out, s.in, 1.f, a, b, y, Addend{bias, 0});
}

// x_grad = y_grad W^T
inline void LinearInputGrad(const LinearShape& s, const float* y_grad, const float* weight,
                            float* x_grad) {
  const MatrixBatch a = MatrixBatch::Make(y_grad, /*transposed=*/false, s.rows, s.out);
  const MatrixBatch b = MatrixBatch::Make(weight, /*transposed=*/true, s.out, s.in);
  GemmAs(s.bfloat16, 1, s.rows, s.in, s.out, 1.f, a, b, x_grad);
}

// weight_grad = x^T y_grad, bias_grad = the sums of the columns of y_grad. The product of bfloat16
// packs y_grad once, and sums it on the way.
inline void LinearParameterGrads(const LinearShape& s, const float* x, const float* y_grad,
                                 float* weight_grad, float* bias_grad) {
  const MatrixBatch a = MatrixBatch::Make(x, /*transposed=*/true, s.in, s.rows);
  const MatrixBatch b = MatrixBatch::Make(y_grad, /*transposed=*/false, s.rows, s.out);
  if (s.bfloat16 && s.in > 0) {
    std::vector<double> sums(s.out);
    GemmBfloat16(1, s.in, s.out, s.rows, 1.f, a, b, weight_grad, /*addend=*/{}, /*addend_step=*/0,
                 sums.data());
    std::copy(sums.begin(), sums.end(), bias_grad);
  } else {
    Gemm(1, s.in, s.out, s.rows, 1.f, a, b, weight_grad);
    SumMiddle(1, s.rows, s.out, y_grad, bias_grad);
  }
}

}  // namespace libai_ext
