"""The model that a file of weights was made for, its sizes read off the tensors."""

from __future__ import annotations

from typing import NamedTuple, Sequence

import oneflow as flow
from omegaconf import DictConfig

from libai_ext.checkpoint.errors import CheckpointError
from libai_ext.layers.initialize import assign
from libai_ext.placement import set_layout
from projects.MAE.modeling.mae import MaskedAutoencoder
from projects.MAE.weights.files import read_weights
from projects.MAE.weights.match import DECODER, match
from projects.MAE.weights.names import split_number
from projects.MAE.weights.packing import PUBLISHED, Heads

# Of an encoder or a classifier, what follows the last block is of no use without its task.
_AFTER_THE_BLOCKS = ("norm.", "fc_norm.", "head", *DECODER)

ONE_PROCESS = DictConfig(
    dict(data_parallel_size=1, tensor_parallel_size=1, pipeline_parallel_size=1)
)
# One stage has room for all layers, those of models built later included.
ANY_DEPTH = 1000


class Loaded(NamedTuple):
    """``model`` is in evaluation mode; without ``has_decoder`` its decoder is untrained."""

    model: MaskedAutoencoder
    has_decoder: bool


def model_of(
    path: str,
    heads: Heads = PUBLISHED,
    img_size: Sequence[int] | None = None,
    norm_pix_loss: bool = False,
) -> Loaded:
    """Build and load the model of a checkpoint of any style: pre-training, encoder or classifier.
    For one process.

    Args:
        heads: only needed where widths are not those of a published model.
        img_size: (H, W); a square when not given. Position tables are interpolated to it.
        norm_pix_loss: whether it was trained on normalised patches; no file says.

    Raises:
        CheckpointError: the file cannot be read, or holds no vision transformer.
    """
    weights, source = read_weights(path, heads)
    has_decoder = source.contents == "pretraining"
    shapes = {name: tuple(array.shape) for name, array in weights.items()}
    try:
        sizes = _sizes(shapes, source.heads, img_size, has_decoder)
        set_layout(ONE_PROCESS, ANY_DEPTH)
        model = MaskedAutoencoder(norm_pix_loss=norm_pix_loss, **sizes)
        state = model.state_dict()
        matched = match(
            {name: tuple(tensor.shape) for name, tensor in state.items()},
            weights,
            replaced=() if has_decoder else _AFTER_THE_BLOCKS,
            grid=model.patch_embed.grid_size,
        )
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    with flow.no_grad():
        for name, array in matched.weights.items():
            assign(state[name], array)
    return Loaded(model.eval(), has_decoder)


def _sizes(shapes: dict, heads: Heads, img_size, has_decoder: bool) -> dict:
    """Arguments of :class:`MaskedAutoencoder`."""
    try:
        width, channels, patch_size, _ = shapes["patch_embed.proj.weight"]
        patches = shapes["pos_embed"][1] - 1
    except (KeyError, ValueError):
        raise CheckpointError("there are no patch and position embeddings in it") from None
    if img_size is None:
        side = round(patches**0.5)
        if side * side != patches:
            raise CheckpointError(
                f"it was trained on {patches} patches of {patch_size} x {patch_size} pixels, which "
                "make no square: give the image size (--size HEIGHTxWIDTH)"
            )
        img_size = (side * patch_size,) * 2
    encoder_heads = heads.of("blocks.0", width)
    sizes = dict(
        img_size=tuple(img_size),
        patch_size=patch_size,
        in_chans=channels,
        embed_dim=width,
        depth=_depth(shapes, "blocks.#."),
        num_heads=encoder_heads,
        mlp_ratio=shapes["blocks.0.mlp.dense_h_to_4h.bias"][0] / width,
    )
    if not has_decoder:  # the smallest one, to make the model whole
        return dict(
            sizes, decoder_embed_dim=width, decoder_depth=1, decoder_num_heads=encoder_heads
        )
    decoder_width = shapes["mask_token"][-1]
    return dict(
        sizes,
        decoder_embed_dim=decoder_width,
        decoder_depth=_depth(shapes, "decoder_blocks.#."),
        decoder_num_heads=heads.of("decoder_blocks.0", decoder_width),
    )


def _depth(shapes: dict, prefix: str) -> int:
    pairs = (split_number(name) for name in shapes)
    return 1 + max(int(number) for template, number in pairs if template.startswith(prefix))
