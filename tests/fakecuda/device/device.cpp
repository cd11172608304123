// Settings, counters, and how the engine's functions are replaced.
#include "device.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>

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
  Settings s{};
  s.devices = static_cast<int>(number("FAKECUDA_DEVICES", 1));
  s.memory = static_cast<size_t>(number("FAKECUDA_MEMORY_GIB", 80) * (1ull << 30));
  s.used = static_cast<size_t>(number("FAKECUDA_USED_GIB", 0) * (1ull << 30));
  const int capability = static_cast<int>(number("FAKECUDA_CAPABILITY", 80));
  s.major = capability / 10;
  s.minor = capability % 10;
  const char* name = std::getenv("FAKECUDA_NAME");
  s.name = name ? name : "Fake CUDA device";
  s.overflow = std::getenv("FAKECUDA_OVERFLOW");
  s.error = static_cast<int>(number("FAKECUDA_ERROR", 0));
  return s;
}

// Shared with the processes that are forked from here, so that their calls are counted as well.
Counter* map_counters() {
  const char* folder = std::getenv("FAKECUDA_REPORT");
  int file = -1;
  if (folder) {
    const char* rank = std::getenv("RANK");
    const std::string path = std::string(folder) + "/" + (rank && *rank != '-' ? rank : "0") + "-" +
                             std::to_string(getpid());
    file = open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC, 0644);
    if (file < 0 || ftruncate(file, sizeof(Counter) * kCounters)) {
      std::perror(path.c_str());
      std::abort();
    }
  }
  void* mapped = mmap(nullptr, sizeof(Counter) * kCounters, PROT_READ | PROT_WRITE,
                      MAP_SHARED | (folder ? 0 : MAP_ANONYMOUS), file, 0);
  if (folder) close(file);
  if (mapped == MAP_FAILED) std::abort();
  return static_cast<Counter*>(mapped);
}

uint64_t hash(const char* kind, const char* name) {
  uint64_t h = 14695981039346656037ull;  // FNV-1a
  for (const char* text : {kind, name}) {
    for (; *text; ++text) h = (h ^ static_cast<unsigned char>(*text)) * 1099511628211ull;
    h = (h ^ 0xff) * 1099511628211ull;
  }
  return h ? h : 1;
}

// Without locks: a process may be forked at any moment.
Counter& counter(const char* kind, const char* name) {
  static Counter* const counters = map_counters();
  const uint64_t key = hash(kind, name);
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

int fakecuda_take_last_error() {
  const int error = last_error;
  last_error = kSuccess;
  return error;
}

int fakecuda_last_error() { return last_error; }

// Writes at the begin of a function of the engine, which has `size` bytes, a jump to the stub of
// this name, or to `unimplemented` with the name. False if it has no room.
bool fakecuda_replace(void* function, size_t size, const char* name) {
  const auto found = stubs().find(name);
  unsigned char code[22] = {0x48, 0xbf, 0, 0, 0, 0, 0, 0, 0, 0,   // mov rdi, name
                            0x48, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0,   // mov rax, to
                            0xff, 0xe0};                          // jmp rax
  const bool known = found != stubs().end();
  void* to = known ? found->second : reinterpret_cast<void*>(&unimplemented);
  const char* kept = known ? nullptr : strdup(name);
  std::memcpy(code + 2, &kept, sizeof kept);
  std::memcpy(code + 12, &to, sizeof to);
  const size_t skipped = known ? 10 : 0;  // a stub needs its own first argument
  if (size < sizeof code - skipped) return false;
  const uintptr_t page = reinterpret_cast<uintptr_t>(function) & ~uintptr_t{4095};
  void* pages = reinterpret_cast<void*>(page);
  if (mprotect(pages, 8192, PROT_READ | PROT_WRITE | PROT_EXEC)) return false;
  std::memcpy(function, code + skipped, sizeof code - skipped);
  return mprotect(pages, 8192, PROT_READ | PROT_EXEC) == 0;
}

}  // extern "C"
}  // namespace fakecuda
