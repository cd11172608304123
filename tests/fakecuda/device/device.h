// What the parts of the device share: settings, counters, the table of stubs.
#pragma once
#include <cstddef>

namespace fakecuda {

// Numbers of cudaError_t.
enum Error {
  kSuccess = 0,
  kInvalidValue = 1,
  kOutOfMemory = 2,
  kInitialization = 3,
  kInvalidConfiguration = 9,
  kInvalidDevice = 101,
  kNoKernelImage = 209,
  kNotSupported = 801,
};

// From FAKECUDA_* of the environment.
struct Settings {
  int devices;
  size_t memory;         // bytes of a device
  size_t used;           // of these, by other programs
  int major, minor;      // compute capability
  const char* name;      // of each device
  const char* overflow;  // which steps' gradients are not finite, see finite_check.cpp
  int error;             // that every call returns, 0: none
};
const Settings& settings();

constexpr int kMaxDevices = 64;

// Counters are kept by kind and name in a file that outlives the process, however it ends.
void count(const char* kind, const char* name, size_t bytes = 0);
void gauge(const char* kind, int device, size_t bytes);

// Counts a call; the error that it must return at once: that of the settings, or the one for a
// process that was forked from one that has used CUDA.
int enter(const char* function);
// Keeps an error for cudaGetLastError and returns it.
int remember(int error);
// Counts a call of a function that does not exist here; returns an error.
int unimplemented(const char* function);
// Where a kernel of the engine is in its library.
long offset_in_engine(const char* kernel);

// Makes `stub` take the place of the engine's function of this name.
void list(const char* function, void* stub);

template<auto function>
struct Guard;

template<typename... Arguments, int (*function)(Arguments...)>
struct Guard<function> {
  static inline const char* name = nullptr;
  static int call(Arguments... arguments) {
    const int error = enter(name);
    return remember(error ? error : function(arguments...));
  }
  static bool list(const char* of) {
    name = of;
    fakecuda::list(of, reinterpret_cast<void*>(&call));
    return true;
  }
};

// A function of the CUDA runtime: CUDA(name, parameters) { body }.
#define CUDA(name, ...)                                                 \
  static int name(__VA_ARGS__);                                         \
  static const bool name##_listed = fakecuda::Guard<name>::list(#name); \
  static int name(__VA_ARGS__)

using Stream = void*;

int current_device();

// A launch of the loss scaler's finite check; `arguments` are those of the kernel.
void finite_check(const void* kernel, void** arguments);
// A clearing of `address`, which comes before the launches of a check.
void finite_check_clears(const void* address);

}  // namespace fakecuda
