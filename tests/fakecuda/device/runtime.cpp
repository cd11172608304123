// The CUDA runtime, as much as OneFlow 0.9.0 calls: devices, streams, events, launches.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <string>

#include "device.h"

namespace fakecuda {
namespace {

thread_local int device_in_use = 0;

constexpr int kSharedMemory = 48 << 10, kSharedMemoryOptin = 163 << 10;
constexpr int kWarp = 32, kThreadsOfBlock = 1024, kThreadsOfProcessor = 2048, kProcessors = 108;
constexpr int kBlocksOfProcessor = 32, kGridX = 2147483647, kGridY = 65535;

// The wheel holds machine code for these, and nothing that a driver could compile.
bool has_machine_code() {
  for (int built : {60, 61, 70, 75, 80, 86})
    if (built / 10 == settings().major && built % 10 <= settings().minor) return true;
  return false;
}

int give(int* out, int value) {
  *out = value;
  return kSuccess;
}

template<typename T>
void put(char* structure, size_t offset, T value) {
  std::memcpy(structure + offset, &value, sizeof value);
}

CUDA(cudaGetDeviceCount, int* devices) { return give(devices, settings().devices); }
CUDA(cudaGetDevice, int* device) { return give(device, device_in_use); }
CUDA(cudaSetDevice, int device) {
  if (device < 0 || device >= settings().devices || device >= kMaxDevices) return kInvalidDevice;
  device_in_use = device;
  return kSuccess;
}
CUDA(cudaDeviceSynchronize) { return kSuccess; }
// It lies on no bus, so OneFlow binds no thread to a processor near it.
CUDA(cudaDeviceGetPCIBusId, char*, int, int) { return kInvalidDevice; }
CUDA(cudaDeviceGetStreamPriorityRange, int* least, int* greatest) {
  if (least) *least = 0;
  if (greatest) *greatest = -5;
  return kSuccess;
}

// cudaDeviceProp of CUDA 11.7 has 728 bytes; what OneFlow reads of it, by its place.
CUDA(cudaGetDeviceProperties, char* out, int device) {
  if (device < 0 || device >= settings().devices) return kInvalidDevice;
  std::memset(out, 0, 728);
  std::snprintf(out, 256, "%s", settings().name);
  put<size_t>(out, 288, settings().memory);
  put<size_t>(out, 296, kSharedMemory);
  put(out, 308, kWarp);
  put(out, 320, kThreadsOfBlock);
  put(out, 336, kGridX);
  put(out, 340, kGridY);
  put(out, 344, kGridY);
  put(out, 348, 1410000);  // kHz
  put(out, 360, settings().major);
  put(out, 364, settings().minor);
  put(out, 388, kProcessors);
  put(out, 608, 1512000);  // kHz of the memory
  put(out, 612, 5120);     // bits of the memory bus
  put(out, 624, kThreadsOfProcessor);
  put<size_t>(out, 696, kSharedMemoryOptin);
  return kSuccess;
}

// By the numbers of cudaDeviceAttr.
CUDA(cudaDeviceGetAttribute, int* value, int attribute, int) {
  switch (attribute) {
    case 1: return give(value, kThreadsOfBlock);
    case 5: return give(value, kGridX);
    case 6:
    case 7: return give(value, kGridY);
    case 8: return give(value, kSharedMemory);
    case 10: return give(value, kWarp);
    case 16: return give(value, kProcessors);
    case 39: return give(value, kThreadsOfProcessor);
    case 75: return give(value, settings().major);
    case 76: return give(value, settings().minor);
    case 97: return give(value, kSharedMemoryOptin);
  }
  unimplemented(("cudaDeviceGetAttribute " + std::to_string(attribute)).c_str());
  return kInvalidValue;
}

int new_handle(void** handle) {
  *handle = std::calloc(1, 1);
  return kSuccess;
}
int free_handle(void* handle) {
  std::free(handle);
  return kSuccess;
}

CUDA(cudaStreamCreate, Stream* stream) { return new_handle(stream); }
CUDA(cudaStreamCreateWithPriority, Stream* stream, unsigned, int) { return new_handle(stream); }
CUDA(cudaStreamDestroy, Stream stream) { return free_handle(stream); }
CUDA(cudaStreamSynchronize, Stream) { return kSuccess; }
CUDA(cudaStreamWaitEvent, Stream, void*, unsigned) { return kSuccess; }
CUDA(cudaEventCreateWithFlags, void** event, unsigned) { return new_handle(event); }
CUDA(cudaEventDestroy, void* event) { return free_handle(event); }
CUDA(cudaEventRecord, void*, Stream) { return kSuccess; }
CUDA(cudaEventQuery, void*) { return kSuccess; }
// A device takes its time. OneFlow notes the start of a graph only after it has started it: where
// all of it is over before, the engine takes back what it has not noted, and crashes later.
CUDA(cudaEventSynchronize, void*) {
  usleep(1000);
  return kSuccess;
}

struct Dim3 {
  unsigned x, y, z;
};
thread_local struct {
  Dim3 grid, block;
  size_t shared;
  Stream stream;
} next;

CUDA(__cudaPushCallConfiguration, Dim3 grid, Dim3 block, size_t shared, Stream stream) {
  next = {grid, block, shared, stream};
  return kSuccess;
}
CUDA(__cudaPopCallConfiguration, Dim3* grid, Dim3* block, size_t* shared, Stream* stream) {
  *grid = next.grid;
  *block = next.block;
  *shared = next.shared;
  *stream = next.stream;
  return kSuccess;
}

bool fits(Dim3 grid, Dim3 block, size_t shared) {
  const size_t threads = size_t{block.x} * block.y * block.z;
  return grid.x && grid.y && grid.z && grid.x <= kGridX && grid.y <= kGridY && grid.z <= kGridY &&
         threads && threads <= kThreadsOfBlock && block.z <= 64 &&
         shared <= size_t{kSharedMemoryOptin};
}

CUDA(cudaLaunchKernel, const char* kernel, Dim3 grid, Dim3 block, void** arguments, size_t shared,
     Stream) {
  if (!has_machine_code()) return kNoKernelImage;
  if (!fits(grid, block, shared)) return kInvalidConfiguration;
  count("kernel", std::to_string(offset_in_engine(kernel)).c_str());
  finite_check(kernel, arguments);
  return kSuccess;
}

// cudaFuncAttributes of CUDA 11.7: 56 bytes.
CUDA(cudaFuncGetAttributes, char* out, const void*) {
  if (!has_machine_code()) return kNoKernelImage;
  const int capability = settings().major * 10 + settings().minor;
  std::memset(out, 0, 56);
  put(out, 24, kThreadsOfBlock);
  put(out, 28, 32);          // registers of a thread
  put(out, 32, capability);  // of the PTX
  put(out, 36, capability);  // of the machine code
  put(out, 44, kSharedMemory);
  return kSuccess;
}

CUDA(cudaFuncSetAttribute, const void*, int attribute, int value) {
  constexpr int kDynamicSharedMemory = 8;
  return attribute == kDynamicSharedMemory && value > kSharedMemoryOptin ? kInvalidValue : kSuccess;
}

CUDA(cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags, int* blocks, const void*, int threads,
     size_t shared, unsigned) {
  if (!has_machine_code()) return kNoKernelImage;
  const int fitting = std::min(kThreadsOfProcessor / threads, kBlocksOfProcessor);
  return give(blocks, shared > size_t{kSharedMemoryOptin} ? 0 : fitting);
}

// It works without a device, and without a driver.
int runtime_version(int* version) { return give(version, 11070); }
const bool listed = (list("cudaRuntimeGetVersion", reinterpret_cast<void*>(runtime_version)), true);

}  // namespace

int current_device() { return device_in_use; }

}  // namespace fakecuda
