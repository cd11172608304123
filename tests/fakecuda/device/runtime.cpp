// The CUDA runtime, as much as OneFlow 0.9.0 calls: devices, streams, events, launches.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <string>

#include "device.h"

extern "C" {
char* fakecuda_engine = nullptr;  // where the engine is loaded; kernels are counted by offset
size_t fakecuda_world = 1;        // ranks that the process stands for
}

extern "C" int fakecuda_take_last_error();
extern "C" int fakecuda_last_error();

namespace fakecuda {
namespace {

thread_local int device_in_use = 0;

constexpr size_t kSharedMemory = 48 << 10, kSharedMemoryOptin = 163 << 10;
constexpr int kWarp = 32, kThreadsOfBlock = 1024, kThreadsOfProcessor = 2048, kProcessors = 108;
constexpr int kBlocksOfProcessor = 32, kGridX = 2147483647, kGridY = 65535;

// The wheel holds machine code for these, and nothing that a driver could compile.
bool has_machine_code() {
  for (int built : {60, 61, 70, 75, 80, 86})
    if (built / 10 == settings().major && built % 10 <= settings().minor) return true;
  return false;
}

template <typename T>
void put(char* structure, size_t offset, T value) {
  std::memcpy(structure + offset, &value, sizeof value);
}

CUDA(cudaGetDeviceCount, int* devices) {
  *devices = settings().devices;
  return kSuccess;
}
CUDA(cudaGetDevice, int* device) {
  *device = device_in_use;
  return kSuccess;
}
CUDA(cudaSetDevice, int device) {
  if (device < 0 || device >= settings().devices || device >= kMaxDevices) return kInvalidDevice;
  device_in_use = device;
  return kSuccess;
}
CUDA(cudaDeviceSynchronize) { return kSuccess; }
// It lies on no bus, so OneFlow binds no thread to a processor near it.
CUDA(cudaDeviceGetPCIBusId, char*, int, int) { return kInvalidDevice; }
CUDA(cudaDeviceGetStreamPriorityRange, int* least, int* greatest) {
  *least = 0;
  *greatest = -5;
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
    case 1: *value = kThreadsOfBlock; break;
    case 5: *value = kGridX; break;
    case 6: case 7: *value = kGridY; break;
    case 8: *value = kSharedMemory; break;
    case 10: *value = kWarp; break;
    case 16: *value = kProcessors; break;
    case 39: *value = kThreadsOfProcessor; break;
    case 75: *value = settings().major; break;
    case 76: *value = settings().minor; break;
    case 97: *value = kSharedMemoryOptin; break;
    default:
      unimplemented(("cudaDeviceGetAttribute " + std::to_string(attribute)).c_str());
      return kInvalidValue;
  }
  return kSuccess;
}

int new_handle(void** handle) {
  *handle = std::calloc(1, 64);
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
CUDA(cudaEventSynchronize, void*) { return kSuccess; }

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
         threads && threads <= kThreadsOfBlock && block.z <= 64 && shared <= kSharedMemoryOptin;
}

CUDA(cudaLaunchKernel, const char* kernel, Dim3 grid, Dim3 block, void** arguments, size_t shared,
     Stream) {
  if (!has_machine_code()) return kNoKernelImage;
  if (!fits(grid, block, shared)) return kInvalidConfiguration;
  count("kernel", std::to_string(kernel - fakecuda_engine).c_str());
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
  put(out, 44, static_cast<int>(kSharedMemory));
  return kSuccess;
}

CUDA(cudaFuncSetAttribute, const void*, int attribute, int value) {
  const bool shared_memory = attribute == 8;
  return shared_memory && static_cast<size_t>(value) > kSharedMemoryOptin ? kInvalidValue
                                                                          : kSuccess;
}

CUDA(cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags, int* blocks, const void*, int threads,
     size_t shared, unsigned) {
  if (!has_machine_code()) return kNoKernelImage;
  *blocks = shared > kSharedMemoryOptin ? 0
                                        : std::min(kThreadsOfProcessor / threads, kBlocksOfProcessor);
  return kSuccess;
}
CUDA(cudaOccupancyMaxActiveBlocksPerMultiprocessor, int* blocks, const void* kernel, int threads,
     size_t shared) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, kernel, threads, shared, 0);
}

int driver_device(int* device, int ordinal) {
  *device = ordinal;
  return kSuccess;
}
int driver_context_state(int, unsigned* flags, int* active) {
  *flags = 0;
  *active = 1;
  return kSuccess;
}
CUDA(cudaGetDriverEntryPoint, const char* name, void** function, unsigned long long) {
  *function = nullptr;
  if (!std::strcmp(name, "cuDeviceGet")) *function = reinterpret_cast<void*>(driver_device);
  if (!std::strcmp(name, "cuDevicePrimaryCtxGetState"))
    *function = reinterpret_cast<void*>(driver_context_state);
  if (*function) return kSuccess;
  unimplemented(name);
  return kSymbolNotFound;
}

// What works without a device, and without a driver.
int runtime_version(int* version) {
  *version = 11070;
  return kSuccess;
}
int driver_version(int* version) {
  constexpr int kInsufficientDriver = 35;
  *version = settings().error == kInsufficientDriver ? 10020 : 11070;
  return kSuccess;
}
// Replaces the engine's only where one process stands for all: see compile.py.
size_t world_size() { return fakecuda_world; }

const bool listed = [] {
  list("cudaRuntimeGetVersion", reinterpret_cast<void*>(runtime_version));
  list("cudaDriverGetVersion", reinterpret_cast<void*>(driver_version));
  list("cudaGetLastError", reinterpret_cast<void*>(fakecuda_take_last_error));
  list("cudaPeekAtLastError", reinterpret_cast<void*>(fakecuda_last_error));
  list("WorldSize", reinterpret_cast<void*>(world_size));
  return true;
}();

}  // namespace

int current_device() { return device_in_use; }

}  // namespace fakecuda
