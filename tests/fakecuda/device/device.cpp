// Settings, counters, and how the engine's functions are replaced.
#include "device.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <utility>

namespace fakecuda {
namespace {

// Read by report.py.
struct Counter {
  std::atomic<uint64_t> key, calls, bytes;
  char kind[16], name[88];
};
static_assert(sizeof(Counter) == 128, "report.py reads 128 bytes a counter");
constexpr size_t kCounters = 8192;

double number(const char* variable, double otherwise) {
  const char* text = std::getenv(variable);
  return text ? std::atof(text) : otherwise;
}

Settings read_settings() {
  constexpr double kGib = 1ull << 30;
  const int capability = number("FAKECUDA_CAPABILITY", 80);
  const char* name = std::getenv("FAKECUDA_NAME");
  Settings s;
  s.devices = number("FAKECUDA_DEVICES", 1);
  s.memory = number("FAKECUDA_MEMORY_GIB", 80) * kGib;
  s.used = number("FAKECUDA_USED_GIB", 0) * kGib;
  s.major = capability / 10;
  s.minor = capability % 10;
  s.name = name ? name : "Fake CUDA device";
  s.overflow = std::getenv("FAKECUDA_OVERFLOW");
  s.error = number("FAKECUDA_ERROR", 0);
  return s;
}

// The file of this process, or none.
int report_file() {
  const char* folder = std::getenv("FAKECUDA_REPORT");
  if (!folder) return -1;
  const char* rank = std::getenv("RANK");
  std::string path = std::string(folder) + "/" + (rank && *rank != '-' ? rank : "0");
  path += "-" + std::to_string(getpid());
  const int file = open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC, 0644);
  if (file < 0 || ftruncate(file, sizeof(Counter) * kCounters)) {
    std::perror(path.c_str());
    std::abort();
  }
  return file;
}

// Shared with the processes that are forked from here, so that their calls are counted as well.
Counter* map_counters() {
  const int file = report_file();
  void* mapped = mmap(nullptr, sizeof(Counter) * kCounters, PROT_READ | PROT_WRITE,
                      MAP_SHARED | (file < 0 ? MAP_ANONYMOUS : 0), file, 0);
  if (mapped == MAP_FAILED) std::abort();
  if (file >= 0) close(file);
  return static_cast<Counter*>(mapped);
}

// Without locks: a process may be forked at any moment.
Counter& counter(const char* kind, const char* name) {
  static Counter* const counters = map_counters();
  const uint64_t key = std::hash<std::string>{}(std::string(kind) + ":" + name) | 1;
  for (size_t i = 0; i < kCounters; ++i) {
    Counter& c = counters[(key + i) % kCounters];
    uint64_t found = 0;
    if (c.key.compare_exchange_strong(found, key)) {
      std::strncpy(c.kind, kind, sizeof c.kind - 1);
      std::strncpy(c.name, name, sizeof c.name - 1);
      return c;
    }
    if (found == key) return c;
  }
  std::fprintf(stderr, "fakecuda: more than %zu counters\n", kCounters);
  std::abort();
}

std::map<std::string, void*>& stubs() {
  static std::map<std::string, void*> table;
  return table;
}

thread_local int last_error = kSuccess;

int take_last_error() { return std::exchange(last_error, kSuccess); }
int see_last_error() { return last_error; }

}  // namespace

const Settings& settings() {
  static const Settings read = read_settings();
  return read;
}

void count(const char* kind, const char* name, size_t bytes) {
  Counter& c = counter(kind, name);
  ++c.calls;
  c.bytes += bytes;
}

void gauge(const char* kind, int device, size_t bytes) {
  counter(kind, std::to_string(device).c_str()).bytes = bytes;
}

int enter(const char* function) {
  static std::atomic<pid_t> owner{0};
  pid_t first = 0;
  if (!owner.compare_exchange_strong(first, getpid()) && first != getpid()) {
    count("forked", function);
    std::fprintf(stderr, "fakecuda: %s in a forked process\n", function);
    return kInitialization;
  }
  count("call", function);
  return settings().error;
}

int remember(int error) {
  if (error) last_error = error;
  return error;
}

int unimplemented(const char* function) {
  count("unimplemented", function);
  std::fprintf(stderr, "fakecuda: %s is not implemented\n", function);
  return kNotSupported;
}

void list(const char* function, void* stub) { stubs()[function] = stub; }

extern "C" {

const char* fakecuda_engine = nullptr;  // where it is loaded
size_t fakecuda_world = 1;              // ranks that the process stands for

// Writes a jump at the begin of a function of the engine, which has `size` bytes: to the stub of
// this name, or to `unimplemented` with the name. False if it has no room.
bool fakecuda_replace(void* function, size_t size, const char* name) {
  unsigned char code[] = {0x48, 0xbf, 0, 0, 0, 0, 0, 0, 0, 0,  // mov rdi, name
                          0x48, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0,  // mov rax, target
                          0xff, 0xe0};                         // jmp rax
  const auto stub = stubs().find(name);
  const bool known = stub != stubs().end();
  const void* target = known ? stub->second : reinterpret_cast<void*>(&unimplemented);
  const char* kept = known ? nullptr : strdup(name);
  std::memcpy(code + 2, &kept, sizeof kept);
  std::memcpy(code + 12, &target, sizeof target);
  const size_t first = known ? 10 : 0;  // a stub gets the arguments of the call
  void* page = reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(function) & ~uintptr_t{4095});
  if (size < sizeof code - first) return false;
  if (mprotect(page, 8192, PROT_READ | PROT_WRITE | PROT_EXEC)) return false;
  std::memcpy(function, code + first, sizeof code - first);
  return mprotect(page, 8192, PROT_READ | PROT_EXEC) == 0;
}

}  // extern "C"

long offset_in_engine(const char* kernel) { return kernel - fakecuda_engine; }

namespace {

// In place of the engine's only where one process stands for all: see compile.py.
size_t world_size() { return fakecuda_world; }

const bool listed = [] {
  list("cudaGetLastError", reinterpret_cast<void*>(take_last_error));
  list("cudaPeekAtLastError", reinterpret_cast<void*>(see_last_error));
  list("WorldSize", reinterpret_cast<void*>(world_size));
  return true;
}();

}  // namespace
}  // namespace fakecuda
