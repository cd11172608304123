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

from libai_ext.engine.pipeline_buffers import shrink
from libai_ext.engine.sharding import gather_in_graph, gather_on_use
from libai_ext.placement import device_type

_TRAIN_STEP = "System-Train-TrainStep"
_SCALER = "System-Train-DynamicLossScale-"
# In a checkpoint -> the end of the engine's name.
_SCALER_STATE = {"loss_scale": "LossScale", "good_steps": "GoodStepCounter"}


class Counters(NamedTuple):
    """Counters in a training graph."""

    # Optimizer steps since the start of the run.
    taken: int
    # Factor of the next step's loss in the backward pass.
    loss_scale: float
    # Steps since the last skipped one, or since the scale grew.
    good: int


class Graph(GraphBase):
    """Training or evaluation graph of any model whose modules carry ``layer_idx``.

    LiBai 0.1.1 reaches modules through ``.origin`` and sets ``.config.stage_id``; OneFlow 0.9.0
    has neither. Here the stage comes from each module's ``layer_idx``, so that models need no
    ``set_pipeline_stage_id``. LiBai also enables ZeRO by a method that OneFlow 0.9.0 has renamed.
    """

    _full_graph_proto: Any  # a protobuf message

    def __init__(self, model, *args, zero_optim: bool = False, zero_stage: int = 1, **kwargs):
        if device_type() == "cpu":
            use_single_cpu_stream()
        super().__init__(model, *args, **kwargs)
        choose_nccl_stream()
        if self.is_train and zero_optim:
            self._enable_zero(model, zero_stage)
        self._scales = False
        if self.is_train:
            # A constant loss scale of one. With it, the engine skips a step whose gradients are not
            # finite: weights, optimizer state and schedule do not change.
            self.set_grad_scaler(flow.amp.GradScaler(1.0, 1.0, 1.0, growth_interval=1))

    def _enable_zero(self, model, stage: int) -> None:
        """Enable ZeRO.

        The engine's minimum shard of 1024 elements stays: biases and norms are small and slow to
        gather. At restore level 1, each gathered weight lives from the forward to the backward
        pass, and stage 3 saves no more than stage 1; level 2 frees it. Without the compute stream,
        memory of communication is not reused, which costs more than ZeRO saves.
        """
        self.config.enable_zero(True, stage=stage, shard_restore_level=2)
        flow.boxing.nccl.enable_use_compute_stream(True)
        gather_on_use(model)

    def build(self, **inputs):
        """Forward pass, and backward pass in training.

        LiBai adds the losses by ``sum()``, which starts from 0. To add 0, the engine first gathers
        each loss from the data-parallel ranks, with accumulation through the hosts.
        """
        gather_in_graph(self.model)
        outputs = self.model(**inputs)
        if self.is_train:
            functools.reduce(operator.add, outputs.values()).backward()
        return outputs

    def scale_loss(self, init_scale: float, growth_interval: int) -> None:
        """Scale the loss, so that small gradients do not underflow in float16.

        Args:
            init_scale: halved after each step with non-finite gradients; LiBai's 2 ** 30 overflows
                in the first steps of any model.
            growth_interval: it is doubled after so many steps without such gradients.
        """
        self._scales = True
        self.set_grad_scaler(flow.amp.GradScaler(init_scale, 2.0, 0.5, growth_interval))

    def state_dict(self, destination=None) -> dict:
        """Optimizer, schedule and loss scaler; the module's tensors are in its own state dict."""
        state = super().state_dict(destination)
        renamed = {self._scaler_name(part): name for name, part in _SCALER_STATE.items()}
        return {
            renamed.get(name, name): value
            for name, value in state.items()
            if isinstance(value, Tensor) and (self._scales or name not in renamed)
        }

    def load_state_dict(self, state_dict: dict, strict: bool = True) -> None:
        """Load the state. The loss scale is loaded only if both runs are in mixed precision."""
        state = {}
        for name, value in state_dict.items():
            if name in _SCALER_STATE:
                if self._scales:
                    state[self._scaler_name(_SCALER_STATE[name])] = value
            elif not name.startswith(_SCALER):
                state[name] = value
        super().load_state_dict(state, strict)

    def _scaler_name(self, part: str) -> str:
        """The engine's name; it includes the number of the graph in its process."""
        return f"{_SCALER}{self.name}-{part}"

    def wait(self) -> None:
        """Wait until all queued work of the engine is done."""
        flow._oneflow_internal.eager.Sync()

    def counters(self) -> Counters:
        """Counters after all queued steps, for which it waits; only on rank 0."""
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
            shrink(job, stages)
            self._full_graph_proto = job
        super().finish_complie_and_init_runtime()


def choose_nccl_stream() -> None:
    """Give NCCL its own stream if there is data but no tensor parallelism.

    On its own stream OneFlow sends gradients in groups of ``train.nccl_fusion_*`` during the
    backward pass. On the stream of the kernels, LiBai's choice, it sends each one by itself, in
    turn with the kernels. All ranks run the same plan with one order of groups, so no deadlock is
    possible. It costs up to three times the memory of the float32 gradients.

    Tensor-parallel layers need their sums at once, and the sums of a micro-batch would go through
    the hosts. One data-parallel rank sends no gradients, and would still pay 4 bytes a parameter.
    """
    own = dist.get_data_parallel_size() > 1 and dist.get_tensor_parallel_size() == 1
    flow.boxing.nccl.enable_use_compute_stream(not own)


def use_single_cpu_stream() -> None:
    """Run graph kernels on one CPU stream.

    With several CPU streams, gradient accumulation in ``nn.Graph`` of OneFlow 0.9.0 has a race and
    gives wrong gradients in more than half of the runs. All graphs of a process must have the same
    setting: otherwise the engine aborts.
    """
    session_context.GetDefaultSession().TryInit()
    config_util._set_resource_attr("cpu_device_num", 1, int)
