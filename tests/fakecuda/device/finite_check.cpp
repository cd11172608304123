// The check of the loss scaler for gradients that are not finite, answered by a rule.
//
// OneFlow 0.9.0 has one such op for each group of gradients that lie alike; it clears its count
// and launches a kernel for every 128 gradients. The rule decides once for a training step. The
// counts of several groups are added on the device, which is done here as well.
#include <cstdint>
#include <cstdlib>
#include <initializer_list>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "device.h"

namespace fakecuda {
namespace {

// The one parameter of the kernel, as in count_not_finite_kernel.cu.
struct Gradients {
  const void* values[128];
  int64_t sizes[128];
  int64_t* count;
  int64_t number;
};

// Of a check (no inputs), or of a sum of so many int64 arrays. Set while the engine is loaded.
std::map<const void*, int> kernels;

std::mutex mutex;
int64_t step = -1;
std::set<std::vector<int64_t>> seen;  // groups of this step, by the sizes of their gradients
thread_local const void* cleared = nullptr;

// "first:N": steps 0 to N - 1; "every:N": N - 1, 2 N - 1 ...; "steps:A,B": these.
bool overflows(const std::string& rule, int64_t at) {
  const size_t colon = rule.find(':');
  const std::string kind = rule.substr(0, colon);
  const std::string rest = rule.substr(colon + 1);
  if (kind == "first") return at < std::atoll(rest.c_str());
  if (kind == "every") return (at + 1) % std::atoll(rest.c_str()) == 0;
  return ("," + rest + ",").find("," + std::to_string(at) + ",") != std::string::npos;
}

void check(const Gradients& gradients) {
  if (cleared != gradients.count) return;  // a further launch of the same check
  cleared = nullptr;
  std::vector<int64_t> sizes(gradients.sizes, gradients.sizes + gradients.number);
  const std::lock_guard<std::mutex> lock(mutex);
  if (step < 0 || seen.count(sizes)) {
    ++step;
    seen.clear();
  }
  const bool overflow = overflows(settings().overflow, step);
  if (seen.empty()) count("finite_check", overflow ? "overflow" : "finite");
  seen.insert(std::move(sizes));
  if (overflow) *gradients.count = 1;
}

// The kernel of elementwise.cuh has a functor, then, for whole packs of elements and again for the
// rest: how many, the result, the inputs.
void add(void** arguments, int inputs) {
  for (void** part : {arguments + 1, arguments + 3 + inputs}) {
    if (*static_cast<int64_t*>(part[0]) != 1) continue;
    int64_t sum = 0;
    for (int i = 0; i < inputs; ++i) sum += **static_cast<int64_t**>(part[2 + i]);
    **static_cast<int64_t**>(part[1]) = sum;
  }
}

}  // namespace

void finite_check_clears(const void* address) { cleared = address; }

void finite_check(const void* kernel, void** arguments) {
  const auto found = kernels.find(kernel);
  if (found == kernels.end()) return;
  if (found->second) add(arguments, found->second);
  else check(*static_cast<const Gradients*>(arguments[0]));
}

extern "C" void fakecuda_finite_check(const void* kernel, int inputs) {
  if (settings().overflow) kernels[kernel] = inputs;
}

}  // namespace fakecuda
