"""Features in parts: shares, interruptions, refusals, odd images."""

from __future__ import annotations

import numpy as np
import pytest
from made_runs import pretrained_run
from PIL import Image

from libai_ext.data.sources import open_images
from libai_ext.errors import ConfigError, DataError
from projects.MAE import load_encoder
from projects.MAE.evaluation import extract
from projects.MAE.evaluation.extract import Extraction
from projects.MAE.pictures.scatter import scatter

OPTIONS = dict(layer=-1, pool="tokens", norm=True)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(extract, "PART", 4)
    monkeypatch.setattr(extract, "BATCH", 3)


@pytest.fixture
def made(tmp_path):
    """A grey, rectangular encoder; 10 images without classes, of which number 4 to 7 are bad."""
    data = dict(mode="L", mean=[0.5], std=[0.3])
    run, _ = pretrained_run(tmp_path / "run", data=data, img_size=(8, 24), in_chans=1)
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    for number in range(10):
        path = tmp_path / f"images/{number}.png"
        if 4 <= number < 8:
            path.write_bytes(b"")
        else:
            mode = ("L", "RGB", "RGBA")[number % 3]
            size = (9, 30) if mode == "L" else (9, 30, len(mode))
            Image.fromarray(rng.integers(256, size=size, dtype=np.uint8)).save(path)
    encoder = load_encoder(run)
    return tmp_path, encoder, open_images([tmp_path / "images"], encoder.preprocess.mode)


def test_shares_and_interruptions_change_nothing(made):
    folder, encoder, source = made

    def extraction(name):
        return Extraction(encoder, source, str(folder / name), OPTIONS)

    assert list(extraction("one.npz").run()) == [4, 8, 10]
    assert extraction("one.npz").merge()[0] == [6, 13, 48]

    first = extraction("many.npz")
    assert next(first.run(1, 2)) == 4  # and it is killed, while it writes another part
    (first.folder / "000002.npz.abc").write_bytes(b"half of")
    for share in (2, 0, 1):
        list(extraction("many.npz").run(share, 3))
    shape, bad = extraction("many.npz").merge()
    assert not first.folder.exists()
    assert (folder / "many.npz").read_bytes() == (folder / "one.npz").read_bytes()

    empty = [f"{folder}/images/{number}.png" for number in range(4, 8)]
    assert bad == [f"cannot read image {path}: the file is empty" for path in empty]
    file = np.load(folder / "one.npz", allow_pickle=False)
    assert file["labels"].tolist() == [-1] * 6 and file["classes"].tolist() == [""]
    paths = [f"{folder}/images/{number}.png" for number in (0, 1, 2, 3, 8, 9)]
    assert file["names"].tolist() == paths
    expected = encoder.features(paths, pool="tokens")
    np.testing.assert_allclose(file["features"], expected, atol=1e-6)


def test_other_parts_are_refused(made):
    folder, encoder, source = made
    output = str(folder / "f.npz")
    next(Extraction(encoder, source, output, OPTIONS).run())
    shifted = load_encoder(folder / "run")
    shifted.model.norm.bias.data.copy_(shifted.model.norm.bias + 1)
    fewer = open_images([folder / "images/0.png", folder / "images/1.png"], "L")
    for other in (
        (encoder, source, output, dict(OPTIONS, layer=0)),
        (encoder, fewer, output, OPTIONS),
        (shifted, source, output, OPTIONS),
    ):
        with pytest.raises(ConfigError, match="f.npz.parts holds features by other weights, of"):
            Extraction(*other)
    part = folder / "f.npz.parts/000000.npz"
    part.write_bytes(part.read_bytes()[:-40])
    with pytest.raises(ConfigError, match="000000.npz cannot be read .*: remove it"):
        Extraction(encoder, source, output, OPTIONS)


def test_nothing_but_bad_images(made):
    folder, encoder, _ = made
    source = open_images([folder / "images/4.png", folder / "images/7.png"], "L")
    extraction = Extraction(encoder, source, str(folder / "f.npz"), OPTIONS)
    list(extraction.run())
    with pytest.raises(DataError, match="none of 2 images can be read; .*4.png: the file is empty"):
        extraction.merge()


@pytest.mark.parametrize("projection", ["pca", "tsne"])
def test_picture_of_classes_apart(tmp_path, projection):
    """Three clusters become three clouds of colours that do not mix."""
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    features = rng.normal(size=(60, 8)) + 20 * np.eye(8)[labels]
    path = tmp_path / "picture.png"
    scatter(features, labels, ["a", "_b", "$c"], projection, str(path))
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    for colour in ((0x1F, 0x77, 0xB4), (0xFF, 0x7F, 0x0E), (0x2C, 0xA0, 0x2C)):
        assert (np.abs(pixels - colour).max(axis=-1) < 8).sum() > 100
    with pytest.raises(DataError, match="at least 3"):
        scatter(features[:2], labels[:2], ["a", "b", "c"], projection, str(path))
