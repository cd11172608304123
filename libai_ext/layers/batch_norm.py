"""Batch normalisation over the global batch. B batch, D width."""

from __future__ import annotations

import oneflow as flow
from oneflow import nn

from libai_ext.errors import ConfigError
from libai_ext.placement import broadcast_sbp, layer_placement


def running_statistics(model: nn.Module) -> list[flow.Tensor]:
    """The buffers that a forward pass in training changes."""
    norms = [module for module in model.modules() if isinstance(module, BatchNorm)]
    return [buffer for norm in norms for buffer in (norm.running_mean, norm.running_var)]


class BatchNorm(nn.Module):
    """Normalises features [B, D], without affine parameters; for the head of MAE's linear probe.

    Statistics are those of the whole batch, for any number of processes. Running statistics are
    PyTorch's: momentum 0.1, the unbiased variance.

    Args:
        layer_idx: decides the pipeline stage.

    Raises:
        ConfigError: it is trained in a graph, which cannot update running statistics, or on a batch
            of one.
    """

    def __init__(self, dim: int, eps: float = 1e-6, momentum: float = 0.1, *, layer_idx: int = -1):
        super().__init__()
        self.eps = eps
        self.momentum = momentum
        self.layer_idx = layer_idx
        where = dict(placement=layer_placement(layer_idx), sbp=broadcast_sbp())
        self.register_buffer("running_mean", flow.zeros(dim, **where))
        self.register_buffer("running_var", flow.ones(dim, **where))

    def forward(self, x: flow.Tensor) -> flow.Tensor:
        mean, variance = self.running_mean, self.running_var
        if self.training:
            mean, variance = self._batch_statistics(x)
        return (x - mean) * (variance + self.eps).rsqrt()

    def _batch_statistics(self, x: flow.Tensor) -> tuple[flow.Tensor, flow.Tensor]:
        if flow._oneflow_internal.lazy_mode.is_enabled():
            raise ConfigError("batch normalisation is not trained in graphs: graph.enabled=False")
        count = x.shape[0]
        if count < 2:
            raise ConfigError("batch normalisation needs two samples a batch at least")
        mean = x.mean(dim=0).to_global(sbp=broadcast_sbp())
        variance = ((x - mean) ** 2).mean(dim=0).to_global(sbp=broadcast_sbp())
        with flow.no_grad():
            unbiased = variance * (count / (count - 1))
            for running, batch in ((self.running_mean, mean), (self.running_var, unbiased)):
                running.mul_(1 - self.momentum).add_(batch * self.momentum)
        return mean, variance
