// The check of the loss scaler for gradients that are not finite, answered by a rule.
//
// OneFlow 0.9.0 has one such op for each group of gradients that lie alike; it clears its count
// and launches a kernel for every 128 gradients. The rule decides once for a training step.
#include <cstdint>
#include <cstdlib>
#include <cstring>
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

// Set once, while the engine is loaded.
std::vector<const void*> kernels;

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

}  // namespace

void finite_check_clears(const void* address) { cleared = address; }

void finite_check(const void* kernel, void** arguments) {
  bool checks = false;
  for (const void* known : kernels) checks = checks || known == kernel;
  if (!checks) return;
  const auto* gradients = static_cast<const Gradients*>(arguments[0]);
  if (cleared != gradients->count) return;  // a further launch of the same check
  cleared = nullptr;
  std::vector<int64_t> sizes(gradients->sizes, gradients->sizes + gradients->number);
  const std::lock_guard<std::mutex> lock(mutex);
  if (step < 0 || seen.count(sizes)) {
    ++step;
    seen.clear();
  }
  const bool overflow = overflows(settings().overflow, step);
  if (seen.empty()) count("finite_check", overflow ? "overflow" : "finite");
  seen.insert(std::move(sizes));
  if (overflow) *gradients->count = 1;
}

extern "C" void fakecuda_finite_check(const void* kernel) {
  if (settings().overflow) kernels.push_back(kernel);
}

}  // namespace fakecuda
