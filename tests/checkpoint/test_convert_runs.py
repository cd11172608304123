"""`tools/convert.py` on runs: nothing has to be said again, nothing is lost that has a place."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import oneflow as flow
import pytest
from made_runs import DATA, classified_run, pretrained_run, weights_of
from numpy_models import classify
from test_convert import script

from libai_ext.checkpoint import formats
from libai_ext.placement import batch_sbp, to_global
from projects.MAE.weights.describe import describe
from projects.MAE.weights.files import read_weights
from projects.MAE.weights.packing import Heads, unpack_qkv

PATCHES = 16


@pytest.fixture(scope="module")
def six(tmp_path_factory):
    """A run of width 192 with six heads on normalised pixels, its model, and its numbers."""
    folder = tmp_path_factory.mktemp("six")
    sizes = dict(embed_dim=192, num_heads=6, norm_pix_loss=True, mask_ratio=0.5)
    run, model = pretrained_run(folder / "run", **sizes)
    rng = np.random.default_rng(3)
    images = rng.normal(size=(2, 3, 16, 16)).astype(np.float32)
    noise = rng.random((2, PATCHES)).astype(np.float32)
    given = [to_global(array, batch_sbp()) for array in (images, noise)]
    with flow.no_grad():
        features = model.features(given[0]).numpy()
        loss = float(model(*given)["sample_losses"].numpy().mean())
    np.savez(folder / "numbers.npz", images=images, noise=noise, features=features)
    return run, model, folder / "numbers.npz", loss


@pytest.fixture(scope="module")
def probe(tmp_path_factory):
    """A linear probe's run, and its logits on three images."""
    folder = tmp_path_factory.mktemp("probe")
    run, model = classified_run(folder / "run", pooling="cls", batch_norm=True)
    images = np.random.default_rng(4).normal(size=(3, 3, 16, 16)).astype(np.float32)
    with flow.no_grad():
        logits = model(to_global(images, batch_sbp()))["prediction_scores"].numpy()
    np.savez(folder / "numbers.npz", images=images, logits=logits)
    return run, model, folder / "numbers.npz"


class Result(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def convert(*arguments):
    """The command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = script().main([str(argument) for argument in arguments])
    return Result(status, out.getvalue(), err.getvalue())


def converted(run, target, style):
    result = convert(run, target, "--to", style)
    assert (result.returncode, result.stderr) == (0, ""), result.stderr
    return result.stdout


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def test_a_run_to_timm_has_its_own_heads(six, tmp_path):
    run, model, _, _ = six
    said = converted(run, tmp_path / "timm.pth", "timm")
    assert "model_final" in said.splitlines()[0] and "width 192, depth 2, 6 heads" in said
    assert f"{tmp_path}/timm.pth has no room for: 16 x 16 pixels, patch 4, width 192" in said
    state = formats.load(tmp_path / "timm.pth")
    for kind in ("weight", "bias"):
        ours = weights_of(model)[f"blocks.1.self_attention.query_key_value.{kind}"]
        theirs = state[f"blocks.1.attn.qkv.{kind}"]
        np.testing.assert_array_equal(theirs, unpack_qkv(ours, 6))
        assert np.abs(theirs - unpack_qkv(ours, 3)).max() > 0.1


def test_a_run_to_hugging_face_is_all_there(six, tmp_path):
    converted(six[0], tmp_path / "hf", "hf")
    config = config_of(tmp_path / "hf")
    expected = dict(
        norm_pix_loss=True, mask_ratio=0.5, image_size=16, num_attention_heads=6,
        decoder_num_attention_heads=2, decoder_hidden_size=24, num_channels=3,
    )  # fmt: skip
    assert {key: config[key] for key in expected} == expected
    preprocessor = json.loads((tmp_path / "hf/preprocessor_config.json").read_text())
    assert preprocessor["image_mean"] == DATA["mean"] and preprocessor["image_std"] == DATA["std"]
    assert preprocessor["size"] == {"height": 16, "width": 16}
    assert preprocessor["resample"] == 3 and preprocessor["rescale_factor"] == 1 / 255


@pytest.mark.parametrize("size", [(32, 128), (64, 32)])
def test_a_rectangle_to_hugging_face(tmp_path, size):
    run, _ = pretrained_run(tmp_path / "run", img_size=size)
    said = converted(run, tmp_path / "hf", "hf")
    assert config_of(tmp_path / "hf")["image_size"] == list(size)
    preprocessor = json.loads((tmp_path / "hf/preprocessor_config.json").read_text())
    assert preprocessor["size"] == {"height": size[0], "width": size[1]}
    assert ("transformers builds no ViTMAEForPreTraining of 128 patches" in said) == (
        size == (64, 32)
    )


def test_a_run_to_the_official_code_and_back(six, tmp_path):
    run, model, _, _ = six
    converted(run, tmp_path / "fb.pth", "fb")
    converted(tmp_path / "fb.pth", tmp_path / "ours", "oneflow")
    for path in ("fb.pth", "ours"):
        weights, source = read_weights(tmp_path / path)
        assert source.heads == Heads(6, 2) and source.record.model["norm_pix_loss"] is True
        assert source.record.data["mean"] == DATA["mean"]
        for name, array in weights_of(model).items():
            np.testing.assert_array_equal(weights[name], array)


def test_an_older_run_is_converted_by_its_config(six, tmp_path):
    shutil.copytree(six[0], tmp_path / "run")
    os.unlink(tmp_path / "run/model_final/record.json")
    converted(tmp_path / "run", tmp_path / "hf", "hf")
    config = config_of(tmp_path / "hf")
    assert (config["num_attention_heads"], config["norm_pix_loss"]) == (6, True)
    os.unlink(tmp_path / "run/config.yaml")
    result = convert(tmp_path / "run", tmp_path / "timm.pth", "--to", "timm")
    assert result.returncode == 2 and "width 192 is none of the published" in result.stderr


def test_what_the_source_does_not_say_is_named(golden, tmp_path):
    heads = ("--encoder-heads", "3", "--decoder-heads", "2", "--grid", "4x4")
    result = convert(golden / "fb_pretrain.pth", tmp_path / "hf", "--to", "hf", *heads)
    assert "SRC does not say norm_pix_loss, mask_ratio, mean, std: transformers' " in result.stdout
    assert "norm_pix_loss" not in config_of(tmp_path / "hf")
    assert not (tmp_path / "hf/preprocessor_config.json").exists()


def test_the_names_of_classes_go_to_hugging_face(tmp_path):
    run, _ = classified_run(tmp_path / "run", pooling="cls")
    converted(run, tmp_path / "hf", "hf")
    config = config_of(tmp_path / "hf")
    assert config["id2label"] == {str(number): f"c{number}" for number in range(5)}
    assert config["label2id"]["c3"] == 3
    assert describe(tmp_path / "hf")[1].record.classes == ("c0", "c1", "c2", "c3", "c4")


def test_a_linear_probe_to_the_official_code_and_back(probe, tmp_path):
    run, model, _ = probe
    converted(run, tmp_path / "probe.pth", "fb")
    state = formats.load(tmp_path / "probe.pth")["model"]
    heads = [name for name in state if name.startswith("head")]
    assert sorted(heads) == [
        "head.0.running_mean", "head.0.running_var", "head.1.bias", "head.1.weight",
    ]  # fmt: skip
    converted(tmp_path / "probe.pth", tmp_path / "ours", "oneflow")
    back, _ = read_weights(tmp_path / "ours")
    for name, array in weights_of(model).items():
        np.testing.assert_array_equal(back[name], array)


@pytest.mark.parametrize("style, target", [("timm", "timm.safetensors"), ("hf", "hf")])
def test_a_linear_probe_to_a_style_without_batch_norm(probe, tmp_path, style, target):
    """It becomes part of the head: the same logits."""
    run, _, numbers = probe
    said = converted(run, tmp_path / target, style)
    assert "the batch norm before the head becomes part of the head" in said
    weights, source = read_weights(tmp_path / target)
    assert source.record.model["batch_norm"] is False
    data = np.load(numbers)
    logits = classify(weights, data["images"], 4)
    np.testing.assert_allclose(logits, data["logits"], atol=2e-4, rtol=0)
    assert np.abs(logits).max() > 1


def test_runs_without_a_checkpoint(tmp_path, six):
    (tmp_path / "early").mkdir()
    (tmp_path / "early/config.yaml").write_text("model: {}\n")
    for content, message in (
        (None, "early: the run has no checkpoint yet"),
        ("model_0000099", "there is no checkpoint 'model_0000099' in this folder"),
        (f"../../{Path(six[0]).parent.name}/run/model_final", "there is no checkpoint '../"),
    ):
        if content:
            (tmp_path / "early/last_checkpoint").write_text(content)
        result = convert(tmp_path / "early", tmp_path / "x.pth", "--to", "fb")
        assert result.returncode == 2 and message in result.stderr


def test_the_loss_of_transformers_is_ours(six, tmp_path, oracle):
    """On normalised pixels, half of the patches hidden: as the folder says, not by default."""
    run, _, numbers, loss = six
    converted(run, tmp_path / "hf", "hf")
    assert oracle("hf_loss", tmp_path / "hf", numbers) == pytest.approx(loss, rel=1e-5)
    config = config_of(tmp_path / "hf")
    for key, value in (("norm_pix_loss", False), ("mask_ratio", 0.75), ("num_attention_heads", 3)):
        (tmp_path / "hf/config.json").write_text(json.dumps({**config, key: value}))
        assert abs(oracle("hf_loss", tmp_path / "hf", numbers) - loss) > 1e-3, key


@pytest.mark.parametrize("size", [(32, 128), (64, 16)])
def test_transformers_runs_a_rectangle(tmp_path, oracle, size):
    """Where the number of patches is a square number; it builds no other."""
    run, model = pretrained_run(tmp_path / "run", img_size=size, norm_pix_loss=True)
    converted(run, tmp_path / "hf", "hf")
    rng = np.random.default_rng(5)
    images = rng.normal(size=(2, 3, *size)).astype(np.float32)
    noise = rng.random((2, size[0] * size[1] // 16)).astype(np.float32)
    with flow.no_grad():
        latent, _, _ = model.encode(*(to_global(a, batch_sbp()) for a in (images, noise)))
    np.savez(tmp_path / "numbers.npz", images=images, noise=noise, latent=latent.numpy())
    assert oracle("hf_latent", tmp_path / "hf", tmp_path / "numbers.npz") < 1e-4


def test_timm_has_our_features_with_the_heads_of_the_run(six, tmp_path, oracle):
    run, _, numbers, _ = six
    converted(run, tmp_path / "timm.pth", "timm")
    assert oracle("timm_features", tmp_path / "timm.pth", numbers, 6) < 1e-4
    assert oracle("timm_features", tmp_path / "timm.pth", numbers, 3) > 0.1


def test_the_official_linear_probe_runs_ours(probe, tmp_path, oracle):
    run, _, numbers = probe
    converted(run, tmp_path / "probe.pth", "fb")
    assert oracle("linear_probe", tmp_path / "probe.pth", numbers, 4) < 2e-4
