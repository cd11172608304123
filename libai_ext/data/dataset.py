"""Samples from a source of images; their randomness is keyed by (seed, epoch, index)."""

from __future__ import annotations

from functools import partial
from typing import Callable, Protocol, Sequence

import numpy as np
from libai.data.structures import DistTensorData, Instance
from PIL import Image

from libai_ext.data.decode import reduced
from libai_ext.data.host_memory import host_tensor
from libai_ext.data.mixup import Mixer
from libai_ext.data.sampler import SampleKey
from libai_ext.data.transforms import RandomResizedCrop
from libai_ext.errors import ConfigError

_TRANSFORM_STREAM, _FIELD_STREAM = 0, 1


class Field(Protocol):
    """Another model input of a sample, such as the noise that decides its mask.

    Attributes:
        name: of the model's argument.
    """

    name: str

    def __call__(self, rng: np.random.Generator, key: SampleKey) -> np.ndarray:
        """An array of the same shape and type for every sample; called in the data workers.

        Args:
            rng: the field's own, of (seed, epoch, sample index). Use no other randomness, or the
                run would depend on its layout.
            key: epoch and index of the sample.

        Raises:
            DataError: the run cannot continue.
        """


class KeyedDataset:
    """Decode, transform and annotate a sample, in a worker process.

    Args:
        source: see :class:`libai_ext.data.sources.Source`.
        transform: (image, generator) -> float32 [C, H, W].
        fields: other model inputs of a sample. Each has its own generator, so they do not change
            with the augmentation.
        labels: give the class number as ``labels`` too.
        mixer: mixes the samples of a micro-batch, see :class:`libai_ext.data.mixup.Mixer`.
        seed: of the run.
        reduce_jpegs: decode a JPEG at 1/8, 1/4 or 1/2 of its size if the random crop, drawn in the
            reduced image, still has its final size or more. Faster for large files; the crops
            differ by less than a pixel of the reduced image, and the values of pixels slightly.

    Raises:
        ConfigError: ``reduce_jpegs`` and no random crop at the start of ``transform``.
    """

    def __init__(
        self,
        source: Sequence,
        transform: Callable,
        fields: Sequence[Field] = (),
        labels: bool = False,
        mixer: Mixer | None = None,
        seed: int = 0,
        reduce_jpegs: bool = False,
    ):
        self.source = source
        self.transform = transform
        self.fields: list = list(fields)
        self.labels = labels
        self.mixer = mixer
        self.seed = seed
        self.crop: RandomResizedCrop | None = None
        if reduce_jpegs:
            first = next(iter(getattr(transform, "transforms", ())), None)
            if not isinstance(first, RandomResizedCrop):
                raise ConfigError("data.reduce_jpegs needs a RandomResizedCrop as first transform")
            self.crop = first

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: SampleKey) -> dict:
        image, label = self._decoded(key)
        sample = {"images": self.transform(image, self._generator(key, _TRANSFORM_STREAM))}
        for field in self.fields:
            sample[field.name] = field(self._generator(key, _FIELD_STREAM), key)
        if self.labels:
            sample["labels"] = np.int64(label)
        if self.mixer is not None:
            sample["key"] = key
        return sample

    def _decoded(self, key: SampleKey) -> tuple[Image.Image, int]:
        crop = self.crop
        if crop is None:
            return self.source[key.index]
        rng = partial(self._generator, key, _TRANSFORM_STREAM)
        with reduced(lambda width, height: crop.reduction(width, height, rng)):
            return self.source[key.index]

    def collate(self, samples: Sequence[dict], empty: Callable = np.empty) -> dict:
        """A batch of samples, mixed where there is a mixer; see :func:`stack`."""
        if self.mixer is not None:
            keys = [sample.pop("key") for sample in samples]
            positions = [key.position for key in keys]
            samples = self.mixer(samples, self.seed, keys[0].iteration, positions)
        return stack(samples, empty)

    def _generator(self, key: SampleKey, stream: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, key.epoch, key.index, stream])


def stack(samples: Sequence[dict], empty: Callable = np.empty) -> dict[str, np.ndarray]:
    """The samples' values by name, as arrays [N, ...] in memory from ``empty(shape, dtype)``."""
    batch = {}
    for name in samples[0]:
        rows = [np.asarray(sample[name]) for sample in samples]
        batch[name] = np.stack(rows, out=empty((len(rows), *rows[0].shape), rows[0].dtype))
    return batch


def to_instance(batch: dict[str, np.ndarray]) -> Instance:
    """LiBai's container of a batch."""
    tensors = {name: DistTensorData(host_tensor(array)) for name, array in batch.items()}
    return Instance(**tensors)
