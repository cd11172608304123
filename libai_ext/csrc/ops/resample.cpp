// Not an op of OneFlow's: data workers call it through ctypes (libai_ext/kernels/resample.py).
#include "../arithmetic/resample.h"

extern "C" void libai_ext_resize_bicubic(const uint8_t* pixels, int64_t height, int64_t width,
                                         int64_t channels, int64_t out_height, int64_t out_width,
                                         uint8_t* out) {
  libai_ext::ResizeBicubic(pixels, height, width, channels, out_height, out_width, out);
}
