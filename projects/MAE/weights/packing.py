"""Layouts of single tensors: attention projections and linear layers.

D width of the layer's input, H heads, E = D / H (head_dim).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from libai_ext.checkpoint.errors import CheckpointError

# Width -> heads of the published MAE models. Other widths do not determine the heads.
ENCODER_HEADS = {384: 6, 768: 12, 1024: 16, 1280: 16}
DECODER_HEADS = {512: 16}


@dataclass(frozen=True)
class Heads:
    """Numbers of attention heads; None: those of the published model of that width."""

    encoder: int | None = None
    decoder: int | None = None

    def of(self, name: str, width: int) -> int:
        """Heads of the layer `name` (ours) of the given width.

        Raises:
            CheckpointError: the width is not a published one, or not divisible by the heads.
        """
        article, part, known = "an", "encoder", ENCODER_HEADS
        if name.startswith("decoder_"):
            article, part, known = "a", "decoder", DECODER_HEADS
        heads = getattr(self, part) or known.get(width)
        if heads is None:
            also = "load_encoder(heads=...), " if part == "encoder" else ""
            raise CheckpointError(
                f"{name}: {article} {part} of width {width} is none of the published ones "
                f"({', '.join(map(str, known))}), so its number of heads must be given: "
                f"Heads({part}=...), {also}in tools/convert.py --{part}-heads"
            )
        if width % heads:
            raise CheckpointError(f"{name}: {heads} heads do not divide the width {width}")
        return heads


PUBLISHED = Heads()


def pack_qkv(theirs: np.ndarray, heads: int) -> np.ndarray:
    """PyTorch's [3, H, E, ...] to ours, [..., H, 3, E].

    Args:
        theirs: weight [3D, D] or bias [3D].
        heads: H.

    Returns:
        weight [D, 3D] or bias [3D].
    """
    width = theirs.shape[0] // 3
    split = theirs.reshape(3, heads, width // heads, -1)
    packed = split.transpose(3, 1, 0, 2).reshape(-1, 3 * width)
    return np.ascontiguousarray(packed if theirs.ndim == 2 else packed[0])


def unpack_qkv(ours: np.ndarray, heads: int) -> np.ndarray:
    """The inverse of `pack_qkv`: [D, 3D] to [3D, D], or a bias [3D] to [3D]."""
    width = ours.shape[-1] // 3
    split = ours.reshape(-1, heads, 3, width // heads)
    unpacked = split.transpose(2, 1, 3, 0).reshape(3 * width, -1)
    return np.ascontiguousarray(unpacked if ours.ndim == 2 else unpacked[:, 0])
