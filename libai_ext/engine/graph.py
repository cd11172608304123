"""LiBai's static graph, repaired for OneFlow 0.9.0."""

from __future__ import annotations

import oneflow as flow
import oneflow.framework.config_util as config_util
import oneflow.framework.session_context as session_context
from libai.layers import TransformerLayer
from libai.models.utils import GraphBase
from libai.utils import distributed as dist
from oneflow import Tensor, nn

from libai_ext.engine.pipeline_buffers import shorten
from libai_ext.placement import device_type


class Graph(GraphBase):
    """Training or evaluation graph of any model whose modules carry ``layer_idx``.

    LiBai 0.1.1 reaches modules through ``.origin`` and sets ``.config.stage_id``; OneFlow 0.9.0
    has neither. Stages come from each module's ``layer_idx`` here, so that models need no
    ``set_pipeline_stage_id`` of their own.
    """

    def __init__(self, *args, **kwargs):
        if device_type() == "cpu":
            use_single_cpu_stream()
        super().__init__(*args, **kwargs)
        if self.is_train and self._grad_scaler is None:
            # A loss scale of one that never changes. What comes with it: a step whose gradients
            # are not all finite changes neither weights nor optimizer state nor the schedule.
            self.set_grad_scaler(flow.amp.GradScaler(1.0, 1.0, 1.0, growth_interval=1))

    def state_dict(self, destination=None) -> dict:
        """Optimizer and schedule only: the module's tensors are in its own state dict."""
        state = super().state_dict(destination)
        return {name: value for name, value in state.items() if isinstance(value, Tensor)}

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


def use_single_cpu_stream() -> None:
    """Run graph kernels on one CPU stream.

    Gradient accumulation in ``nn.Graph`` races on OneFlow 0.9.0's several CPU streams and gives
    wrong gradients in more than half of the runs. All graphs of a process share the setting: the
    engine aborts when one is built under another.
    """
    session_context.GetDefaultSession().TryInit()
    config_util._set_resource_attr("cpu_device_num", 1, int)
