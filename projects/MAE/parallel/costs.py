"""Costs of each layer of the pipeline: operations, parameters, values kept for backward.

A layer's costs include what runs with it: the patch embedding counts with the first encoder layer,
the decoder's embedding with the first decoder layer, the last norm and the prediction or the
class head with the last layer. D width, M hidden width of the MLP, N tokens.
"""

from __future__ import annotations

from typing import NamedTuple

from omegaconf import DictConfig

from libai_ext.layers.patch_embedding import grid_of
from projects.MAE.modeling.masking import num_kept


class Layer(NamedTuple):
    """One transformer layer, with what runs before or after it."""

    width: int
    heads: int
    hidden: int
    tokens: int
    # Matrices and their columns' biases, divided by tensor parallelism.
    split_parameters: int
    # Other biases, norms, embeddings and heads: complete on every tensor-parallel rank.
    whole_parameters: int
    # Multiplications and additions of one sample's forward pass; backward takes twice as many.
    operations: float
    # Values of one sample that are kept for the backward pass, besides the layer's own.
    beside: int = 0
    # Values of one sample in the loss, in the last layer of pre-training.
    loss: int = 0
    # Pixels of one sample that the layer's stage needs.
    image: int = 0

    @property
    def parameters(self) -> int:
        return self.split_parameters + self.whole_parameters


def layers_of(model: DictConfig) -> list[Layer]:
    """The pipeline of a resolved model config: a masked autoencoder if it has a decoder, else a
    classifier."""
    rows, columns = grid_of(model.img_size, model.patch_size)
    patches = rows * columns
    pixels = model.patch_size**2 * model.in_chans
    ratio = model.get("mlp_ratio") or 4.0
    width = model.embed_dim
    pretraining = "decoder_depth" in model
    tokens = 1 + (num_kept(patches, model.mask_ratio) if pretraining else patches)

    layers = [_layer(width, model.num_heads, ratio, tokens)] * model.depth
    embedding = width * (pixels + 1) + width  # projection and class token
    if not pretraining:
        embedding += (1 + patches) * width  # the position embeddings are trained
    # Patches as rows of a matrix, and their tokens without and with the class token.
    beside = patches * pixels + 2 * tokens * width
    image = patches * pixels
    layers[0] = _with(layers[0], embedding, 2 * patches * pixels * width, beside, image)
    if not pretraining:
        classes = model.num_classes
        head = 2 * width + classes * (width + 1)
        layers[-1] = _with(layers[-1], head, 2 * width * classes)
        return layers

    layers[-1] = _with(layers[-1], 2 * width, 0, tokens * width)
    inner = model.decoder_embed_dim
    whole = 1 + patches
    decoder = [_layer(inner, model.decoder_num_heads, ratio, whole)] * model.decoder_depth
    embedding = inner * (width + 1) + inner
    decoder[0] = _with(decoder[0], embedding, 2 * tokens * width * inner, 3 * whole * inner)
    prediction = 2 * inner + pixels * (inner + 1)
    decoder[-1] = _with(
        decoder[-1], prediction, 2 * whole * inner * pixels, whole * inner, image
    )._replace(loss=4 * patches * pixels)
    return layers + decoder


def _layer(width: int, heads: int, ratio: float, tokens: int) -> Layer:
    hidden = int(width * ratio)
    products = 4 * width**2 + 2 * width * hidden
    operations = 2 * tokens * products + 4 * tokens**2 * width
    return Layer(width, heads, hidden, tokens, products + 3 * width + hidden, 6 * width, operations)


def _with(
    layer: Layer, parameters: int, operations: float, beside: int = 0, image: int = 0
) -> Layer:
    return layer._replace(
        whole_parameters=layer.whole_parameters + parameters,
        operations=layer.operations + operations,
        beside=layer.beside + beside,
        image=layer.image + image,
    )
