// Lets OneFlow's scheduler sleep while it waits for a graph on CPU.
//
// A step of a graph is one instruction of OneFlow 0.9.0's virtual machine. Until it ends, the
// thread that schedules instructions looks for others and yields, without end: it takes a core from
// the threads that compute. In eager mode such waits are short; a GPU needs its kernels at once.
#include <sched.h>
#include <time.h>

#include <chrono>

#include "imported_function.h"

namespace libai_ext {
namespace {

using Clock = std::chrono::steady_clock;

// In place of sched_yield: after many calls with next to no work in between, sleeps.
int YieldOrSleep() {
  constexpr auto kNoWork = std::chrono::microseconds(5);
  constexpr int kYields = 2000;
  constexpr timespec kSleep = {0, 50000};
  thread_local Clock::time_point last;
  thread_local int yields = 0;
  yields = Clock::now() - last < kNoWork ? yields + 1 : 0;
  const int result = yields < kYields ? sched_yield() : nanosleep(&kSleep, nullptr);
  last = Clock::now();
  return result;
}

}  // namespace
}  // namespace libai_ext

// From now on, OneFlow sleeps in long waits. Returns whether it could be done.
extern "C" int64_t libai_ext_sleep_in_waits() {
  return libai_ext::ReplaceImportOfOneFlow("sched_yield", &libai_ext::YieldOrSleep);
}
