"""Build the model that a weights file belongs to, with sizes read from its tensors."""

from __future__ import annotations

from typing import NamedTuple, Sequence

from omegaconf import DictConfig

from libai_ext.checkpoint.errors import CheckpointError
from libai_ext.placement import set_layout
from projects.MAE.modeling.mae import MaskedAutoencoder
from projects.MAE.modeling.vit import ViTClassifier
from projects.MAE.weights.describe import DECODER, Source, describe
from projects.MAE.weights.files import read_weights
from projects.MAE.weights.load import load_weights, match_and_assign
from projects.MAE.weights.mapping import names_in
from projects.MAE.weights.match import unknown_grid
from projects.MAE.weights.packing import PUBLISHED, Heads

# Layers after the last block of an encoder or a classifier: useless without their task.
_AFTER_THE_BLOCKS = ("norm.", "fc_norm.", "head", *DECODER)

ONE_PROCESS = DictConfig(
    dict(data_parallel_size=1, tensor_parallel_size=1, pipeline_parallel_size=1)
)


class Loaded(NamedTuple):
    """``model`` is in evaluation mode. Its decoder is untrained if ``source`` has none that
    predicts pixels."""

    model: MaskedAutoencoder
    source: Source

    @property
    def has_decoder(self) -> bool:
        return draws_pixels(self.source)


def draws_pixels(source: Source) -> bool:
    """Whether there is a decoder that predicts pixels."""
    return source.contents == "pretraining" and "target" not in source.record.model


def model_of(
    path: str,
    heads: Heads = PUBLISHED,
    img_size: Sequence[int] | None = None,
    norm_pix_loss: bool = False,
    grid: tuple[int, int] | None = None,
) -> Loaded:
    """Build and load the model of a checkpoint of any style: pre-training, encoder or classifier.
    For one process.

    Args:
        heads, grid, norm_pix_loss: given by the user, for a file that does not give them.
        img_size: (H, W); if not given, the file's. Position tables are interpolated to it.

    Raises:
        CheckpointError: the file cannot be read, holds no vision transformer, or contradicts an
            argument.
    """
    weights, source = read_weights(path, heads, grid)
    has_decoder = draws_pixels(source)
    if not has_decoder:
        weights = {name: x for name, x in weights.items() if not name.startswith(DECODER)}
    try:
        sizes = _sizes(source, img_size, norm_pix_loss)
        set_layout(ONE_PROCESS)
        model = MaskedAutoencoder(**sizes)
        replaced = () if has_decoder else _AFTER_THE_BLOCKS
        match_and_assign(model, model.state_dict(), weights, replaced, source)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    return Loaded(model.eval(), source)


def encoder_of(
    path: str,
    heads: Heads = PUBLISHED,
    img_size: Sequence[int] | None = None,
    grid: tuple[int, int] | None = None,
) -> tuple[ViTClassifier, Source]:
    """The encoder in a checkpoint of any style, with its class head if it has one, else with an
    untrained head of one class. In evaluation mode, for one process.

    Args:
        heads, img_size, grid: see :func:`model_of`.

    Raises:
        CheckpointError: see :func:`model_of`.
    """
    state, source = describe(path, heads, grid)
    known, classifies = source.record.model, source.contents == "classifier"
    try:
        sizes = _encoder_sizes(source, img_size)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    pooled_first = "fc_norm.weight" in names_in(state, source.style)
    set_layout(ONE_PROCESS)
    model = ViTClassifier(
        **sizes,
        num_classes=known["num_classes"] if classifies else 1,
        pooling="mean" if pooled_first else "cls",
        batch_norm=known.get("batch_norm", False),
        init="pretraining",
    )
    replaced = DECODER if classifies else (*DECODER, "head.")
    load_weights(model, path, replaced, grid=grid, heads=heads)
    return model.eval(), source


def _encoder_sizes(source: Source, img_size: Sequence[int] | None) -> dict:
    """Arguments of both models."""
    known = source.record.model
    width, patch = known.get("embed_dim"), known.get("patch_size")
    if width is None or source.patches is None or "mlp_ratio" not in known:
        raise CheckpointError("there are no patch and position embeddings or no blocks in it")
    if img_size is None and source.grid is None:
        raise CheckpointError(unknown_grid(source.patches))
    return dict(
        {key: known[key] for key in ("in_chans", "depth", "mlp_ratio")},
        img_size=tuple(img_size or known["img_size"]),
        patch_size=patch,
        embed_dim=width,
        num_heads=source.heads.of("blocks.0", width),
    )


def _sizes(source: Source, img_size: Sequence[int] | None, norm_pix_loss: bool) -> dict:
    """Arguments of :class:`MaskedAutoencoder`."""
    known = source.record.model
    sizes = _encoder_sizes(source, img_size)
    if norm_pix_loss and known.get("norm_pix_loss") is False:
        raise CheckpointError(f"{source.record.origin} says that norm_pix_loss was off")
    sizes["norm_pix_loss"] = known.get("norm_pix_loss", norm_pix_loss)
    if not draws_pixels(source):  # the model needs a decoder: the smallest one
        width, heads = sizes["embed_dim"], sizes["num_heads"]
        return dict(sizes, decoder_embed_dim=width, decoder_depth=1, decoder_num_heads=heads)
    decoder_width = known["decoder_embed_dim"]
    return dict(
        sizes,
        decoder_embed_dim=decoder_width,
        decoder_depth=known["decoder_depth"],
        decoder_num_heads=source.heads.of("decoder_blocks.0", decoder_width),
    )
