"""LiBai's static graph, repaired for OneFlow 0.9.0."""

from __future__ import annotations

import functools
import operator
from typing import Any, NamedTuple

import oneflow as flow
import oneflow.framework.config_util as config_util
import oneflow.framework.session_context as session_context
from libai.layers import TransformerLayer
from libai.models.utils import GraphBase
from libai.utils import distributed as dist
from oneflow import Tensor, nn

from libai_ext.engine.pipeline_buffers import shorten
from libai_ext.engine.sharding import gather_in_graph, gather_on_use
from libai_ext.placement import device_type

_TRAIN_STEP = "System-Train-TrainStep"
_SCALER = "System-Train-DynamicLossScale-"
# In a checkpoint -> the end of the engine's name.
_SCALER_STATE = {"loss_scale": "LossScale", "good_steps": "GoodStepCounter"}


class Counters(NamedTuple):
    """What a training graph counts by itself."""

    # Optimizer steps since the start of the run.
    taken: int
    # The next step's loss is multiplied by it for the backward pass.
    loss_scale: float
    # Steps since the last one that was left out, or since the scale grew.
    good: int


class Graph(GraphBase):
    """Training or evaluation graph of any model whose modules carry ``layer_idx``.

    LiBai 0.1.1 reaches modules through ``.origin`` and sets ``.config.stage_id``; OneFlow 0.9.0
    has neither. Stages come from each module's ``layer_idx`` here, so that models need no
    ``set_pipeline_stage_id`` of their own. It asks for ZeRO by a method that OneFlow 0.9.0 has
    renamed.
    """

    _full_graph_proto: Any  # a protobuf message

    def __init__(self, model, *args, zero_optim: bool = False, zero_stage: int = 1, **kwargs):
        if device_type() == "cpu":
            use_single_cpu_stream()
        super().__init__(model, *args, **kwargs)
        choose_nccl_stream()
        if self.is_train and zero_optim:
            self._cut_weights(model, zero_stage)
        self._scales = False
        if self.is_train:
            # A loss scale of one that never changes. What comes with it: a step whose gradients
            # are not all finite changes neither weights nor optimizer state nor the schedule.
            self.set_grad_scaler(flow.amp.GradScaler(1.0, 1.0, 1.0, growth_interval=1))

    def _cut_weights(self, model, stage: int) -> None:
        """Ask for ZeRO.

        The engine's least size of a part, 1024 elements, stays: biases and norms are cheap to hold
        and slow to gather. By its restore level 1, every whole weight lives from the forward to
        the backward pass, and stage 3 saves no more than stage 1; by level 2 it does. Without the
        compute stream, memory of communication is not reused, which costs more than ZeRO saves.
        """
        self.config.enable_zero(True, stage=stage, shard_restore_level=2)
        flow.boxing.nccl.enable_use_compute_stream(True)
        gather_on_use(model)

    def build(self, **inputs):
        """One pass, and when training its backward pass.

        ``sum()``, as LiBai adds losses, begins with 0, and to add that each loss is first brought
        together from the data-parallel ranks; in accumulation that goes through the hosts.
        """
        gather_in_graph(self.model)
        outputs = self.model(**inputs)
        if self.is_train:
            functools.reduce(operator.add, outputs.values()).backward()
        return outputs

    def scale_loss(self, init_scale: float, growth_interval: int) -> None:
        """Multiply the loss, so that small gradients are not lost in float16.

        Args:
            init_scale: halved after each step with gradients that are not finite; LiBai's 2 ** 30
                overflows in the first steps of any model.
            growth_interval: steps without one after which it is doubled.
        """
        self._scales = True
        self.set_grad_scaler(flow.amp.GradScaler(init_scale, 2.0, 0.5, growth_interval))

    def state_dict(self, destination=None) -> dict:
        """Optimizer, schedule and loss scaler only: the module's tensors are in its own state
        dict."""
        state = super().state_dict(destination)
        renamed = {self._scaler_name(part): name for name, part in _SCALER_STATE.items()}
        return {
            renamed.get(name, name): value
            for name, value in state.items()
            if isinstance(value, Tensor) and (self._scales or name not in renamed)
        }

    def load_state_dict(self, state_dict: dict, strict: bool = True) -> None:
        """The loss scale of a run in float32 is not one to go on from in mixed precision, nor the
        other way round: it is taken where both have a scaler."""
        state = {}
        for name, value in state_dict.items():
            if name in _SCALER_STATE:
                if self._scales:
                    state[self._scaler_name(_SCALER_STATE[name])] = value
            elif not name.startswith(_SCALER):
                state[name] = value
        super().load_state_dict(state, strict)

    def _scaler_name(self, part: str) -> str:
        """The engine's; it holds the number of the graph within its process."""
        return f"{_SCALER}{self.name}-{part}"

    def wait(self) -> None:
        """Until all that is queued is done, whoever asked for it."""
        flow._oneflow_internal.eager.Sync()

    def counters(self) -> Counters:
        """Of the steps done; waits for those that are queued. On rank 0, where they live."""
        self.wait()
        graph = self._c_nn_graph
        found = dict(zip(graph.additional_var_names, graph.additional_var_tensors))
        names = (_TRAIN_STEP, *(self._scaler_name(part) for part in _SCALER_STATE.values()))
        taken, scale, good = (found[name].to_local().numpy().item() for name in names)
        return Counters(taken, scale, good)

    def set_activation_checkpoint(self) -> None:
        for block in self.model.modules():
            if isinstance(block.to(nn.Module), TransformerLayer):
                block.to(nn.graph.GraphModule).activation_checkpointing = True

    def set_pipeline_stage_id(self) -> None:
        util = dist.get_dist_util()
        if not util.is_pipeline_model_parallel():
            return
        for block in self.model.modules():
            layer_idx = getattr(block.to(nn.Module), "layer_idx", None)
            if layer_idx is not None:
                block.to(nn.graph.GraphModule).set_stage(
                    util.get_layer_stage_id(layer_idx), dist.get_layer_placement(layer_idx)
                )

    def finish_complie_and_init_runtime(self) -> None:
        stages = dist.get_dist_util().pipeline_parallel_size
        if self.is_train and stages > 1:
            job = self._full_graph_proto
            shorten(job, stages)
            self._full_graph_proto = job
        super().finish_complie_and_init_runtime()


def choose_nccl_stream() -> None:
    """Give NCCL a stream of its own where data-parallel ranks send gradients and layers are whole.

    There OneFlow sends gradients in groups of ``train.nccl_fusion_*`` while the backward pass goes
    on; on the stream of the kernels, as LiBai has it, each by itself and in turn with them. The
    order of the groups is part of the plan that all ranks run, so that no two wait for each
    other. It costs up to three times the memory of the gradients in float32.

    Tensor-parallel layers need their sums at once, and a micro-batch's sums that are not on the
    stream of the kernels go through the hosts. One data-parallel rank has no gradients to send,
    and would still pay 4 bytes a parameter.
    """
    own = dist.get_data_parallel_size() > 1 and dist.get_tensor_parallel_size() == 1
    flow.boxing.nccl.enable_use_compute_stream(not own)


def use_single_cpu_stream() -> None:
    """Run graph kernels on one CPU stream.

    Gradient accumulation in ``nn.Graph`` races on OneFlow 0.9.0's several CPU streams and gives
    wrong gradients in more than half of the runs. All graphs of a process share the setting: the
    engine aborts when one is built under another.
    """
    session_context.GetDefaultSession().TryInit()
    config_util._set_resource_attr("cpu_device_num", 1, int)
