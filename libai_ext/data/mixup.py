"""Mixup (arXiv:1710.09412) and CutMix (arXiv:1905.04899): decisions, images and soft targets.

A decision is keyed by (seed, iteration, group), never by rank. timm mixes a batch with the same
batch in reverse order; here each sample is mixed with its neighbour in the global batch. The batch
is a random permutation, so both have the same distribution. Neighbours are on the same rank and in
the same micro-batch: nothing is sent or decoded twice.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Sequence

import numpy as np

from libai_ext.config.rule_types import number, require
from libai_ext.errors import ConfigError

# A stream of random numbers other than those of the samples, see KeyedDataset.
_MIX_STREAM = 1


class Mix(NamedTuple):
    """How samples are mixed with their partners.

    ``lam`` is the weight of the sample's own label; ``box`` (top, left, bottom, right) is the part
    that CutMix takes from the partner, None for Mixup.
    """

    lam: float
    box: tuple[int, int, int, int] | None = None


NO_MIX = Mix(1.0)


def decide(
    seed: int,
    iteration: int,
    height: int,
    width: int,
    mixup_alpha: float = 0.8,
    cutmix_alpha: float = 1.0,
    probability: float = 1.0,
    switch_probability: float = 0.5,
    group: int = 0,
) -> Mix:
    """The decision for one group of samples in the global batch of an iteration.

    Args:
        height, width: of the images.
        mixup_alpha, cutmix_alpha: of the Beta distributions; 0 switches one of them off.
        probability: of mixing.
        switch_probability: of CutMix, if both are on.
        group: number of a group of samples in the global batch. Each group has its own decision,
            like each GPU in timm.
    """
    rng = np.random.default_rng(
        np.random.SeedSequence([seed, iteration, group], spawn_key=(_MIX_STREAM,))
    )
    mixed, cut = rng.random() < probability, rng.random() < switch_probability
    if not mixed or not (mixup_alpha > 0 or cutmix_alpha > 0):
        return NO_MIX
    cut = cutmix_alpha > 0 and (cut or not mixup_alpha > 0)
    alpha = cutmix_alpha if cut else mixup_alpha
    lam = float(rng.beta(alpha, alpha))
    if not cut:
        return Mix(lam)
    center = int(rng.integers(height)), int(rng.integers(width))
    return cutmix(height, width, lam, center)


def cutmix(height: int, width: int, lam: float, center: tuple[int, int]) -> Mix:
    """A box around ``center`` with a share ``1 - lam`` of the area, clipped at the borders. The
    mix's ``lam`` is the share of the image that remains."""
    side = math.sqrt(1 - lam)
    # Half sides are rounded down, as in the timm of the official code (newer ones do not).
    half_height, half_width = int(height * side) // 2, int(width * side) // 2
    top, bottom = max(center[0] - half_height, 0), min(center[0] + half_height, height)
    left, right = max(center[1] - half_width, 0), min(center[1] + half_width, width)
    lam = 1.0 - (bottom - top) * (right - left) / float(height * width)
    return Mix(lam, (top, left, bottom, right))


def partner(position: int) -> int:
    """Position of a sample's partner in the global batch: 0 and 1, 2 and 3, ..."""
    return position ^ 1


def mix_images(images: np.ndarray, partners: np.ndarray, mix: Mix) -> np.ndarray:
    """Images [N, C, H, W] (or one, [C, H, W]) mixed with their partners; inputs do not change."""
    if mix.box is None:
        if mix.lam == 1.0:
            return images
        lam = images.dtype.type(mix.lam)
        return images * lam + partners * images.dtype.type(1.0 - mix.lam)
    top, left, bottom, right = mix.box
    out = images.copy()
    out[..., top:bottom, left:right] = partners[..., top:bottom, left:right]
    return out


def one_hot(labels: np.ndarray, num_classes: int, smoothing: float = 0.0) -> np.ndarray:
    """float32 [N, K]: ``smoothing / K`` everywhere, plus ``1 - smoothing`` at the label.

    Raises:
        ValueError: a label is no class.
    """
    labels = np.asarray(labels)
    wrong = labels[(labels < 0) | (labels >= num_classes)]
    if wrong.size:
        raise ValueError(f"label {wrong[0]} is not one of {num_classes} classes")
    off = smoothing / num_classes
    out = np.full((len(labels), num_classes), off, np.float32)
    out[np.arange(len(labels)), labels] = 1.0 - smoothing + off
    return out


def mix_targets(
    labels: np.ndarray,
    partner_labels: np.ndarray,
    mix: Mix,
    num_classes: int,
    smoothing: float = 0.1,
) -> np.ndarray:
    """Soft targets float32 [N, K] of the mixed images; each row sums to 1."""
    own = one_hot(labels, num_classes, smoothing)
    others = one_hot(partner_labels, num_classes, smoothing)
    return own * np.float32(mix.lam) + others * np.float32(1.0 - mix.lam)


class Mixer:
    """Mixes the samples of one rank's micro-batch, in a worker process, before collating. If both
    alphas are 0, it only smooths the labels.

    Args:
        num_classes: length of the soft targets.
        smoothing: of the labels.
        group_size: samples of the global batch that share a decision; None: all of them. Official
            runs draw one on each GPU, for 32 samples.
        mixup_alpha, cutmix_alpha, probability, switch_probability: see :func:`decide`.

    Raises:
        ConfigError: an argument is out of its range, or ``group_size`` would separate neighbours.
    """

    def __init__(
        self,
        num_classes: int,
        smoothing: float = 0.1,
        group_size: int | None = None,
        mixup_alpha: float = 0.8,
        cutmix_alpha: float = 1.0,
        probability: float = 1.0,
        switch_probability: float = 0.5,
    ):
        require(self, number(0), mixup_alpha=mixup_alpha, cutmix_alpha=cutmix_alpha)
        require(self, number(0, 1), smoothing=smoothing, probability=probability)
        require(self, number(0, 1), switch_probability=switch_probability)
        if group_size is not None and (group_size < 2 or group_size % 2):
            raise ConfigError(f"mixup's group_size must be even, not {group_size}")
        self.num_classes = num_classes
        self.smoothing = smoothing
        self.group_size = group_size
        self.mixes = mixup_alpha > 0 or cutmix_alpha > 0
        self.options = dict(
            mixup_alpha=mixup_alpha,
            cutmix_alpha=cutmix_alpha,
            probability=probability,
            switch_probability=switch_probability,
        )

    def __call__(
        self, samples: Sequence[dict], seed: int, iteration: int, positions: Sequence[int]
    ) -> list[dict]:
        """The samples with mixed ``images``, and soft targets [K] in place of ``labels``.

        Args:
            samples: with ``images`` [C, H, W] and ``labels``; they do not change.
            seed: of the run.
            positions: of the samples in the global batch of the iteration.

        Raises:
            ConfigError: a sample's partner is not among them.
        """
        place = {position: number for number, position in enumerate(positions)}
        height, width = samples[0]["images"].shape[-2:]
        decisions: dict[int, Mix] = {}
        mixed = []
        for sample, position in zip(samples, positions):
            other = place.get(partner(position), None if self.mixes else place[position])
            if other is None:
                raise ConfigError(
                    f"mixup pairs neighbours: a micro-batch of {len(samples)} samples of one "
                    "process must be even (train.train_micro_batch_size)"
                )
            group = position // self.group_size if self.group_size else 0
            if group not in decisions:
                decisions[group] = decide(
                    seed, iteration, height, width, group=group, **self.options
                )
            mix = decisions[group]
            out = dict(sample)
            out["images"] = mix_images(sample["images"], samples[other]["images"], mix)
            labels = np.array([sample["labels"]]), np.array([samples[other]["labels"]])
            out["labels"] = mix_targets(*labels, mix, self.num_classes, self.smoothing)[0]
            mixed.append(out)
        return mixed
