"""``load_encoder`` gives the numbers of PyTorch's models with the same weights."""

from __future__ import annotations

import numpy as np
import pytest

from projects.MAE import load_encoder
from projects.MAE.weights.files import read_weights, write_timm
from projects.MAE.weights.packing import Heads


def draw(*shape) -> np.ndarray:
    return np.random.default_rng(3).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("name", ["fb_finetune.pth", "timm_cls.safetensors", "hf_classifier"])
def test_logits_are_those_of_pytorch(golden, name, caplog):
    encoder = load_encoder(golden / name, heads=3, grid=(4, 4))
    data = np.load(golden / f"{name.split('.')[0]}.npz")
    np.testing.assert_allclose(encoder.logits(data["images"]), data["output"], atol=1e-5)
    assert np.abs(data["output"]).max() > 0.1
    assert "does not name its 5 classes" in caplog.text
    assert "does not say mean and deviation of its data: ImageNet's" in caplog.text
    assert "to 8 x 8: as the official evaluation does" in caplog.text


def test_every_layer_is_that_of_transformers(golden, oracle, tmp_path):
    encoder = load_encoder(golden / "hf_pretrain")
    images = draw(3, *encoder.shape)
    arrays = {f"layer{k}": encoder.features(images, k, "tokens", norm=False) for k in (0, 1)}
    arrays["last"] = encoder.features(images, pool="tokens")
    np.savez(tmp_path / "ours.npz", images=images, **arrays)
    assert oracle("hf_layers", golden / "hf_pretrain", tmp_path / "ours.npz") < 1e-5


def test_features_are_those_of_timms_model(golden, oracle, tmp_path):
    path, heads = tmp_path / "timm.pth", Heads(3)
    write_timm(read_weights(golden / "fb_encoder_legacy.pth", heads)[0], str(path), heads)
    encoder = load_encoder(path, heads=3, grid=(4, 4))
    images = draw(3, *encoder.shape)
    tokens = encoder.features(images, pool="tokens")
    np.savez(tmp_path / "ours.npz", images=images, features=tokens)
    assert oracle("timm_features", path, tmp_path / "ours.npz", 3) < 1e-5
