// The queue of the steps of graphs that run; the header is not in OneFlow's wheel. Of the class,
// only two functions: nothing here makes one or knows its size.
#pragma once

#include <memory>

namespace oneflow {

class NNGraphIf;

namespace vm {

class LazyJobStreamPolicy {
 public:
  void EnqueueNNGraph(const std::shared_ptr<NNGraphIf>& nn_graph);
  void DequeueNNGraph();
};

}  // namespace vm
}  // namespace oneflow
