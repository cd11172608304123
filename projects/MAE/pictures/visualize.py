"""The pictures of tools/visualize.py: a model's reconstructions of images, or its attention."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Sequence

import numpy as np
import oneflow as flow

from libai_ext.data.image_folder import ImageFolder
from libai_ext.errors import ConfigError
from libai_ext.placement import batch_sbp, to_global
from projects.MAE.modeling.mae import MaskedAutoencoder
from projects.MAE.modeling.masking import num_kept
from projects.MAE.pictures import attention
from projects.MAE.pictures.panels import as_picture, panels
from projects.MAE.weights.match import WHERE_DECODERS_ARE
from projects.MAE.weights.model import model_of
from projects.MAE.weights.packing import Heads
from projects.MAE.weights.preprocessing import Preprocessing, preprocessing_of

NO_DECODER = f"no reconstruction is drawn. {WHERE_DECODERS_ARE}"
# Weight of a heat map on top of its image.
_OPACITY = 0.6


@dataclass
class Subject:
    """A model and its preprocessing; ``notes`` name what its file does not give."""

    model: MaskedAutoencoder
    has_decoder: bool
    mask_ratio: float
    preprocess: Preprocessing
    notes: Sequence[str] = ()
    # What it predicts instead of pixels.
    target: str | None = None


def load(
    weights: str,
    heads: Heads,
    img_size=None,
    norm_pix_loss: bool = False,
    grid: tuple[int, int] | None = None,
) -> Subject:
    """The model of a run folder, a checkpoint or a file.

    Args:
        heads, img_size, norm_pix_loss, grid: see :func:`projects.MAE.weights.model.model_of`.

    Raises:
        UserError: there is no model, or it cannot be used.
    """
    loaded = model_of(weights, heads, img_size, norm_pix_loss, grid)
    model, source = loaded
    known, preprocess = source.record, preprocessing_of(source, img_size)
    notes = [f"{weights}: {note}" for note in source.notes] + list(preprocess.notes)
    if loaded.has_decoder and "norm_pix_loss" not in known.model and not norm_pix_loss:
        notes.append(f"{weights} does not say norm_pix_loss: off (else: --norm-pix-loss)")
    target = known.model.get("target")
    if target:
        notes.append(f"{weights} predicts {target}, not pixels: no reconstruction is drawn")
    ratio = known.model.get("mask_ratio", 0.75)
    return Subject(model, loaded.has_decoder, ratio, preprocess, notes, target)


def read_images(
    subject: Subject, paths: Sequence[str], samples: int
) -> tuple[np.ndarray, list[str]]:
    """Images [B, C, H, W], preprocessed for the model, and their names. From a folder, ``samples``
    images are taken, spread evenly; their names are relative to it.

    Raises:
        DataError: a file is missing or not an image.
    """
    files = _files(paths, samples, subject.preprocess.mode)
    images = [subject.preprocess(file) for file, _ in files]
    return np.stack(images), [name for _, name in files]


def _files(paths: Sequence[str], samples: int, mode: str | int) -> list[tuple[str, str]]:
    """(path, name) of each image."""
    files = []
    for path in paths:
        if not os.path.isdir(path):
            files.append((path, Path(path).name))
            continue
        found = [file for file, _ in ImageFolder([path], mode).samples]
        places = np.linspace(0, len(found) - 1, min(samples, len(found))).astype(int)
        files += [(found[place], os.path.relpath(found[place], path)) for place in places]
    return files


def hidden_patches(
    subject: Subject,
    images: int,
    seed: int,
    ratio: float | None = None,
    patches: Sequence[int] | None = None,
) -> np.ndarray:
    """bool [B, L]: True for the given patches of each image, or for a random share of them. With
    the same seed, a larger ratio hides all that a smaller one hides.

    Raises:
        ConfigError: a patch number does not exist, or no patch stays visible.
    """
    count = subject.model.num_patches
    if patches is not None:
        rows, columns = subject.model.patch_embed.grid_size
        wrong = [patch for patch in patches if not 0 <= patch < count]
        if wrong:
            raise ConfigError(
                f"--patches: there is no patch {wrong[0]}; the {rows} x {columns} patches are "
                f"numbered 0 to {count - 1}, row by row"
            )
        if len(set(patches)) == count:
            raise ConfigError("--patches: nothing is left to see")
        return np.isin(np.broadcast_to(np.arange(count), (images, count)), patches)
    ratio = subject.mask_ratio if ratio is None else ratio
    kept = num_kept(count, ratio)
    if not kept:
        raise ConfigError(f"a mask ratio of {ratio:g} leaves none of {count} patches")
    noise = [np.random.default_rng([seed, number]).random(count) for number in range(images)]
    return np.stack([np.argsort(np.argsort(row)) >= kept for row in noise])


def reconstruction_rows(
    subject: Subject, images: np.ndarray, hidden: np.ndarray
) -> list[list[np.ndarray]]:
    """For each image: original, masked and, if there is a decoder, reconstruction without and with
    the visible patches.

    Args:
        images: [B, C, H, W]; hidden: bool [B, L], the same number of True in each row.
    """
    model = subject.model
    model.keep = int((~hidden[0]).sum())
    with flow.no_grad():
        # Patches with the lowest noise stay visible.
        noise = to_global(np.float32(hidden), batch_sbp())
        out = model(to_global(images, batch_sbp()), noise)
    prediction, mask, data = out["prediction"].numpy(), out["mask"].numpy(), subject.preprocess
    pictures = panels(model, data, images, prediction, mask, data.picture_channels)
    return [list(row if subject.has_decoder else row[:2]) for row in pictures]


def attention_rows(
    subject: Subject, images: np.ndarray, kind: str
) -> tuple[list[list[np.ndarray]], list[str]]:
    """Rows and titles. A row has an image, and the image with the class token's attention on top:
    for each head of the last layer (``"heads"``) or through all layers (``"rollout"``)."""
    weights = attention.attention_weights(subject.model, to_global(images, batch_sbp()))
    if kind == "heads":
        maps = attention.last_layer(weights)
        titles = [f"head {head + 1}" for head in range(maps.shape[1])]
    else:
        maps = attention.rollout(weights)[:, None]
        titles = ["attention rollout"]
    grid = subject.model.patch_embed.grid_size
    data = subject.preprocess
    originals = as_picture(images.transpose(0, 2, 3, 1), data, data.picture_channels)
    rows = [
        [original, *(overlay(original, one.reshape(grid)) for one in own)]
        for original, own in zip(originals, maps)
    ]
    return rows, ["original", *titles]


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Draw a map [rows, columns] on an image [H, W, C] in [0, 1]. Each patch has one colour, from
    black (the map's minimum) through red to yellow (its maximum)."""
    height, width = image.shape[:2]
    rows, columns = heat.shape
    level = (heat - heat.min()) / max(heat.max() - heat.min(), 1e-12)
    level = level.repeat(height // rows, 0).repeat(width // columns, 1)
    colours = np.stack([np.interp(level, _LEVELS, channel) for channel in _COLOURS], axis=-1)
    grey = image.mean(axis=-1, keepdims=True)
    return (1 - _OPACITY) * grey + _OPACITY * colours


# Stops of matplotlib's "inferno".
_LEVELS = np.linspace(0, 1, 5)
_COLOURS = (
    (0.00, 0.34, 0.73, 0.98, 0.99),
    (0.00, 0.06, 0.21, 0.55, 1.00),
    (0.01, 0.43, 0.33, 0.04, 0.64),
)
