// Lets the buffers of a graph share memory on CPU.
//
// OneFlow 0.9.0's planner gives two buffers the same memory if their ops run one after the other.
// It skips ops on CPU, for two reasons: it does not fix their order, and a buffer in host memory
// begins with its shape, which is written only once. So before the planner runs, the ops of a CPU
// stream get an order, and their buffers a shape that is stored elsewhere; while it runs, they look
// like those of another device.
//
// The words of OneFlow: a plan is a list of tasks. A task is an op on one rank; a register
// ("regst") is one of its outputs or its scratch memory. A control register holds no data: the task
// that consumes it waits for the task that produces it. The time shape of a task says how often it
// runs in a step. A task that runs for the next micro-batch waits until its registers have been
// consumed.
#include <algorithm>
#include <functional>
#include <map>
#include <numeric>
#include <set>
#include <string>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "imported_function.h"
#include "oneflow/core/common/data_type.h"
#include "oneflow/core/graph/stream_id.h"
#include "oneflow/core/job/intra_job_mem_sharing_util.h"
#include "oneflow/core/job/plan_util.h"

namespace oneflow {

// Of oneflow/core/graph/task_node.h, which the wheel lacks.
RegstDescProto* FindOrCreateProducedCtrlRegstDesc(TaskProto* task, const std::string& name);
RegstDescIdSet* FindOrCreateConsumedCtrlRegstDescIdSet(TaskProto* task, const std::string& name);

}  // namespace oneflow

namespace libai_ext {
namespace {

using oneflow::Plan;
using oneflow::PlanUtil;
using oneflow::RegstDescProto;
using oneflow::StreamId;
using oneflow::TaskProto;
using IsReachable = std::function<bool(const std::string&, const std::string&)>;
using Tasks = std::vector<TaskProto*>;

// Tasks of one stream and time shape that are connected by data. Other tasks, such as buffers
// between the forward and the backward pass of a pipeline stage, are between two such groups, which
// work on different micro-batches at the same time.
struct Chains {
  Tasks tasks;               // of all chains, in topological order
  std::vector<size_t> head;  // for each task, the index of one task of its chain
};

class PlanIndex {
 public:
  explicit PlanIndex(Plan* plan) : plan_(plan) {
    for (TaskProto& task : *plan->mutable_task()) {
      tasks_[task.task_id()] = &task;
      for (const auto& pair : task.produced_regst_desc()) {
        registers_[pair.second.regst_desc_id()] = &pair.second;
      }
    }
  }

  const TaskProto& Task(int64_t id) const { return *tasks_.at(id); }

  // Whether the planner may order the task, by the rules that it has for GPUs.
  bool CanBeOrdered(const TaskProto& task) const {
    if (task.task_type() != oneflow::TaskType::kNormalForward) { return false; }
    const auto& kernel = task.exec_sequence().exec_node(0).kernel_conf();
    const auto& op = PlanUtil::GetOpAttribute(plan_, task.job_id(), kernel).op_conf();
    if (!op.has_user_conf() || op.user_conf().op_type_name() == "identity_buffer") { return false; }
    for (const auto& pair : task.produced_regst_desc()) {
      if (pair.second.register_num() > 1) { return false; }
    }
    return true;
  }

  // The time shape of the task's outputs, or of its inputs if it has none; empty if they differ.
  std::string TimeShape(const TaskProto& task) const {
    std::set<std::string> found;
    for (const auto& pair : task.produced_regst_desc()) { AddTimeShape(pair.second, &found); }
    if (found.empty()) { return InputTimeShape(task); }
    return found.size() == 1 ? *found.begin() : "";
  }

  std::string InputTimeShape(const TaskProto& task) const {
    std::set<std::string> found;
    for (const auto& pair : task.consumed_regst_desc_id()) {
      for (int64_t id : pair.second.regst_desc_id()) { AddTimeShape(*registers_.at(id), &found); }
    }
    return found.size() == 1 ? *found.begin() : "";
  }

 private:
  static void AddTimeShape(const RegstDescProto& regst, std::set<std::string>* found) {
    const auto& type = regst.regst_desc_type();
    if (type.has_data_regst_desc()) {
      found->insert(type.data_regst_desc().time_shape().SerializeAsString());
    }
  }

  Plan* plan_;
  std::unordered_map<int64_t, TaskProto*> tasks_;
  std::unordered_map<int64_t, const RegstDescProto*> registers_;
};

size_t FindHead(std::vector<size_t>* head, size_t task) {
  while ((*head)[task] != task) { task = (*head)[task] = (*head)[(*head)[task]]; }
  return task;
}

Chains FindChains(Plan* plan, const PlanIndex& index) {
  Chains chains;
  for (TaskProto& task : *plan->mutable_task()) {
    if (index.CanBeOrdered(task) && !index.TimeShape(task).empty()) {
      chains.tasks.push_back(&task);
    }
  }
  std::sort(chains.tasks.begin(), chains.tasks.end(), [](TaskProto* a, TaskProto* b) {
    return a->task_set_info().order_in_graph() < b->task_set_info().order_in_graph();
  });
  chains.head.resize(chains.tasks.size());
  std::iota(chains.head.begin(), chains.head.end(), 0);

  using Kind = std::tuple<int64_t, int64_t, std::string>;
  std::unordered_map<int64_t, std::pair<size_t, Kind>> known;
  for (size_t i = 0; i < chains.tasks.size(); ++i) {
    const TaskProto& task = *chains.tasks[i];
    known[task.task_id()] = {i, Kind(task.machine_id(), task.thrd_id(), index.TimeShape(task))};
  }
  for (const TaskProto* task : chains.tasks) {
    const auto& [from, kind] = known[task->task_id()];
    for (const auto& pair : task->produced_regst_desc()) {
      if (!pair.second.regst_desc_type().has_data_regst_desc()) { continue; }
      for (int64_t id : pair.second.consumer_task_id()) {
        const auto to = known.find(id);
        if (to != known.end() && to->second.second == kind) {
          chains.head[FindHead(&chains.head, to->second.first)] = FindHead(&chains.head, from);
        }
      }
    }
  }
  for (size_t i = 0; i < chains.tasks.size(); ++i) { chains.head[i] = FindHead(&chains.head, i); }
  return chains;
}

bool Consumes(const TaskProto& producer, int64_t task_id) {
  for (const auto& pair : producer.produced_regst_desc()) {
    for (int64_t id : pair.second.consumer_task_id()) {
      if (id == task_id) { return true; }
    }
  }
  return false;
}

void RunAfter(TaskProto* first, TaskProto* second) {
  if (Consumes(*first, second->task_id())) { return; }
  auto* regst = oneflow::FindOrCreateProducedCtrlRegstDesc(first, "out_ctrl_shared_mem_order");
  regst->add_consumer_task_id(second->task_id());
  oneflow::FindOrCreateConsumedCtrlRegstDescIdSet(second, "in_ctrl")
      ->add_regst_desc_id(regst->regst_desc_id());
}

// Topological order: no edge that is added here closes a circle, on one rank or over several.
void OrderTasks(const Chains& chains) {
  std::unordered_map<size_t, TaskProto*> last;
  for (size_t i = 0; i < chains.tasks.size(); ++i) {
    TaskProto*& before = last[chains.head[i]];
    if (before) { RunAfter(before, chains.tasks[i]); }
    before = chains.tasks[i];
    before->mutable_task_set_info()->set_chain_id(static_cast<int64_t>(chains.head[i]));
  }
}

// The tasks that cannot run before a task has.
std::set<int64_t> TasksAfter(const TaskProto& task, const PlanIndex& index) {
  std::set<int64_t> found;
  std::vector<const TaskProto*> open{&task};
  while (!open.empty()) {
    const TaskProto& next = *open.back();
    open.pop_back();
    for (const auto& pair : next.produced_regst_desc()) {
      for (int64_t id : pair.second.consumer_task_id()) {
        if (found.insert(id).second) { open.push_back(&index.Task(id)); }
      }
    }
  }
  return found;
}

// Accumulates gradients when all chains of a rank have run for the micro-batch. OneFlow 0.9.0
// changes a parameter as soon as its gradient is known, also if a task of the last micro-batch has
// yet to read it.
void AccumulateLast(Plan* plan, const Chains& chains, const PlanIndex& index) {
  std::map<std::pair<int64_t, std::string>, Tasks> accumulations;  // by rank and time shape
  for (TaskProto& task : *plan->mutable_task()) {
    if (task.task_type() == oneflow::TaskType::kAcc) {
      accumulations[{task.machine_id(), index.InputTimeShape(task)}].push_back(&task);
    }
  }
  std::map<size_t, TaskProto*> last;
  for (size_t i = 0; i < chains.tasks.size(); ++i) { last[chains.head[i]] = chains.tasks[i]; }
  for (const auto& pair : last) {
    TaskProto* const task = pair.second;
    const auto waiting = accumulations.find({task->machine_id(), index.TimeShape(*task)});
    if (waiting == accumulations.end()) { continue; }
    // The forward pass of a pipeline stage, which comes before anyway, may go on with the next
    // micro-batch.
    const std::set<int64_t> after = TasksAfter(*task, index);
    for (TaskProto* accumulation : waiting->second) {
      if (!after.count(accumulation->task_id())) { RunAfter(task, accumulation); }
    }
  }
}

// Whether the register holds numbers. Others (records, tensors of several sizes) are C++ objects,
// which are made once, when the graph is.
bool HoldsNumbers(const RegstDescProto& regst) {
  const auto& type = regst.regst_desc_type();
  if (!type.has_data_regst_desc()) { return false; }
  const auto& blobs = type.data_regst_desc().lbi2blob_desc();
  return std::all_of(blobs.begin(), blobs.end(), [](const auto& blob) {
    return oneflow::IsPODAndHalfDataType(blob.blob_desc().data_type());
  });
}

// Registers whose memory may be shared. Another rank reads a register at a time of its own.
std::vector<RegstDescProto*> SharedRegisters(const Chains& chains, const PlanIndex& index) {
  std::vector<RegstDescProto*> shared;
  for (TaskProto* task : chains.tasks) {
    for (auto& pair : *task->mutable_produced_regst_desc()) {
      RegstDescProto& regst = pair.second;
      const auto& readers = regst.consumer_task_id();
      if (HoldsNumbers(regst) && regst.enable_reuse_mem() &&
          std::all_of(readers.begin(), readers.end(), [&](int64_t id) {
            return index.Task(id).machine_id() == task->machine_id();
          })) {
        shared.push_back(&regst);
      }
    }
  }
  return shared;
}

int64_t OnDevice(int64_t thread_id, oneflow::DeviceType type) {
  const StreamId id = oneflow::DecodeStreamIdFromInt64(thread_id);
  return oneflow::EncodeStreamIdToInt64(
      StreamId(id.rank(), type, id.device_index(), id.stream_index()));
}

void SetDevice(const Tasks& tasks, const std::vector<RegstDescProto*>& registers,
               oneflow::DeviceType type) {
  for (TaskProto* task : tasks) { task->set_thrd_id(OnDevice(task->thrd_id(), type)); }
  for (RegstDescProto* regst : registers) { regst->mutable_mem_case()->set_device_type(type); }
}

bool IsOnCpu(const TaskProto& task) {
  return PlanUtil::GetStreamId(task).device_type() == oneflow::DeviceType::kCPU;
}

void PlanMemory(Plan* plan, const IsReachable& is_reachable) {
  const auto plan_memory = oneflow::IntraJobMemSharingUtil::InferMemBlockId4MemReusedRegst;
  if (!std::all_of(plan->task().begin(), plan->task().end(), IsOnCpu)) {
    return plan_memory(plan, is_reachable);
  }
  const PlanIndex index(plan);
  const Chains chains = FindChains(plan, index);
  AccumulateLast(plan, chains, index);
  OrderTasks(chains);
  const auto registers = SharedRegisters(chains, index);
  SetDevice(chains.tasks, registers, oneflow::DeviceType::kCUDA);
  // A register that belongs to a variable has its shape in memory of its own. Which one that is,
  // OneFlow learns from the op, not from this name.
  for (RegstDescProto* regst : registers) { regst->set_variable_op_name("shared memory"); }
  plan_memory(plan, is_reachable);
  SetDevice(chains.tasks, registers, oneflow::DeviceType::kCPU);
}

}  // namespace
}  // namespace libai_ext

// From now on, CPU buffers of graphs share memory. Returns whether it could be done.
extern "C" int64_t libai_ext_share_graph_memory() {
  return libai_ext::ReplaceInOwnLibrary(
      &oneflow::IntraJobMemSharingUtil::InferMemBlockId4MemReusedRegst, &libai_ext::PlanMemory);
}
