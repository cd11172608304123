"""The code of docs/encoder.md, on small runs; what its tools write."""

from __future__ import annotations

import csv
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from made_runs import classified_run, pretrained_run
from PIL import Image

from libai_ext.data.sources import open_images
from projects.MAE import load_encoder
from projects.MAE.evaluation.extract import PART, Extraction

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/encoder.md").read_text()
# sys.stderr of a notebook is no file.
NOTEBOOK = "import io, sys\nsys.stderr = io.StringIO()\n"


def blocks(language: str) -> str:
    return "".join(re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.M | re.S))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the page speaks of: two runs, and 300 photos in two classes and 2 bad ones."""
    folder = tmp_path_factory.mktemp("page")
    pretrained_run(folder / "output/run")
    classified_run(folder / "output/classifier")
    rng = np.random.default_rng(0)
    for number in range(PART + 44):
        path = folder / "photos" / ("even", "odd")[number % 2] / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        size = (10 + number % 9, 20, 3)
        Image.fromarray(rng.integers(256, size=size, dtype=np.uint8)).save(path)
    for name in ("odd/000.png", "odd/zzz.jpg"):
        (folder / "photos" / name).write_bytes(b"no image")
    for name in ("cat", "dog"):
        Image.new("L", (30, 40), len(name)).save(folder / f"{name}.png")
    return folder


def test_python(launch, folder, tmp_path):
    (tmp_path / "output").symlink_to(folder / "output")
    (tmp_path / "photos").symlink_to(folder)
    checks = (
        "assert features.shape == same.shape == (1, 48) and (features == same).all()\n"
        "assert tokens.shape == (1, 17, 48) and pixels.shape == (3, 16, 16)\n"
        "assert 'does not say' in sys.stderr.getvalue()\n"
    )
    code = f"import sys\nimport projects.MAE\nassert 'oneflow' not in sys.modules\n{NOTEBOOK}"
    (tmp_path / "page.py").write_text(code + blocks("python") + checks)
    out = launch.python("page.py", cwd=tmp_path)
    assert out == "(4, 4) 48 2 4\n"


@pytest.fixture(scope="module")
def commands(launch, folder):
    """The outputs of the page's commands, by program."""
    outputs = {}
    for line in blocks("bash").splitlines():
        python, program, *arguments = shlex.split(line)
        assert python == ".venv/bin/python"
        outputs[program] = launch.python(ROOT / program, *arguments, cwd=folder)
    return outputs


def test_features_on_two_processes(commands, folder, monkeypatch):
    out = commands["tools/features.py"]
    assert "features.npz: features [300, 48], 2 unreadable images left out\nfeatures.png\n" in out
    assert re.search(r"warning: cannot read image photos/odd/000.png: unknown image format", out)
    assert Image.open(folder / "features.png").size[0] > 300
    assert not (folder / "features.npz.parts").exists()

    monkeypatch.chdir(folder)
    encoder = load_encoder("output/run")
    source = open_images(["photos"], encoder.preprocess.mode)
    options = dict(layer=-1, pool="mean", norm=True)
    list(Extraction(encoder, source, "alone.npz", options).run())
    shape, bad = Extraction(encoder, source, "alone.npz", options).merge()
    assert (shape, len(bad)) == ([300, 48], 2)
    assert Path("alone.npz").read_bytes() == Path("features.npz").read_bytes()

    file = np.load("features.npz", allow_pickle=False)
    paths = sorted(Path("photos").rglob("*.png"))
    paths.remove(Path("photos/odd/000.png"))
    assert file["names"].tolist() == [str(path) for path in paths]
    names = file["classes"][file["labels"]].tolist()
    assert names == [path.parent.name for path in paths]
    assert json.loads(str(file["about"]))["pool"] == "mean"
    expected = encoder.features(paths[::50], pool="mean")
    np.testing.assert_allclose(file["features"][::50], expected, atol=1e-6)


def test_predictions(commands, folder, monkeypatch):
    out = commands["tools/predict.py"]
    assert "predictions.csv: 300 images, 2 unreadable images left out\n" in out
    monkeypatch.chdir(folder)
    with open("predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 300
    encoder = load_encoder("output/classifier")
    shares = encoder.predict([row["image"] for row in rows])
    for row, share in zip(rows, shares):
        best = np.argsort(-share)
        assert [row[f"class{k}"] for k in range(1, 6)] == [f"c{k}" for k in best]
        found = [float(row[f"probability{k}"]) for k in range(1, 6)]
        np.testing.assert_allclose(found, share[best], rtol=1e-4, atol=1e-6)
        assert row["label"] == Path(row["image"]).parent.name


def test_onnx(commands, folder):
    assert commands["tools/export_onnx.py"] == "encoder.onnx\n"
    assert (folder / "encoder.onnx").stat().st_size > 100_000
