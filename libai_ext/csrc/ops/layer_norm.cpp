// OneFlow 0.9.0 has no layer normalisation on CPU at all, hence both types here.
#include "../arithmetic/layer_norm.h"
#include "kernel_util.h"

namespace libai_ext {
namespace {

struct RowShape {
  int64_t rows;
  int64_t cols;
};

// `x` as rows to normalise, `mean` having one element a row.
RowShape AsRows(Context* ctx) {
  const int64_t rows = Size(ctx, "mean");
  return {rows, rows == 0 ? 0 : Size(ctx, "x") / rows};
}

template<typename Float>
void ComputeLayerNorm(Context* ctx) {
  const RowShape x = AsRows(ctx);
  LayerNorm<Float>(x.rows, x.cols, ctx->Attr<double>("epsilon"), Input<Float>(ctx, "x"),
                   OptionalInput<Float>(ctx, "gamma"), OptionalInput<Float>(ctx, "beta"),
                   Output<Float>(ctx, "y"), Output<Float>(ctx, "mean"),
                   Output<Float>(ctx, "inv_variance"));
}

template<typename Float>
void ComputeLayerNormGrad(Context* ctx) {
  const RowShape x = AsRows(ctx);
  LayerNormGrad<Float>(x.rows, x.cols, Input<Float>(ctx, "dy"), Input<Float>(ctx, "x"),
                       Input<Float>(ctx, "mean"), Input<Float>(ctx, "inv_variance"),
                       OptionalInput<Float>(ctx, "gamma"),
                       OptionalInput<Float>(ctx, "_add_to_output"), Output<Float>(ctx, "dx"));
}

template<typename Float>
void ComputeLayerNormParamGrad(Context* ctx) {
  Float* const dgamma = OptionalOutput<Float>(ctx, "gamma_diff");
  Float* const dbeta = OptionalOutput<Float>(ctx, "beta_diff");
  const int64_t rows = Size(ctx, "mean");
  const int64_t cols = Size(ctx, dgamma ? "gamma_diff" : "beta_diff");
  LayerNormParamGrad<Float>(rows, cols, Input<Float>(ctx, "dy"), Input<Float>(ctx, "x"),
                            Input<Float>(ctx, "mean"), Input<Float>(ctx, "inv_variance"), dgamma,
                            dbeta);
}

template<typename Float>
void RegisterFor(DataType type) {
  Register<ComputeLayerNorm<Float>>("layer_norm", OnCpu("x", type));
  Register<ComputeLayerNormGrad<Float>>("layer_norm_grad", OnCpu("dy", type));
  Register<ComputeLayerNormParamGrad<Float>>("layer_norm_param_grad", OnCpu("dy", type));
}

}  // namespace

void RegisterLayerNorm() {
  RegisterFor<float>(DataType::kFloat);
  RegisterFor<double>(DataType::kDouble);
}

}  // namespace libai_ext
