"""Reconstructions of a few training samples, drawn while a model is pre-trained."""

from __future__ import annotations

import logging
from typing import Sequence

import numpy as np
import oneflow as flow
from libai.engine.trainer import HookBase
from libai.evaluation.evaluator import inference_context
from libai.utils import distributed as dist

from libai_ext.data.dataset import stack, to_instance
from libai_ext.engine.evaluation import on_rank_0
from libai_ext.engine.unavailable_data import synchronized
from libai_ext.errors import DataUnavailable
from libai_ext.placement import data_parallel_rank
from projects.MAE.pictures.panels import panels, tile

logger = logging.getLogger(__name__)

TAG = "reconstruction"  # in TensorBoard; below it original, masked, reconstruction, with visible


class PictureHook(HookBase):
    """Puts a picture into the event storage every ``period`` iterations and after the last one.

    Each row is a sample: original, masked, reconstruction, reconstruction with the visible patches
    kept (:func:`panels`). The samples are the first of the run's first batch, with its augmentation
    and masks. They are random but never change, so two pictures differ only by the training between
    them.

    In graph mode the eager model draws them as well. It shares the graph's weights, and no second
    graph must be compiled for another batch size.

    If one rank cannot read its samples for the present, all skip the picture, and the run ends
    after this iteration, as at an evaluation.

    Targets without pictures (see :class:`projects.MAE.modeling.targets.base.Target`) are not drawn.

    Args:
        period: in iterations; 0 draws nothing.
        samples: rows of the picture, at most a global batch.
        channels: which are shown, see :func:`projects.MAE.pictures.panels.as_picture`.
    """

    def __init__(self, period: int, samples: int, channels: Sequence[int] | None = None):
        self.period = period
        self.channels = channels
        self.samples = samples
        self._batch: dict | None = None

    def before_train(self) -> None:
        target = self.trainer.model.target
        if self.period and target.as_pixels is None:
            logger.info(f"no pictures are drawn: {type(target).__name__} cannot be shown as pixels")
            self.period = 0

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        last = done == self.trainer.max_iter
        if self.period and (done % self.period == 0 or last):
            try:
                picture = self.draw()
            except DataUnavailable as error:
                logger.error(f"the picture after {done} iterations is skipped: {error}")
                self.trainer.unavailable = error
                return
            if dist.is_main_process():
                self.trainer.storage.put_image(TAG, picture)

    def draw(self) -> np.ndarray | None:
        """uint8 [C, H, W] on rank 0; all ranks must call it."""
        if self._batch is None:
            self._batch = self._read()
        model, cfg = self.trainer.model, self.trainer.cfg
        with inference_context(model), flow.no_grad():
            out = model(**self._batch)
        images, prediction, mask = (
            on_rank_0(tensor) for tensor in (self._batch["images"], out["prediction"], out["mask"])
        )
        if not dist.is_main_process():
            return None
        pictures = panels(model, cfg.data, images, prediction, mask, self.channels)
        picture = np.asarray(tile(pictures[: self.samples]))
        return picture[None] if picture.ndim == 2 else picture.transpose(2, 0, 1)

    def _read(self) -> dict:
        """The samples as a global batch, the same number on each data-parallel rank."""
        trainer = self.trainer
        ranks = trainer.cfg.train.dist.data_parallel_size
        share = -(-min(self.samples, trainer.global_batch_size) // ranks)
        first = data_parallel_rank() * share
        keys = trainer.order.batch(0)[first : first + share]
        # Not read before all ranks wait for each other.
        batches = (stack([trainer.dataset[key] for key in part]) for part in [keys])
        return trainer.get_batch(to_instance(next(synchronized(batches))))
