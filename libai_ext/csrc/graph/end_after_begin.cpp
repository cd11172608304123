// Lets a step of a graph end only when OneFlow has noted that it began.
//
// OneFlow 0.9.0's virtual machine starts a step and then puts it in a queue; the thread that ends
// the step takes it out. If the first thread loses its core in between, a short step ends before
// it is in the queue. What is taken out of the empty queue then is memory that others may own: the
// process crashes, at once or much later.
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <unordered_map>

#include "imported_function.h"
#include "lazy_job_stream_policy.h"

namespace libai_ext {
namespace {

using Queue = oneflow::vm::LazyJobStreamPolicy;

// Steps in each queue.
struct Begun {
  std::mutex mutex;
  std::condition_variable grew;
  std::unordered_map<Queue*, int64_t> steps;
};

// Never destroyed: a step may end while the process does.
Begun& GetBegun() {
  static auto* begun = new Begun;
  return *begun;
}

void Enqueue(Queue* queue, const std::shared_ptr<oneflow::NNGraphIf>& graph) {
  queue->EnqueueNNGraph(graph);
  Begun& begun = GetBegun();
  std::lock_guard<std::mutex> lock(begun.mutex);
  ++begun.steps[queue];
  begun.grew.notify_all();
}

void Dequeue(Queue* queue) {
  Begun& begun = GetBegun();
  {
    std::unique_lock<std::mutex> lock(begun.mutex);
    int64_t& steps = begun.steps[queue];
    begun.grew.wait(lock, [&] { return steps > 0; });
    --steps;
  }
  queue->DequeueNNGraph();
}

}  // namespace
}  // namespace libai_ext

// From now on, steps of graphs end after they have begun. Returns whether it could be done. Call it
// before the first step.
extern "C" int64_t libai_ext_end_after_begin() {
  // In this order: what is only counted does no harm.
  return libai_ext::ReplaceImportOfOneFlow(
             "_ZN7oneflow2vm19LazyJobStreamPolicy14EnqueueNNGraphERKSt10shared_ptrINS_9NNGraphIfEE",
             &libai_ext::Enqueue) &&
         libai_ext::ReplaceImportOfOneFlow("_ZN7oneflow2vm19LazyJobStreamPolicy14DequeueNNGraphEv",
                                           &libai_ext::Dequeue);
}
