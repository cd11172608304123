"""``load_encoder``: the numbers of the training program's models and of PyTorch's."""

from __future__ import annotations

import numpy as np
import oneflow as flow
import pytest
from made_runs import DATA, classified_run, pretrained_run
from PIL import Image

from libai_ext.config.lazy_config import instantiate
from libai_ext.errors import ConfigError, DataError
from libai_ext.placement import batch_sbp, to_global
from projects.MAE import load_encoder
from projects.MAE.run import resolve

DIGITS = "projects/MAE/configs/mae_digits.py"


def draw(*shape) -> np.ndarray:
    return np.random.default_rng(3).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("sizes", [{}, dict(img_size=(8, 24), in_chans=1)], ids=["square", "grey"])
def test_features_are_the_models(tmp_path, sizes):
    data = dict(mode="L", mean=[0.5], std=[0.3]) if sizes else DATA
    run, model = pretrained_run(tmp_path / "run", data=data, **sizes)
    encoder = load_encoder(run)
    images = draw(5, *encoder.shape)
    with flow.no_grad():
        tokens = model.features(to_global(images, batch_sbp())).numpy()
        first = model.blocks[0](model.embed(to_global(images, batch_sbp())))
        normed = model.norm(first).numpy()
    rows, columns = (2, 6) if sizes else (4, 4)
    assert (encoder.grid, encoder.width, encoder.depth, encoder.heads) == (
        (rows, columns),
        48,
        2,
        4,
    )
    assert (encoder.shape[0], encoder.patch_size) == (1 if sizes else 3, 4)
    assert (encoder.num_classes, encoder.classes) == (0, None)
    for pool, expected in (
        ("tokens", tokens),
        ("cls", tokens[:, 0]),
        ("mean", tokens[:, 1:].mean(axis=1)),
    ):
        for layer in (-1, 1):
            found = encoder.features(images, layer=layer, pool=pool, batch_size=2)
            np.testing.assert_allclose(found, expected, atol=1e-6)
    assert encoder.features(images).dtype == np.float32
    for layer in (-2, 0):
        found = encoder.features(iter(images), layer=layer, pool="tokens", norm=False)
        np.testing.assert_allclose(found, first.numpy(), atol=1e-6)
        found = encoder.features(images, layer=layer, pool="tokens")
        np.testing.assert_allclose(found, normed, atol=1e-6)
    assert np.abs(normed - tokens).max() > 0.1


@pytest.mark.parametrize("pooling", ["mean", "cls", "probe"])
def test_predictions_are_the_models(tmp_path, pooling):
    sizes = dict(pooling="cls", batch_norm=True) if pooling == "probe" else dict(pooling=pooling)
    run, model = classified_run(tmp_path / "run", **sizes)
    encoder = load_encoder(run)
    images = draw(5, 3, 16, 16)
    with flow.no_grad():
        batch = to_global(images, batch_sbp())
        logits, seen = model(batch)["prediction_scores"], model.features(batch).numpy()
        shares = flow.softmax(logits, dim=-1).numpy()
    assert encoder.classes == ("c0", "c1", "c2", "c3", "c4")
    np.testing.assert_allclose(encoder.logits(images, batch_size=3), logits.numpy(), atol=1e-6)
    np.testing.assert_allclose(encoder.predict(images), shares, atol=1e-6)
    if pooling != "probe":
        found = encoder.features(images, pool=pooling)
        np.testing.assert_allclose(found, seen, atol=1e-6)


@pytest.fixture(scope="module")
def digits_run(launch, digits, tmp_path_factory):
    run = tmp_path_factory.mktemp("encoder") / "run"
    options = [f"data.train=[{digits}/train]", f"data.test=[{digits}/test]"]
    options += [f"train.output_dir={run}", "model.depth=1", "train.train_iter=2"]
    launch.train(DIGITS, 1, "train.warmup_iter=1", "graph.enabled=False", *options)
    return run


def test_images_are_brought_in_as_in_the_run(digits_run, digits):
    encoder = load_encoder(digits_run)
    file = sorted((digits / "test").rglob("*.png"))[0]
    image = Image.open(file)
    expected = encoder.preprocess(file)
    cfg = resolve(DIGITS, [f"data.train=[{digits}/train]", f"data.test=[{digits}/test]"])
    transform = instantiate(cfg.dataloader.test.dataset.transform)
    mode = cfg.data.mode
    found = transform(image.convert(mode), np.random.default_rng(0))
    np.testing.assert_array_equal(found, expected)
    assert expected.shape == encoder.shape and expected.dtype == np.float32
    for given in (str(file), image, np.asarray(image)):
        np.testing.assert_array_equal(encoder.preprocess(given), expected)
    np.testing.assert_array_equal(encoder.features(file), encoder.features([expected]))


def test_another_size_is_said(tmp_path, caplog):
    encoder = load_encoder(pretrained_run(tmp_path / "run")[0], img_size=(24, 16))
    assert encoder.grid == (6, 4)
    assert encoder.features([np.zeros((9, 9, 3), np.uint8)], pool="tokens").shape == (1, 25, 48)
    assert "does not say in a record how images are brought to 24 x 16" in caplog.text


def test_what_cannot_be_done_is_said(tmp_path, monkeypatch):
    encoder = load_encoder(pretrained_run(tmp_path / "run")[0])
    images = draw(1, 3, 16, 16)
    for message, arguments in (
        ("pool must be one of cls, mean, tokens", dict(pool="max")),
        ("layer 2: the encoder has 2 blocks, numbered 0 to 1", dict(layer=2)),
        ("batch_size must be at least 1", dict(batch_size=0)),
    ):
        with pytest.raises(ConfigError, match=message):
            encoder.features(images, **arguments)
    with pytest.raises(ConfigError, match="has no class head"):
        encoder.predict(images)
    for message, given in (
        ("there are no images", []),
        (r"\[3, 8, 16\], the model takes \[3, 16, 16\]", images[:, :, :8]),
        ("not list of float64", [[0.5, 0.1]]),
        ("cannot open nowhere.png: No such file", "nowhere.png"),
    ):
        with pytest.raises(DataError, match=message):
            encoder.features(given)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="one of 2 that a launcher started"):
        load_encoder(tmp_path / "run")
