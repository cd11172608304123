"""Image files in memory, good and bad, for the tests of the readers."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def pixels(seed=0, height=20, width=30):
    """Smooth colours, so that JPEG keeps them within a few levels."""
    y, x = np.mgrid[0:height, 0:width]
    phase = np.random.default_rng(seed).uniform(0, 6, 3)
    waves = [128 + 100 * np.sin(x / 9 + y / (5 + c) + phase[c]) for c in range(3)]
    return np.uint8(np.stack(waves, -1))


def encode(image, kind="PNG", **keywords):
    """The bytes of a file of an image or an array."""
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    out = io.BytesIO()
    image.save(out, kind, **keywords)
    return out.getvalue()


def bad_files():
    """By kind: files that must be skipped."""
    png, jpeg = encode(pixels()), encode(pixels(), "JPEG")
    corrupt = bytearray(png)
    corrupt[60:90] = bytes(30)
    return {
        "empty": b"",
        "no picture": b"not a picture",
        "truncated jpeg": jpeg[: len(jpeg) // 2],
        "truncated png": png[: len(png) // 2],
        "corrupt png": bytes(corrupt),
        "header only": jpeg[:20],
        "float": encode(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"),
    }
