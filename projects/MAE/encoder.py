"""The encoder of any weights, for use in other programs: images in, NumPy out.

B images, C channels, H x W pixels, L patches, D width, N classes.
"""

from __future__ import annotations

import logging
import os
from itertools import islice
from typing import Any, Iterable, Iterator, Sequence

import numpy as np
import oneflow as flow
from PIL import Image

from libai_ext import device as devices
from libai_ext.errors import ConfigError, DataError
from libai_ext.placement import batch_sbp, to_global
from projects.MAE.modeling.vit import ViTClassifier
from projects.MAE.weights.describe import Source
from projects.MAE.weights.model import encoder_of
from projects.MAE.weights.packing import Heads
from projects.MAE.weights.preprocessing import Preprocessing, preprocessing_of

logger = logging.getLogger(__name__)

POOLS = ("cls", "mean", "tokens")


class Encoder:
    """Made by :func:`projects.MAE.load_encoder`.

    Attributes:
        source: what is known about the weights, and where it was found.
        preprocess: turns a path, a Pillow image or an array [H, W] or [H, W, C] into float32
            [C, H, W]: a :class:`projects.MAE.weights.preprocessing.Preprocessing`.
        shape: (C, H, W) of the model's input.
        grid: (rows, columns) of patches.
        patch_size, width, depth, heads: of the transformer.
        num_classes: N, 0 without a class head.
        classes: their names in order, None if the weights do not name them.
    """

    def __init__(self, model: ViTClassifier, source: Source, preprocess: Preprocessing):
        self.model = model
        self.source = source
        self.preprocess = preprocess
        patches = model.patch_embed
        self.shape = (patches.in_chans, *patches.img_size)
        self.grid = tuple(patches.grid_size)
        self.patch_size = patches.patch_size
        self.width = model.pos_embed.shape[-1]
        self.depth = len(model.blocks)
        self.heads = model.blocks[0].num_attention_heads
        known = source.record
        self.num_classes = known.model["num_classes"] if source.contents == "classifier" else 0
        self.classes = known.classes

    def __repr__(self) -> str:
        return f"Encoder({self.source.path}: {self.source.summary()})"

    def features(
        self,
        images: Any,
        layer: int = -1,
        pool: str = "cls",
        norm: bool = True,
        batch_size: int = 64,
    ) -> np.ndarray:
        """The output of one block for whole images, nothing masked.

        Blocks are counted from 0, or by negative numbers from the last, as in timm and DINOv2.
        With ``norm`` their output goes through the model's last norm, the default of DINOv2's
        ``get_intermediate_layers``: ``layer=-1`` is the encoder's output, the
        ``last_hidden_state`` of transformers. Without it, the result is the
        ``hidden_states[layer + 1]`` of transformers, and that of timm's ``forward_intermediates``.

        A model that was fine-tuned on the mean of its patches has a norm only for the mean. Its
        class token and patch tokens get no norm, as in timm.

        Args:
            images: a sequence or iterator of images, each as ``preprocess`` takes or gives it; or
                float32 [B, C, H, W]; or a single path or Pillow image.
            pool: ``"cls"``, the class token; ``"mean"`` of the patch tokens; or ``"tokens"``, all
                of them, class token first.
            batch_size: how many images are read and computed at a time.

        Returns:
            float32 [B, D]; for ``"tokens"`` [B, 1 + L, D].

        Raises:
            BadImage: an image cannot be read.
            ConfigError: no such layer or pool.
            DataError: there are no images, or one has another shape or type.
        """
        self.check(layer, pool)
        blocks = layer % self.depth + 1
        return self._compute(images, batch_size, lambda x: self._pooled(x, blocks, pool, norm))

    def check(self, layer: int, pool: str) -> None:
        """
        Raises:
            ConfigError: no such layer or pool.
        """
        if pool not in POOLS:
            raise ConfigError(f"pool must be one of {', '.join(POOLS)}, not {pool!r}")
        if not -self.depth <= layer < self.depth:
            raise ConfigError(
                f"layer {layer}: the encoder has {self.depth} blocks, numbered 0 to "
                f"{self.depth - 1}, or from the last one -1 to -{self.depth}"
            )

    def logits(self, images: Any, batch_size: int = 64) -> np.ndarray:
        """float32 [B, N]: output of the class head; for the arguments see :meth:`features`.

        Raises:
            ConfigError: the weights have no class head.
        """
        if not self.num_classes:
            raise ConfigError(f"{self.source.path} has no class head: there is nothing to predict")
        return self._compute(images, batch_size, lambda x: self.model(x)["prediction_scores"])

    def predict(self, images: Any, batch_size: int = 64) -> np.ndarray:
        """float32 [B, N]: the probability of each class, in the order of ``classes``; see
        :meth:`logits`."""
        logits = self.logits(images, batch_size).astype(np.float64)
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        return (shares / shares.sum(axis=1, keepdims=True)).astype(np.float32)

    def _compute(self, images: Any, batch_size: int, function) -> np.ndarray:
        rows = []
        with flow.no_grad():
            for batch in self._batches(images, batch_size):
                rows.append(function(to_global(batch, batch_sbp())).numpy())
        if not rows:
            raise DataError("there are no images")
        return np.concatenate(rows)

    def _pooled(self, images: flow.Tensor, blocks: int, pool: str, norm: bool) -> flow.Tensor:
        model = self.model
        x = model.embed(images)
        for block in islice(model.blocks, blocks):
            x = block(x)
        if norm and model.pooling == "cls":
            x = model.norm(x)
        if pool == "tokens":
            return x
        if pool == "cls":
            return x[:, 0]
        mean = x[:, 1:].mean(dim=1)
        return model.fc_norm(mean) if norm and model.pooling == "mean" else mean

    def _batches(self, images: Any, batch_size: int) -> Iterator[np.ndarray]:
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, not {batch_size}")
        if isinstance(images, (str, os.PathLike, Image.Image)):
            images = [images]
        rest: Iterable = iter(images)
        while True:
            batch = [self._checked(image) for image in islice(rest, batch_size)]
            if not batch:
                return
            yield np.stack(batch)

    def _checked(self, image: Any) -> np.ndarray:
        """float32 [C, H, W] of an image that may have this form already. Only with a number of
        channels as mode, other float32 arrays are images."""
        is_ready = isinstance(image, np.ndarray) and image.dtype == np.float32
        if is_ready and isinstance(self.preprocess.mode, int):
            is_ready = image.shape == self.shape
        if not is_ready:
            image = self.preprocess(image)
        if image.shape != self.shape:
            raise DataError(
                f"an image of shape {list(image.shape)}, the model takes {list(self.shape)}: "
                "preprocess() brings images to it"
            )
        return image


def open_encoder(
    weights: str | os.PathLike,
    device: str | None = None,
    img_size: Sequence[int] | None = None,
    heads: int | None = None,
    grid: Sequence[int] | None = None,
) -> Encoder:
    """See :func:`projects.MAE.load_encoder`; OneFlow must be initialised. A warning in the log
    names each value that the file does not give, and what is used instead.

    Args:
        weights: a run, a checkpoint, a file or a folder.
        device: ``"cpu"`` or ``"cuda"``; None: a GPU if there is one.
        img_size: (height, width) of the input images, if it differs from that of the weights; their
            position table is interpolated.
        heads: number of attention heads, if the file does not give it.
        grid: (rows, columns) of patches in the position table, if the file does not give it.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ConfigError(
            f"load_encoder is for one process, and this is one of {os.environ['WORLD_SIZE']} that "
            "a launcher started: start programs that use it without one"
        )
    chosen = devices.choose(device)
    path = os.fspath(weights)
    model, source = encoder_of(path, Heads(heads), img_size, (grid[0], grid[1]) if grid else None)
    encoder = Encoder(model, source, preprocessing_of(source, img_size))
    notes = [f"{path}: {note}" for note in source.notes] + list(encoder.preprocess.notes)
    if encoder.num_classes and not encoder.classes:
        notes.append(f"{path} does not name its {encoder.num_classes} classes")
    if model.pooling == "mean":
        notes.append(f"{path} has a norm for the mean of its patches only: tokens are without one")
    for note in notes:
        logger.warning(note)
    logger.info(f"{encoder!r} on {chosen.describe()}")
    return encoder
