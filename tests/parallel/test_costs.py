"""The cost model against the models themselves."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from libai_ext.engine.stages import balance
from projects.MAE.modeling.archs import ARCHS, build_mae, build_vit
from projects.MAE.parallel.costs import layers_of

SMALL = dict(
    arch="mae_vit_digits", in_chans=1, embed_dim=16, depth=3, num_heads=2, img_size=[16, 24]
)
DECODER = dict(decoder_embed_dim=32, decoder_depth=2, decoder_num_heads=2, mask_ratio=0.75)


def layers(**changes):
    return layers_of(OmegaConf.create(dict(SMALL, patch_size=4, **changes)))


def numbers(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_parameters_are_those_of_the_models():
    assert sum(x.parameters for x in layers(**DECODER)) == numbers(build_mae(**SMALL, **DECODER))
    classifier = layers(num_classes=7)
    assert sum(x.parameters for x in classifier) == numbers(build_vit(**SMALL, num_classes=7))


def test_operations_of_one_layer():
    """Of ViT-B's encoder on 50 tokens: 12 D^2 multiplications and additions a token for the
    matrices, and the two products of attention."""
    model = dict(ARCHS["mae_vit_base_patch16"], in_chans=3, mask_ratio=0.75)
    encoder = layers_of(OmegaConf.create(model))
    assert encoder[1].tokens == 50 and encoder[-2].tokens == 197
    expected = 2 * 50 * 12 * 768**2 + 2 * 2 * 50 * 50 * 768
    assert encoder[1].operations == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    "arch, stages, ends",
    [
        # Halves by count would be layers 0-9 and 10-19.
        ("mae_vit_base_patch16", 2, [13]),
        ("mae_vit_large_patch16", 2, [16]),
    ],
)
def test_stages_of_published_models(arch, stages, ends):
    model = dict(ARCHS[arch], in_chans=3, mask_ratio=0.75)
    costs = [layer.operations for layer in layers_of(OmegaConf.create(model))]
    found = balance(costs, stages)
    assert [found.index(stage) for stage in range(1, stages)] == ends
