"""Pre-training starts from official weights, decoder included."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from libai_ext.checkpoint.errors import CheckpointError
from projects.MAE.modeling.mae import MaskedAutoencoder
from projects.MAE.weights.files import write_fb
from projects.MAE.weights.load import load_weights
from projects.MAE.weights.packing import Heads
from projects.MAE.weights.pos_embed import interpolate

HEADS = Heads(encoder=4, decoder=2)


def build(img_size=(16, 16)):
    return MaskedAutoencoder(img_size, 4, 3, 32, 2, 4, 16, 1, 2)


@pytest.fixture
def official(tmp_path):
    """A file as the official code writes it, of a model with other weights; and the weights."""
    rng = np.random.default_rng(0)
    weights = {
        name: rng.normal(size=tuple(tensor.shape)).astype(np.float32)
        for name, tensor in build().state_dict().items()
    }
    write_fb(weights, str(tmp_path / "mae.pth"), HEADS)
    return tmp_path / "mae.pth", weights


def test_every_tensor_is_taken_over(official, caplog):
    path, weights = official
    model = build()
    with caplog.at_level(logging.INFO):
        load_weights(model, str(path))
    for name, tensor in model.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), weights[name], err_msg=name)
    assert "style fb" in caplog.text and "decoder_blocks" in caplog.text


def test_position_tables_follow_the_grid(official):
    path, weights = official
    model = build(img_size=(16, 32))
    with pytest.raises(CheckpointError, match=r"does not say the grid of its 16 patches.*\[4,4\]"):
        load_weights(model, str(path))
    load_weights(model, str(path), grid=[4, 4])
    table = model.pos_embed.numpy()
    assert table.shape == (1, 33, 32)
    np.testing.assert_array_equal(table, interpolate(weights["pos_embed"], (4, 4), (4, 8)))
    np.testing.assert_array_equal(model.norm.weight.numpy(), weights["norm.weight"])


def test_an_encoder_alone_is_refused(official, tmp_path):
    _, weights = official
    encoder = {k: v for k, v in weights.items() if not k.startswith(("decoder", "mask_token"))}
    write_fb(encoder, str(tmp_path / "encoder.pth"), HEADS)
    with pytest.raises(CheckpointError, match="holds an encoder only"):
        load_weights(build(), str(tmp_path / "encoder.pth"))
