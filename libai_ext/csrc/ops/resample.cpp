// Not an op of OneFlow's: data workers call it through ctypes (libai_ext/kernels/resample.py).
#include "../arithmetic/resample.h"

extern "C" void libai_ext_resize(const uint8_t* const* rows, int64_t bytes, int64_t left,
                                 int64_t top, int64_t width, int64_t height, int64_t out_height,
                                 int64_t out_width, uint8_t** out) {
  const auto resize = bytes == 4 ? libai_ext::ResizeToRows<4> : libai_ext::ResizeToRows<1>;
  resize({rows, left, top, width, height}, out_height, out_width, out);
}

extern "C" void libai_ext_resize_to_floats(const uint8_t* const* rows, int64_t bytes, int64_t left,
                                           int64_t top, int64_t width, int64_t height,
                                           int64_t out_height, int64_t out_width, int64_t mirrored,
                                           const float* scale, const float* shift, float* out) {
  const auto resize = bytes == 4 ? libai_ext::ResizeToFloats<4> : libai_ext::ResizeToFloats<1>;
  resize({rows, left, top, width, height}, out_height, out_width, mirrored != 0, scale, shift, out);
}
