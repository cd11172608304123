// The library's face to Python (libai_ext/kernels/loader.py): C functions, called through ctypes;
// matmul.cpp, resample.cpp and the files of ../graph have more.
#include <cstdio>
#include <exception>

#include "oneflow/core/common/singleton.h"
#include "oneflow/core/framework/stream_mgr.h"
#include "kernel_util.h"

extern "C" {

// The streams that OneFlow has made so far. It makes the first one for the first tensor, op or
// seeded generator, so 0 says that no kernel has been looked up yet.
int64_t libai_ext_stream_count() {
  const auto* streams = oneflow::Singleton<oneflow::StreamMgr>::Get();
  return streams ? static_cast<int64_t>(streams->UniqueStreamSize()) : 0;
}

// Registers all kernels. OneFlow keeps pointers into a list that this makes longer, so it must not
// be called once a kernel has been looked up. Returns 0, or 1 with a message for the caller.
int libai_ext_register(char* message, int64_t message_size) {
  try {
    libai_ext::RegisterAdam();
    libai_ext::RegisterAttention();
    libai_ext::RegisterCopy();
    libai_ext::RegisterElementwise();
    libai_ext::RegisterGelu();
    libai_ext::RegisterLayerNorm();
    libai_ext::RegisterLinear();
    libai_ext::RegisterMatmul();
    libai_ext::RegisterReduce();
    return 0;
  } catch (const std::exception& error) {
    std::snprintf(message, message_size, "%s", error.what());
    return 1;
  }
}

}  // extern "C"
