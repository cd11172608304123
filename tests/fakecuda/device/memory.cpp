// Memory of the devices and pinned memory, which are host memory with a limit; copies.
#include <sys/mman.h>

#include <cstdint>
#include <cstring>
#include <iterator>
#include <map>
#include <mutex>

#include "device.h"

namespace fakecuda {
namespace {

enum class Memory { kPageable, kPinned, kDevice };

struct Block {
  size_t size;
  Memory memory;
  int device;
};

std::mutex mutex;
std::map<uintptr_t, Block> blocks;
size_t used[kMaxDevices], peak[kMaxDevices];

uintptr_t number(const void* address) { return reinterpret_cast<uintptr_t>(address); }

size_t whole_pages(size_t size) { return size ? (size + 4095) & ~size_t{4095} : 4096; }

size_t available(int device) {
  const size_t taken = settings().used + used[device];
  return settings().memory > taken ? settings().memory - taken : 0;
}

void take(int device, size_t size) {
  used[device] += size;
  if (used[device] > peak[device]) peak[device] = used[device];
  gauge("used", device, used[device]);
  gauge("peak", device, peak[device]);
}

Memory memory_of(const void* address) {
  const std::lock_guard<std::mutex> lock(mutex);
  const auto after = blocks.upper_bound(number(address));
  if (after == blocks.begin()) return Memory::kPageable;
  const auto& [begin, block] = *std::prev(after);
  return number(address) < begin + block.size ? block.memory : Memory::kPageable;
}

int allocate(void** address, size_t size, Memory memory) {
  const std::lock_guard<std::mutex> lock(mutex);
  const int device = current_device();
  *address = nullptr;
  if (memory == Memory::kDevice && size > available(device)) return kOutOfMemory;
  // Pages that nobody touches cost nothing.
  void* mapped = mmap(nullptr, whole_pages(size), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED) return kOutOfMemory;
  blocks[number(mapped)] = {size, memory, device};
  if (memory == Memory::kDevice) take(device, size);
  count("allocation", memory == Memory::kDevice ? "device" : "pinned", size);
  *address = mapped;
  return kSuccess;
}

int release(void* address) {
  if (!address) return kSuccess;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = blocks.find(number(address));
  if (found == blocks.end()) return kInvalidValue;
  const Block& block = found->second;
  if (block.memory == Memory::kDevice) {
    used[block.device] -= block.size;
    gauge("used", block.device, used[block.device]);
  }
  munmap(address, whole_pages(block.size));
  blocks.erase(found);
  return kSuccess;
}

int copy(void* to, const void* from, size_t size, bool wait) {
  const Memory source = memory_of(from), target = memory_of(to);
  const bool up = target == Memory::kDevice, down = source == Memory::kDevice;
  count("copy", up && down ? "d2d" : up ? "h2d" : down ? "d2h" : "h2h", size);
  if (up && !down) count("h2d", source == Memory::kPinned ? "pinned" : "pageable", size);
  if (down && !up) {
    const bool pinned = target == Memory::kPinned;
    count("d2h", pinned ? "pinned" : "pageable", size);
    // CUDA's documentation: such a copy returns once it has completed.
    if (!pinned && !wait) count("call", "cudaMemcpyAsync to pageable memory");
  }
  if (size && to != from) std::memmove(to, from, size);
  return kSuccess;
}

CUDA(cudaMalloc, void** address, size_t size) { return allocate(address, size, Memory::kDevice); }
CUDA(cudaFree, void* address) { return release(address); }
CUDA(cudaMallocHost, void** address, size_t size) {
  return allocate(address, size, Memory::kPinned);
}
CUDA(cudaHostAlloc, void** address, size_t size, unsigned) {
  return allocate(address, size, Memory::kPinned);
}
CUDA(cudaFreeHost, void* address) { return release(address); }

CUDA(cudaMemGetInfo, size_t* available_bytes, size_t* total) {
  const std::lock_guard<std::mutex> lock(mutex);
  *total = settings().memory;
  *available_bytes = available(current_device());
  return kSuccess;
}

CUDA(cudaMemcpy, void* to, const void* from, size_t size, int) {
  return copy(to, from, size, true);
}
CUDA(cudaMemcpyAsync, void* to, const void* from, size_t size, int, Stream) {
  return copy(to, from, size, false);
}
CUDA(cudaMemcpy2DAsync, char* to, size_t to_pitch, const char* from, size_t from_pitch,
     size_t width, size_t height, int, Stream) {
  for (size_t row = 0; row < height; ++row)
    copy(to + row * to_pitch, from + row * from_pitch, width, false);
  return kSuccess;
}

CUDA(cudaMemset, void* address, int value, size_t size) {
  std::memset(address, value, size);
  return kSuccess;
}
CUDA(cudaMemsetAsync, void* address, int value, size_t size, Stream) {
  finite_check_clears(address);
  std::memset(address, value, size);
  return kSuccess;
}

}  // namespace
}  // namespace fakecuda
