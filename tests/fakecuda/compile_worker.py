"""Compiles a training graph as rank 0 of many: arguments DEVICES CONFIG [key=value ...]."""

from __future__ import annotations

import os
import sys

import fake_device

from libai_ext.startup import start


def main() -> None:
    devices, config, *options = sys.argv[1:]
    start()
    fake_device.stand_for(int(devices))
    os.environ["WORLD_SIZE"] = devices

    from libai_ext.config.lazy_config import fresh
    from libai_ext.engine.trainer import Trainer
    from libai_ext.placement import set_layout
    from projects.MAE.run import resolve

    cfg = resolve(config, options)
    cfg.train.train_iter = cfg.train.scheduler.max_iter = 100
    cfg.train.warmup_iter = cfg.train.scheduler.warmup_iter = 1
    set_layout(cfg.train.dist)
    _leave_out_values()
    model = Trainer.build_model(cfg)
    optimizer = Trainer.build_optimizer(cfg, model)
    schedule = Trainer.build_lr_scheduler(cfg, optimizer)
    cfg.graph = fresh(cfg.graph)
    graph = Trainer.build_graph(cfg, model, optimizer, schedule, is_train=True)
    model.train()
    graph._compile(**_batch(cfg, model))


def _leave_out_values() -> None:
    """Tensors keep what their memory holds: there is no peer to exchange values with."""
    import numpy as np
    import oneflow as flow

    from libai_ext.layers import initialize
    from libai_ext.placement import layer_placement
    from projects.MAE.modeling import mae

    def empty(array, sbp, layer_idx=0):
        dtype = flow.float32 if np.asarray(array).dtype.kind == "f" else flow.int64
        placement = layer_placement(layer_idx)
        return flow.empty(*np.shape(array), dtype=dtype, placement=placement, sbp=sbp)

    initialize.initialize = lambda module, rule: None
    mae.to_global = empty


def _batch(cfg, model) -> dict:
    import oneflow as flow

    from libai_ext.placement import batch_sbp, layer_placement

    def empty(*shape):
        samples = cfg.train.global_batch_size
        return flow.empty(samples, *shape, placement=layer_placement(0), sbp=batch_sbp())

    images = empty(cfg.model.in_chans, *model.patch_embed.img_size)
    if hasattr(model, "decode"):
        return dict(images=images, noise=empty(model.num_patches))
    labels, path_noise = empty(cfg.model.num_classes), empty(cfg.model.depth, 2)
    return dict(images=images, labels=labels, path_noise=path_noise)


if __name__ == "__main__":
    main()
