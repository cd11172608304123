"""Prepare images for a model as its weights file says, or as the official evaluation does."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Callable, NamedTuple, Sequence

import numpy as np
from omegaconf import OmegaConf
from PIL import Image

from libai_ext.checkpoint.errors import CheckpointError
from libai_ext.config import lazy_config, safe_yaml, targets
from libai_ext.config.lazy_config import instantiate
from libai_ext.data.decode import MAX_BYTES, Decoder
from libai_ext.data.transforms import Compose, EvalCrop, ToArray
from libai_ext.errors import DataError
from libai_ext.files.regular import read_regular
from projects.MAE.weights.describe import RUN_CONFIG, Source

IMAGENET = dict(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
MODES = {1: "L", 3: "RGB"}  # by number of channels, if a file does not say another
GREY = dict(mean=[0.5], std=[0.5])


class Preprocessing(NamedTuple):
    """Called with a path, a Pillow image or a uint8 array [H, W] or [H, W, 3]: float32 [C, H, W].
    If ``mode`` is a number of channels C, an array is [H, W] or [H, W, C], uint8, uint16 or
    float32.

    Attributes:
        mode: "RGB", "L", or a number of channels as in :mod:`libai_ext.data.channels`.
        mean, std: of each channel, for values in [0, 1], and for those of float32 as they are.
        transform: the evaluation transform; takes an image of this mode.
        notes: a sentence for each value that the file does not give, with what is used instead.
        picture_channels: see :func:`projects.MAE.pictures.panels.as_picture`.
        as_torchvision: see :mod:`libai_ext.data.decode`.
    """

    mode: str | int
    mean: Sequence[float]
    std: Sequence[float]
    transform: Callable
    notes: Sequence[str] = ()
    picture_channels: Sequence[int] | None = None
    as_torchvision: bool = False

    def __call__(self, image: Any) -> np.ndarray:
        """
        Raises:
            BadImage: the image cannot be read.
            DataError: its file cannot be opened, or it is an array of another shape or type.
        """
        decode = Decoder(self.mode, as_torchvision=self.as_torchvision)
        if isinstance(image, (str, os.PathLike)):
            name = os.fspath(image)
            try:
                data = read_regular(name, MAX_BYTES)
            except OSError as error:
                raise DataError(f"cannot open {name}: {error.strerror}") from error
            upright = decode(data, name)
        else:
            upright = decode.convert(image if self._is_stored(image) else _pillow(image))
        return self.of(upright)

    def _is_stored(self, image: Any) -> bool:
        return isinstance(self.mode, int) and isinstance(image, np.ndarray)

    def of(self, image: Any) -> np.ndarray:
        """The same for an image from a data source: upright and in this mode."""
        return self.transform(image, np.random.default_rng(0))  # evaluation uses no randomness


def _pillow(image: Any) -> Image.Image:
    if isinstance(image, Image.Image):
        return image
    array = np.asarray(image)
    channels = array.shape[2:]
    if array.dtype != np.uint8 or array.ndim < 2 or channels not in ((), (1,), (3,)):
        raise DataError(
            "an image is a path, a Pillow image or an array of bytes (uint8) [H, W] or [H, W, 3], "
            f"not {type(image).__name__} of {array.dtype} {list(array.shape)}"
        )
    return Image.fromarray(array[..., 0] if channels == (1,) else array)


def preprocessing_of(source: Source, img_size: Sequence[int] | None = None) -> Preprocessing:
    """What the run's evaluation did with an image. If the file does not say, what the official
    evaluation does: see :class:`libai_ext.data.transforms.EvalCrop`.

    Args:
        img_size: (H, W) if it differs from the file's; then the run's own transform is not used.

    Raises:
        UserError: the record holds a value that cannot be used.
    """
    known, notes = source.record, []
    channels, data = known.model["in_chans"], known.data
    mode = data.get("mode")
    if type(mode) is int and mode != channels:
        raise CheckpointError(f"{known.origin}: data.mode is {mode}, the model has {channels}")
    if type(mode) is not int:
        mode = MODES.get(channels, channels)
        if channels not in MODES:
            notes.append(f"{source.path} does not say data.mode: {channels} channels as stored")
    if "mean" not in data or "std" not in data:
        plain = dict(mean=[0.0] * channels, std=[1.0] * channels), "0 and 1"
        data, whose = {1: (GREY, "0.5"), 3: (IMAGENET, "ImageNet's")}.get(channels, plain)
        notes.append(f"{source.path} does not say mean and deviation of its data: {whose}")
    mean, std = list(data["mean"]), list(data["std"])
    size = tuple(img_size or known.model["img_size"])
    transform = _recorded(source) if size == tuple(known.model.get("img_size", ())) else None
    if transform is None:
        crop = EvalCrop(size)
        transform = Compose([crop, ToArray(mean, std)])
        notes.append(
            f"{source.path} does not say in a record how images are brought to {size[0]} x "
            f"{size[1]}: as the official evaluation does, by a bicubic resize to at least "
            "{} x {} and the middle of it (settings such as timm's crop_pct are not "
            "read)".format(*crop.cover)
        )
    shown = known.data.get("picture_channels")
    raw = known.data.get("as_torchvision", False)
    return Preprocessing(mode, mean, std, transform, notes, shown, raw)


def _recorded(source: Source) -> Callable | None:
    """The transform in the record; for a checkpoint without a record, that of the run's config."""
    steps = source.record.data.get("transform")
    if steps is not None:
        safe_yaml.check_texts(steps, "transform")
        node = OmegaConf.create({"transforms": steps})
        targets.check_targets(node)
        return Compose([instantiate(step) for step in node.transforms])
    beside = Path(source.located).parent / RUN_CONFIG
    if source.style != "ours" or not beside.is_file():
        return None
    cfg = lazy_config.load(str(beside))
    node = OmegaConf.select(cfg, "dataloader.test.dataset.transform")
    return None if node is None else instantiate(lazy_config.fresh(node))
