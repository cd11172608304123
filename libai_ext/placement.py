"""Where tensors live: device, ranks, splits."""

from __future__ import annotations

import logging
import os
from typing import Any

import oneflow as flow
from libai.utils import distributed as dist
from omegaconf import DictConfig, OmegaConf

from libai_ext import device

BROADCAST = [flow.sbp.broadcast, flow.sbp.broadcast]
BATCH = [flow.sbp.split(0), flow.sbp.broadcast]
_MANY_LAYERS = 1000  # more than any model has


def device_type() -> str:
    """``"cuda"`` or ``"cpu"``, the choice of :func:`libai_ext.device.choose`.

    Raises:
        ConfigError: no device was chosen yet, and there is a GPU that cannot be used.
    """
    return device.current().type


def set_layout(layout: DictConfig) -> None:
    """Place the ranks of this job, before any layer is built.

    Args:
        layout: data, tensor and pipeline parallel sizes, and ``custom_pipeline_stage_id``, the
            stage of each layer; without it, all layers are on the one stage.
    """
    # LiBai warns of every size that it computes itself.
    logging.getLogger("libai.utils.distributed").setLevel(logging.ERROR)
    sizes: Any = OmegaConf.to_container(layout)
    stages = sizes.get("custom_pipeline_stage_id") or [0] * _MANY_LAYERS
    dist._DIST_UTIL = _Ranks(DictConfig(dict(sizes, custom_pipeline_stage_id=stages)))


class _Ranks(dist._DistributeUtil):
    """LiBai 0.1.1 gives all pipeline stages the same number of layers. Here the config sets the
    stage of each layer, by the key of LiBai's later versions."""

    _layer_ranks: list  # of each stage, then of each layer

    def _init_placement_group(self, cfg: DictConfig) -> None:
        cfg.pipeline_num_layers = self.pipeline_parallel_size  # one layer for each stage
        super()._init_placement_group(cfg)
        ranks_of_stage = self._layer_ranks
        self._layer_stage_ids = list(cfg.custom_pipeline_stage_id)
        self._layer_ranks = [ranks_of_stage[stage] for stage in self._layer_stage_ids]


def layer_placement(layer_idx: int) -> flow.placement:
    """Ranks and device of layer ``layer_idx`` (its pipeline stage)."""
    return dist.get_layer_placement(layer_idx, device_type())


def broadcast_sbp():
    """The whole tensor on each rank."""
    return dist.get_nd_sbp(BROADCAST)


def batch_sbp():
    """Dimension 0 split over the data-parallel ranks."""
    return dist.get_nd_sbp(BATCH)


def data_parallel_rank() -> int:
    """Index of the share of the batch that this rank reads.

    Ranks have the order [pipeline, data, tensor]. LiBai 0.1.1 divides the rank by
    tensor x pipeline size, which is wrong if data and pipeline parallel sizes exceed 1.
    """
    util = dist.get_dist_util()
    tensor = util.tensor_parallel_size
    return dist.get_rank() % (util.data_parallel_size * tensor) // tensor


def local_process_count() -> int:
    """Processes of this job on this machine."""
    return int(os.environ.get("WORLD_SIZE", 1)) // max(1, dist.get_num_nodes())


def to_global(array, sbp, layer_idx: int = 0) -> flow.Tensor:
    """Global tensor from a NumPy array that is the same on every rank."""
    tensor = flow.from_numpy(array)
    placement = layer_placement(layer_idx)
    return tensor.to_global(placement=placement, sbp=broadcast_sbp()).to_global(sbp=sbp)
