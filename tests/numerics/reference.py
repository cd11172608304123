"""Reads the golden numbers and builds our model from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import oneflow as flow

from libai_ext.layers.initialize import assign
from libai_ext.placement import batch_sbp, to_global
from projects.MAE.modeling.mae import MaskedAutoencoder
from projects.MAE.weights.mapping import to_ours
from projects.MAE.weights.packing import Heads

FOLDER = Path(__file__).resolve().parents[1] / "golden" / "mae_numbers"
SIZES = {"square": (16, 16, 3), "rectangular": (8, 32, 3), "grey": (16, 16, 1)}
WIDTH = 24


class Golden:
    """One file of golden numbers."""

    def __init__(self, case: str):
        self.file = np.load(FOLDER / f"{case}.npz")

    def __getitem__(self, key: str) -> np.ndarray:
        return self.file[key]

    def ours(self, prefix: str) -> dict:
        """Tensors under ``prefix/`` by our names, in our layouts."""
        start = prefix + "/"
        theirs = {k[len(start) :]: self.file[k] for k in self.file if k.startswith(start)}
        weights, left_out = to_ours(theirs, "hf5", Heads(encoder=3, decoder=2))
        assert not left_out
        return weights


def build(case: str, norm_pix_loss: bool = False) -> MaskedAutoencoder:
    height, width, channels = SIZES[case]
    return MaskedAutoencoder(
        img_size=(height, width),
        patch_size=4,
        in_chans=channels,
        embed_dim=WIDTH,
        depth=2,
        num_heads=3,
        decoder_embed_dim=16,
        decoder_depth=1,
        decoder_num_heads=2,
        norm_pix_loss=norm_pix_loss,
    )


def load(model: MaskedAutoencoder, weights: dict) -> None:
    """Every tensor of the model from ``weights``, and nothing left over."""
    state = model.state_dict()
    assert sorted(state) == sorted(weights)
    with flow.no_grad():
        for name, tensor in state.items():
            assign(tensor, weights[name])


def draw(case: str, seed: int, size: int = 4):
    """The images [B, C, H, W] and noise [B, L] that the golden script drew."""
    height, width, channels = SIZES[case]
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(size, channels, height, width)).astype(np.float32)
    noise = rng.random((size, height * width // 16), dtype=np.float32)
    return images, noise


def tensors(*arrays: np.ndarray):
    return [to_global(array, batch_sbp()) for array in arrays]


def without_key_bias(name: str, array: np.ndarray) -> np.ndarray:
    """Drops the key third of a qkv bias [heads, 3, head_dim]: softmax is blind to it, so its
    gradient is zero by mathematics and rounding noise in practice."""
    if not name.endswith("query_key_value.bias"):
        return array
    heads = 2 if name.startswith("decoder") else 3
    return array.reshape(heads, 3, -1)[:, [0, 2]].reshape(-1)
