"""Strict matching of weights to a model, and its report."""

from __future__ import annotations

import re

import numpy as np
import pytest

from libai_ext.checkpoint.errors import CheckpointError
from projects.MAE.weights.files import read_weights
from projects.MAE.weights.match import NEW, REPLACED, match
from projects.MAE.weights.packing import Heads
from projects.MAE.weights.pos_embed import interpolate


@pytest.fixture
def weights(golden):
    return read_weights(golden / "fb_pretrain.pth", Heads(3, 2))[0]


@pytest.fixture
def encoder(weights):
    return {name: array for name, array in weights.items() if not _is_decoder(name)}


def _is_decoder(name):
    return name.startswith(("decoder_", "mask_token"))


def _shapes(weights):
    return {name: array.shape for name, array in weights.items()}


def _classifier(encoder, pooling):
    shapes = {**_shapes(encoder), "head.weight": (12, 5), "head.bias": (5,)}
    if pooling == "mean":
        for kind in ("weight", "bias"):
            shapes[f"fc_norm.{kind}"] = shapes.pop(f"norm.{kind}")
    return shapes


def test_pretraining_continues_with_every_tensor(weights):
    result = match(_shapes(weights), weights)
    assert list(result.weights) == list(weights)
    assert all(result.weights[name] is array for name, array in weights.items())
    assert (result.fresh, result.left_out, result.interpolated) == ([], [], [])


def test_finetuning_drops_the_decoder_and_the_norm_and_makes_a_head(weights, encoder):
    expected = _classifier(encoder, "mean")
    result = match(expected, weights, replaced=REPLACED["mean"], new=NEW)
    fresh = {"head.weight", "head.bias", "fc_norm.weight", "fc_norm.bias"}
    assert set(result.fresh) == fresh
    assert set(result.weights) == set(expected) - fresh
    decoder = {name for name in weights if _is_decoder(name)}
    assert set(result.left_out) == decoder | {"norm.weight", "norm.bias"}


def test_cls_pooling_keeps_the_norm(weights, encoder):
    expected = _classifier(encoder, "cls")
    result = match(expected, weights, replaced=REPLACED["cls"], new=NEW)
    assert set(result.fresh) == {"head.weight", "head.bias"}
    assert "norm.weight" in result.weights
    del weights["norm.weight"]
    with pytest.raises(CheckpointError, match=r"1 tensors are missing: norm\.weight"):
        match(expected, weights, replaced=REPLACED["cls"], new=NEW)


def test_a_head_of_another_size_is_replaced_only_by_a_task_that_says_so(encoder):
    expected = _classifier(encoder, "cls")
    given = {**encoder, "head.weight": np.zeros((12, 9)), "head.bias": np.zeros(9)}
    result = match(expected, given, replaced=REPLACED["cls"], new=NEW)
    assert result.fresh == result.left_out == ["head.weight", "head.bias"]
    with pytest.raises(CheckpointError, match=r"head\.weight: \(12, 9\), the model has \(12, 5\)"):
        match(expected, given)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_finetuning_makes_a_head_also_where_the_old_one_fits(encoder, pooling):
    """The shape says nothing about the classes. Without ``new``, the head is used."""
    expected = {**_classifier(encoder, pooling), "head_norm.weight": (12,)}
    given = {name: np.ones(shape) for name, shape in expected.items()}
    heads = {"head.weight", "head.bias", "head_norm.weight"}
    result = match(expected, given, replaced=REPLACED[pooling], new=NEW)
    assert set(result.fresh) == set(result.left_out) == heads
    assert set(result.weights) == set(expected) - heads
    kept = match(expected, given, replaced=REPLACED[pooling])
    assert set(kept.weights) == set(expected) and kept.fresh == []


def test_an_encoder_does_not_reconstruct(weights, encoder):
    for expected in (weights, {**weights, "extra": np.zeros(1)}):
        with pytest.raises(CheckpointError, match="mae_visualize_vit_.*facebook/vit-mae-base"):
            match(_shapes(expected), encoder)


def test_a_difference_is_named_with_the_nearest_name(weights):
    given = dict(weights)
    given["blocks.1.mlp.dense_h_to_4h.weights"] = given.pop("blocks.1.mlp.dense_h_to_4h.weight")
    given["norm.weight"] = np.zeros(3)
    with pytest.raises(CheckpointError) as error:
        match(_shapes(weights), given)
    message = str(error.value)
    assert (
        "1 tensors are missing: blocks.1.mlp.dense_h_to_4h.weight "
        "(nearest known: blocks.1.mlp.dense_h_to_4h.weights)" in message
    )
    assert (
        "1 tensors are unexpected: blocks.1.mlp.dense_h_to_4h.weights "
        "(nearest known: blocks.1.mlp.dense_h_to_4h.weight)" in message
    )
    assert "norm.weight: (3,), the model has (12,)" in message


def test_position_tables_follow_the_grid(weights):
    expected = {**_shapes(weights), "pos_embed": (1, 11, 12), "decoder_pos_embed": (1, 11, 8)}
    with pytest.raises(CheckpointError, match=r"pos_embed: \(1, 17, 12\)"):
        match(expected, weights)
    result = match(expected, weights, grid=(2, 5), source_grid=(4, 4))
    assert result.interpolated == ["pos_embed", "decoder_pos_embed"]
    resized = interpolate(weights["pos_embed"], (4, 4), (2, 5))
    np.testing.assert_array_equal(result.weights["pos_embed"], resized)
    # The same table taken for 2 x 8 patches gives something else.
    other = match(expected, weights, grid=(2, 5), source_grid=(2, 8)).weights["pos_embed"]
    assert not np.allclose(other, resized)


def test_a_table_of_equal_size_is_kept_where_nothing_says_its_grid(weights):
    result = match(_shapes(weights), weights, grid=(2, 8))
    assert result.interpolated == []
    assert result.weights["pos_embed"] is weights["pos_embed"]


def test_a_table_of_equal_size_and_another_grid_is_interpolated(weights):
    """32 x 64 to 64 x 32, for example."""
    result = match(_shapes(weights), weights, grid=(2, 8), source_grid=(8, 2))
    assert result.interpolated == ["pos_embed", "decoder_pos_embed"]
    expected = interpolate(weights["pos_embed"], (8, 2), (2, 8))
    np.testing.assert_array_equal(result.weights["pos_embed"], expected)


@pytest.mark.parametrize(
    "patches, choices",
    [(16, r"\[1,16\], \[2,8\], \[4,4\], \[8,2\], \[16,1\]"), (14, r"\[1,14\], \[2,7\], ")],
)
def test_a_table_of_another_size_needs_its_grid(encoder, patches, choices):
    """A square is no better a guess than another rectangle."""
    expected = {**_shapes(encoder), "pos_embed": (1, 11, 12)}
    given = {**encoder, "pos_embed": encoder["pos_embed"][:, : 1 + patches]}
    with pytest.raises(CheckpointError, match=f"pos_embed: .*set train.load_grid .*{choices}"):
        match(expected, given, grid=(2, 5))
    grid = (2, patches // 2)
    assert match(expected, given, grid=(2, 5), source_grid=grid).interpolated == ["pos_embed"]


def test_the_table_counts_blocks_together(weights, encoder):
    expected = {**_classifier(encoder, "mean"), "pos_embed": (1, 11, 12)}
    grids = dict(grid=(2, 5), source_grid=(4, 4))
    result = match(expected, weights, replaced=REPLACED["mean"], new=NEW, **grids)
    rows = [line.split("  ") for line in result.table().splitlines()]
    cells = [tuple(cell.strip() for cell in row if cell.strip()) for row in rows]
    assert cells == [
        ("state", "part", "tensors"),
        ("loaded", "cls_token", "1"),
        ("loaded", "patch_embed", "2"),
        ("loaded", "blocks (2)", "24"),
        ("interpolated", "pos_embed", "1"),
        ("left out", "mask_token", "1"),
        ("left out", "decoder_pos_embed", "1"),
        ("left out", "norm", "2"),
        ("left out", "decoder_embed", "2"),
        ("left out", "decoder_blocks (1)", "12"),
        ("left out", "decoder_norm", "2"),
        ("left out", "decoder_pred", "2"),
        ("freshly initialised", "head", "2"),
        ("freshly initialised", "fc_norm", "2"),
    ]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_where_they_are_used(weights, encoder, value):
    broken = dict(weights)
    for name, count in (("cls_token", 2), ("decoder_pred.bias", 1)):
        broken[name] = weights[name].copy()
        broken[name].flat[:count] = value
    with pytest.raises(CheckpointError) as caught:
        match(_shapes(weights), broken)
    said = (
        r"2 tensors .* infinity: cls_token \(2 of 12 values\), decoder_pred.bias \(1 of 12 values\)"
    )
    assert re.search(said, str(caught.value))
    del broken["cls_token"]
    assert match(
        _classifier(encoder, "mean"), {**broken, **encoder}, replaced=REPLACED["mean"], new=NEW
    )
