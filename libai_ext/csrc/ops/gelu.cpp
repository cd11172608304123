#include "../arithmetic/gelu.h"
#include "kernel_util.h"

namespace libai_ext {
namespace {

void ComputeGelu(Context* ctx) { Gelu(Size(ctx, "in"), Input(ctx, "in"), Output(ctx, "out")); }

void ComputeGeluGrad(Context* ctx) {
  GeluGrad(Size(ctx, "x"), Input(ctx, "x"), Input(ctx, "dy"), Output(ctx, "dx"));
}

}  // namespace

void RegisterGelu() {
  Register<ComputeGelu>("gelu", OnCpu("in"));
  Register<ComputeGeluGrad>("gelu_grad", OnCpu("dy"));
}

}  // namespace libai_ext
