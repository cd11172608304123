// The product of csrc/arithmetic/gemm_bf16.h, to call from test_gemm_bf16.py.
#include "gemm_bf16.h"

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
                          MatrixBatch::Make(b, b_transposed, k, n, k * n), c, m * n, accumulate);
}
