#include <atomic>

#include "../arithmetic/gemm_bf16.h"
#include "kernel_util.h"

namespace libai_ext {
namespace {

std::atomic<bool> bfloat16_products{false};

const auto Product = [](auto... arguments) { GemmAs(bfloat16_products, arguments...); };

// Which matrix of an operand with batch axes `dims` goes into matrix q of the batch `out`.
int64_t SourceMatrix(const ShapeView& dims, const ShapeView& out, int64_t q) {
  int64_t source = 0;
  int64_t stride = 1;
  for (int back = 3; back <= out.NumAxes(); ++back) {  // axes counted from the last one
    const int64_t out_dim = out.At(out.NumAxes() - back);
    if (back <= dims.NumAxes()) {
      const int64_t dim = dims.At(dims.NumAxes() - back);
      if (dim > 1) { source += q % out_dim * stride; }
      stride *= dim;
    }
    q /= out_dim;
  }
  return source;
}

// matmul, batch_matmul and broadcast_matmul: out[..., m, n] = alpha a[..., m, k] b[..., k, n]
void ComputeMatmul(Context* ctx) {
  const bool transpose_a = ctx->Attr<bool>("transpose_a");
  const bool transpose_b = ctx->Attr<bool>("transpose_b");
  const float alpha = static_cast<float>(ctx->Attr<double>("alpha"));
  const ShapeView a_shape = Shape(ctx, "a");
  const ShapeView b_shape = Shape(ctx, "b");
  const ShapeView out_shape = Shape(ctx, "out");
  const int a_axes = a_shape.NumAxes();
  const int b_axes = b_shape.NumAxes();
  const int out_axes = out_shape.NumAxes();
  int64_t m = out_shape.At(out_axes - 2);
  const int64_t n = out_shape.At(out_axes - 1);
  const int64_t k = a_shape.At(transpose_a ? a_axes - 2 : a_axes - 1);
  const int64_t a_batch = a_shape.Count(0, a_axes - 2);
  const int64_t b_batch = b_shape.Count(0, b_axes - 2);
  int64_t batch = out_shape.Count(0, out_axes - 2);
  const float* a = Input(ctx, "a");
  const float* b = Input(ctx, "b");
  float* out = Output(ctx, "out");
  // There where the graph compiler has made matmul and a sum one op; it may be `out`.
  const float* addend = OptionalInput(ctx, "_add_to_output");

  if (b_batch == 1 && a_batch == batch && !transpose_a) {  // one weight for the rows of all
    m *= batch;
    batch = 1;
  }
  const auto multiply = [&](int64_t count, const float* a_from, int64_t a_step, const float* b_from,
                            int64_t b_step, int64_t from) {
    Product(count, m, n, k, alpha, MatrixBatch::Make(a_from, transpose_a, m, k, a_step),
            MatrixBatch::Make(b_from, transpose_b, k, n, b_step), out + from,
            Addend{addend, n}.At(0, from), m * n);
  };
  const bool a_simple = a_batch == 1 || a_batch == batch || batch == 1;
  const bool b_simple = b_batch == 1 || b_batch == batch;
  if (a_simple && b_simple) {
    multiply(batch, a, a_batch == 1 ? 0 : m * k, b, b_batch == 1 ? 0 : k * n, 0);
    return;
  }
  for (int64_t q = 0; q < batch; ++q) {  // repeated along some of the batch axes
    multiply(1, a + SourceMatrix(a_shape, out_shape, q) * m * k, 0,
             b + SourceMatrix(b_shape, out_shape, q) * k * n, 0, q * m * n);
  }
}

// The gradient of a weight: out[m, n] = alpha a^T b, summed over the leading axes of a[..., m] and
// b[..., n]
void ComputeBroadcastMatmulGradB(Context* ctx) {
  const ShapeView a_shape = Shape(ctx, "a");
  const ShapeView b_shape = Shape(ctx, "b");
  const int64_t m = a_shape.At(a_shape.NumAxes() - 1);
  const int64_t n = b_shape.At(b_shape.NumAxes() - 1);
  const int64_t k = a_shape.Count(0, a_shape.NumAxes() - 1);
  Product(1, m, n, k, static_cast<float>(ctx->Attr<double>("alpha")),
          MatrixBatch::Make(Input(ctx, "a"), /*transposed=*/true, m, k),
          MatrixBatch::Make(Input(ctx, "b"), /*transposed=*/false, k, n), Output(ctx, "out"),
          Addend{OptionalInput(ctx, "_add_to_output"), n});
}

}  // namespace

bool ProductsAreBfloat16() { return bfloat16_products; }

void RegisterMatmul() {
  for (const char* op : {"matmul", "batch_matmul", "broadcast_matmul"}) {
    Register<ComputeMatmul>(op, OnCpu("out"));
  }
  Register<ComputeBroadcastMatmulGradB>("broadcast_matmul_grad_b", OnCpu("out"));
}

}  // namespace libai_ext

extern "C" {

// The instructions that products with bfloat16 would use; empty where the CPU has none.
const char* libai_ext_bfloat16_instructions() {
#ifdef LIBAI_EXT_AVX512_BF16
  return libai_ext::bf16::HasAmx() ? "AMX" : "AVX-512";
#else
  return "";
#endif
}

// Whether products from now on round their factors to bfloat16. No product may be under way.
void libai_ext_use_bfloat16_products(int64_t on) { libai_ext::bfloat16_products = on != 0; }

}  // extern "C"
