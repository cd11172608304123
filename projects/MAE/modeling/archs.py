"""The published sizes and the factory that configs call."""

from __future__ import annotations

import difflib
from typing import Sequence

from omegaconf import DictConfig

from libai_ext.errors import ConfigError
from projects.MAE.modeling.mae import MaskedAutoencoder
from projects.MAE.modeling.vit import ViTClassifier

ENCODER_SIZES = ("patch_size", "embed_dim", "depth", "num_heads")
_DECODER = dict(decoder_embed_dim=512, decoder_depth=8, decoder_num_heads=16)


def _arch(size, patch_size: int, embed_dim: int, depth: int, num_heads: int, **decoder) -> dict:
    return dict(
        img_size=size,
        patch_size=patch_size,
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        **(decoder or _DECODER),
    )


# Sizes are (height, width).
ARCHS = {
    "mae_vit_base_patch16": _arch((224, 224), 16, 768, 12, 12),
    "mae_vit_large_patch16": _arch((224, 224), 16, 1024, 24, 16),
    "mae_vit_huge_patch14": _arch((224, 224), 14, 1280, 32, 16),
    # Union14M's, for lines of text.
    "mae_vit_small_patch4": _arch((32, 128), 4, 384, 12, 6),
    "mae_vit_base_patch4": _arch((32, 128), 4, 768, 12, 12),
    # For images of 32 x 32 (CIFAR) and 96 x 96 (STL-10).
    "mae_vit_tiny_patch4": _arch(
        (32, 32), 4, 192, 12, 3, decoder_embed_dim=192, decoder_depth=4, decoder_num_heads=3
    ),
    "mae_vit_small_patch8": _arch(
        (96, 96), 8, 384, 12, 6, decoder_embed_dim=256, decoder_depth=4, decoder_num_heads=8
    ),
    "mae_vit_digits": _arch(
        (32, 32), 4, 64, 4, 4, decoder_embed_dim=64, decoder_depth=1, decoder_num_heads=4
    ),
}


def build_mae(
    arch: str,
    img_size: Sequence[int] | None = None,
    in_chans: int = 3,
    mask_ratio: float = 0.75,
    norm_pix_loss: bool = False,
    **sizes,
) -> MaskedAutoencoder:
    """A model of :data:`ARCHS`; every size that is given replaces the table's."""
    return MaskedAutoencoder(
        in_chans=in_chans,
        mask_ratio=mask_ratio,
        norm_pix_loss=norm_pix_loss,
        **_sizes(arch, dict(sizes, img_size=img_size)),
    )


def build_vit(
    arch: str, img_size: Sequence[int] | None = None, in_chans: int = 3, **options
) -> ViTClassifier:
    """A classifier with the encoder of a model of :data:`ARCHS`; every size that is given
    replaces the table's. ``options``: see :class:`ViTClassifier`."""
    sizes = {key: options.pop(key, None) for key in ENCODER_SIZES}
    return ViTClassifier(
        in_chans=in_chans,
        **{
            key: value
            for key, value in _sizes(arch, dict(sizes, img_size=img_size)).items()
            if key == "img_size" or key in ENCODER_SIZES
        },
        **options,
    )


def _sizes(arch: str, given: dict) -> dict:
    return dict(ARCHS[arch], **{key: value for key, value in given.items() if value is not None})


def resolve_arch(model: DictConfig) -> None:
    """Write the sizes of ``model.arch`` into the keys of a config node that are unset, so that
    other nodes can refer to ``${model.img_size}``.

    Raises:
        ConfigError: unknown arch.
    """
    if model.arch not in ARCHS:
        close = difflib.get_close_matches(model.arch, ARCHS, n=1, cutoff=0)
        raise ConfigError(f"model.arch '{model.arch}' is unknown: did you mean '{close[0]}'?")
    for key, value in ARCHS[model.arch].items():
        if key in model and model[key] is None:
            model[key] = list(value) if isinstance(value, tuple) else value
    if isinstance(model.img_size, int):
        model.img_size = [model.img_size, model.img_size]
