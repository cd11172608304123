from __future__ import annotations

import numpy as np
import oneflow as flow
import pytest

from libai_ext.errors import ConfigError
from libai_ext.layers.patch_embedding import patchify
from libai_ext.placement import batch_sbp, to_global
from projects.MAE.modeling.archs import ARCHS, build_mae, resolve_arch
from projects.MAE.modeling.loss import masked_mean, normalize_patches, squared_error
from projects.MAE.modeling.mae import MaskedAutoencoder
from projects.MAE.modeling.masking import num_kept, random_masking
from projects.MAE.modeling.pos_embed import sincos_pos_embed


def small(**changes):
    sizes = dict(
        img_size=(16, 32),
        patch_size=8,
        in_chans=3,
        embed_dim=32,
        depth=2,
        num_heads=4,
        decoder_embed_dim=16,
        decoder_depth=1,
        decoder_num_heads=2,
    )
    return MaskedAutoencoder(**dict(sizes, **changes))


@pytest.mark.parametrize(
    "arch, parameters",
    [  # of Hugging Face's ViTMAE of the same sizes, position tables left out
        ("mae_vit_base_patch16", 111_655_680),
        ("mae_vit_large_patch16", 329_239_296),
        ("mae_vit_huge_patch14", 656_613_964),
        ("mae_vit_small_patch4", 46_755_888),
        ("mae_vit_base_patch4", 110_733_360),
    ],
)
def test_parameter_counts(arch, parameters):
    """By arithmetic on the table; B is also built below."""
    size = ARCHS[arch]

    def block(dim):
        return 12 * dim * dim + 13 * dim

    d, e, pixels = size["embed_dim"], size["decoder_embed_dim"], size["patch_size"] ** 2 * 3
    count = size["depth"] * block(d) + size["decoder_depth"] * block(e)
    count += d + e + pixels * d + d + 2 * d + d * e + e + 2 * e + e * pixels + pixels
    assert count == parameters


def test_base_is_built_to_its_table():
    model = build_mae("mae_vit_base_patch16")
    assert sum(p.numel() for p in model.parameters()) == 111_655_680
    assert (model.num_patches, model.keep) == (196, 49)
    assert len(model.blocks) == 12 and len(model.decoder_blocks) == 8
    norms = [m.eps for m in model.modules() if type(m).__name__ == "LayerNorm"]
    assert norms == [1e-6] * (2 * 20 + 2)


def test_initial_values():
    """Xavier-uniform matrices (the patch projection seen as [D, C*p*p]), tokens N(0, 0.02); the
    bias of the patch projection is that of PyTorch's convolution."""
    model = small(embed_dim=256, decoder_embed_dim=128)
    for name, parameter in model.named_parameters():
        values = parameter.numpy()
        if "token" in name:
            assert 0.015 < values.std() < 0.025, name
        elif name == "patch_embed.proj.bias":
            bound = model.patch_embed.proj.weight[0].numel() ** -0.5
            assert 0.97 * bound < np.abs(values).max() <= bound
            assert values.std() == pytest.approx(bound / np.sqrt(3), rel=0.1)
        elif name.endswith("bias"):
            assert not values.any(), name
        elif values.ndim == 1:
            assert (values == 1).all(), name
        else:
            fan = values.shape[0] + values[0].size
            bound = np.sqrt(6 / fan)
            assert 0.99 * bound < np.abs(values).max() <= bound, name
            assert values.std() == pytest.approx(bound / np.sqrt(3), rel=0.03), name


def test_weights_follow_the_seed():
    first, again = small(), small()
    flow.manual_seed(1)
    other = small()
    for name, tensor in first.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), again.state_dict()[name].numpy())
    assert np.abs(first.cls_token.numpy() - other.cls_token.numpy()).max() > 0.01
    assert not np.array_equal(
        first.blocks[0].self_attention.dense.weight.numpy(),
        first.blocks[1].self_attention.dense.weight.numpy(),
    )


def test_position_tables_are_not_trained():
    model = small()
    assert {"pos_embed", "decoder_pos_embed"} <= set(model.state_dict())
    assert not [name for name, _ in model.named_parameters() if "pos_embed" in name]


def test_position_table_values():
    """A 2 x 3 grid, 8 channels: sines and cosines of the column, then of the row, at
    frequencies 1 and 1/100."""
    table = sincos_pos_embed((2, 3), 8)
    assert table.shape == (1, 7, 8) and not table[0, 0].any()
    row, column = 1, 2
    expected = []
    for position in (column, row):
        angles = [position, position / 100]
        expected += [*np.sin(angles), *np.cos(angles)]
    np.testing.assert_allclose(table[0, 1 + row * 3 + column], expected, rtol=1e-6)
    with pytest.raises(ValueError, match="divisible by 4, got 6"):
        sincos_pos_embed((2, 3), 6)


def test_patchify_orders():
    images = np.arange(2 * 3 * 4 * 6, dtype=np.float32).reshape(2, 3, 4, 6)
    patch = images[1, :, 2:4, 4:6]  # row 1, column 2 of the 2 x 3 grid
    for channels_last, expected in ((True, patch.transpose(1, 2, 0)), (False, patch)):
        out = patchify(flow.from_numpy(images), 2, channels_last).numpy()
        assert out.shape == (2, 6, 12)
        np.testing.assert_array_equal(out[1, 5], expected.reshape(-1))


def test_masking_keeps_the_lowest_noise():
    noise = np.float32([[0.3, 0.1, 0.9, 0.2], [0.8, 0.7, 0.6, 0.5]])
    keep, restore, mask = (t.numpy() for t in random_masking(flow.from_numpy(noise), 2))
    assert keep.tolist() == [[1, 3], [3, 2]]
    assert restore.tolist() == [[2, 0, 3, 1], [3, 2, 1, 0]]
    assert mask.tolist() == [[1, 0, 1, 0], [1, 1, 0, 0]]


@pytest.mark.parametrize(
    "patches, ratio, kept", [(196, 0.75, 49), (256, 0.75, 64), (64, 0.6, 25), (10, 0.0, 10)]
)
def test_kept_patches_round_down(patches, ratio, kept):
    assert num_kept(patches, ratio) == kept


def test_mask_ratio_that_leaves_nothing():
    with pytest.raises(ValueError, match="mask_ratio 0.95 leaves 0 of 8 patches"):
        small(mask_ratio=0.95)


def test_loss_counts_removed_patches_only():
    prediction = flow.tensor([[[1.0, 3.0], [9.0, 9.0], [0.0, 2.0]]])
    mask = flow.tensor([[1.0, 0.0, 1.0]])
    loss = masked_mean(squared_error(prediction, flow.zeros(1, 3, 2)), mask)
    assert loss.numpy().tolist() == [(5.0 + 2.0) / 2]


def test_loss_survives_half_precision():
    prediction = flow.full((1, 1, 2), 300.0, dtype=flow.float16)
    loss = masked_mean(squared_error(prediction, flow.zeros(1, 1, 2)), flow.ones(1, 1))
    assert loss.numpy().tolist() == [90000.0]


def test_patch_normalisation_is_unbiased():
    out = normalize_patches(flow.tensor([[[1.0, 2.0, 3.0, 6.0]]])).numpy()
    expected = (np.array([1, 2, 3, 6]) - 3) / np.sqrt(14 / 3 + 1e-6)
    np.testing.assert_allclose(out[0, 0], expected, rtol=1e-6)


def test_noise_is_drawn_when_not_given():
    model = small().eval()
    images = to_global(np.zeros((2, 3, 16, 32), np.float32), batch_sbp())
    mask = model(images)["mask"].numpy()
    assert mask.sum(axis=1).tolist() == [6, 6]


def test_wrong_images_are_named():
    images = to_global(np.zeros((2, 1, 16, 32), np.float32), batch_sbp())
    with pytest.raises(ValueError, match="images of 3 x 16 x 32 .* got .1, 16, 32.*model.in_chans"):
        small()(images)
    with pytest.raises(ValueError, match="16x30 .* not divisible by patch_size 8"):
        small(img_size=(16, 30))


def test_arch_fills_what_is_unset():
    from omegaconf import OmegaConf

    unset = dict.fromkeys(ARCHS["mae_vit_base_patch16"])
    node = OmegaConf.create(dict(unset, arch="mae_vit_small_patch4", depth=6))
    resolve_arch(node)
    assert (node.depth, node.embed_dim, list(node.img_size)) == (6, 384, [32, 128])
    node = OmegaConf.create(dict(unset, arch="mae_vit_base_patch16", img_size=96))
    resolve_arch(node)
    assert list(node.img_size) == [96, 96]
    with pytest.raises(ConfigError, match="'vit_large' is unknown: did you mean 'mae_vit_large"):
        resolve_arch(OmegaConf.create(dict(unset, arch="vit_large")))
