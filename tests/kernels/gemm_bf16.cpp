// The product of csrc/arithmetic/gemm_bf16.h and what linear.h adds to it, to call from
// test_gemm_bf16.py.
#include "linear.h"

using libai_ext::MatrixBatch;

extern "C" const char* instructions() {
#ifdef LIBAI_EXT_AVX512_BF16
  return libai_ext::bf16::HasAmx() ? "AMX" : "AVX-512";
#else
  return "";
#endif
}

extern "C" void product(int64_t threads, int64_t batch, int64_t m, int64_t n, int64_t k,
                        float alpha, const float* a, int64_t a_transposed, const float* b,
                        int64_t b_transposed, float* c, int64_t accumulate) {
  omp_set_num_threads(static_cast<int>(threads));
  libai_ext::GemmBfloat16(batch, m, n, k, alpha, MatrixBatch::Make(a, a_transposed, m, k, m * k),
                          MatrixBatch::Make(b, b_transposed, k, n, k * n), c,
                          libai_ext::Addend{accumulate ? c : nullptr, n}, m * n);
}

extern "C" void linear(int64_t threads, int64_t rows, int64_t in, int64_t out, const float* x,
                       const float* weight, const float* bias, float* y, const float* y_grad,
                       float* weight_grad, float* bias_grad) {
  omp_set_num_threads(static_cast<int>(threads));
  const libai_ext::LinearShape shape{rows, in, out, /*bfloat16=*/true};
  Linear(shape, x, weight, bias, y);
  LinearParameterGrads(shape, x, y_grad, weight_grad, bias_grad);
}
