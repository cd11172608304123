"""The functions that configs call to build a model, by the name of an arch or by single sizes."""

from __future__ import annotations

from typing import Sequence

from omegaconf import DictConfig

from libai_ext.config.names import nearest, question
from libai_ext.errors import ConfigError
from projects.MAE.modeling.mae import MaskedAutoencoder
from projects.MAE.modeling.sizes import ARCHS, ENCODER_SIZES
from projects.MAE.modeling.targets.base import Target
from projects.MAE.modeling.vit import ViTClassifier


def build_mae(
    arch: str,
    img_size: Sequence[int] | None = None,
    in_chans: int = 3,
    mask_ratio: float = 0.75,
    norm_pix_loss: bool = False,
    patch_size: int | None = None,
    embed_dim: int | None = None,
    depth: int | None = None,
    num_heads: int | None = None,
    decoder_embed_dim: int | None = None,
    decoder_depth: int | None = None,
    decoder_num_heads: int | None = None,
    mlp_ratio: float = 4.0,
    target: Target | None = None,
) -> MaskedAutoencoder:
    """A model of :data:`ARCHS`; given sizes replace those of the table."""
    sizes = dict(
        img_size=img_size,
        patch_size=patch_size,
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        decoder_embed_dim=decoder_embed_dim,
        decoder_depth=decoder_depth,
        decoder_num_heads=decoder_num_heads,
    )
    return MaskedAutoencoder(
        in_chans=in_chans,
        mask_ratio=mask_ratio,
        norm_pix_loss=norm_pix_loss,
        target=target,
        mlp_ratio=mlp_ratio,
        **_sizes(arch, sizes),
    )


def build_vit(
    arch: str,
    img_size: Sequence[int] | None = None,
    in_chans: int = 3,
    patch_size: int | None = None,
    embed_dim: int | None = None,
    depth: int | None = None,
    num_heads: int | None = None,
    **options,
) -> ViTClassifier:
    """A classifier with the encoder of a model of :data:`ARCHS`; given sizes replace those of the
    table. ``options``: see :class:`ViTClassifier`."""
    sizes = _sizes(
        arch,
        dict(
            img_size=img_size,
            patch_size=patch_size,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
        ),
    )
    encoder = {key: sizes[key] for key in ("img_size", *ENCODER_SIZES)}
    return ViTClassifier(in_chans=in_chans, **encoder, **options)


def _sizes(arch: str, given: dict) -> dict:
    return dict(ARCHS[arch], **{key: value for key, value in given.items() if value is not None})


def resolve_arch(model: DictConfig) -> None:
    """Write the sizes of ``model.arch`` into the unset keys of a config node, so that other nodes
    can refer to ``${model.img_size}``.

    Raises:
        ConfigError: unknown arch.
    """
    if model.arch not in ARCHS:
        close = nearest(str(model.arch), ARCHS)
        hint = question(close) if close else f"; known are {', '.join(ARCHS)}"
        raise ConfigError(f"model.arch '{model.arch}' is unknown{hint}")
    for key, value in ARCHS[model.arch].items():
        if key in model and model[key] is None:
            model[key] = list(value) if isinstance(value, tuple) else value
    if isinstance(model.img_size, int):
        model.img_size = [model.img_size, model.img_size]
