"""Golden checkpoints are read, run and give the outputs that real PyTorch gave."""

from __future__ import annotations

import json

import numpy as np
import pytest
from numpy_models import classify, reconstruct

from libai_ext.checkpoint import torch_writer
from libai_ext.checkpoint.errors import CheckpointError
from projects.MAE.weights import files
from projects.MAE.weights.mapping import from_ours
from projects.MAE.weights.packing import Heads
from projects.MAE.weights.pos_embed import interpolate

HEADS = Heads(3, 2)
PRETRAINED = ("fb_pretrain.pth", "fb_text_line.pth", "hf_pretrain")
CLASSIFIERS = ("fb_finetune.pth", "timm_cls.safetensors", "hf_classifier")


def _outputs(golden, name):
    return golden / f"{name.split('.')[0]}.npz"


@pytest.mark.parametrize("name", PRETRAINED)
def test_pretraining_checkpoints_reconstruct_as_the_original(golden, name):
    weights, source = files.read_weights(golden / name, HEADS)
    assert source.contents == "pretraining"
    data = np.load(_outputs(golden, name))
    arguments = [data[key] for key in ("images", "keep", "restore")]
    output = reconstruct(weights, *arguments, HEADS.encoder, HEADS.decoder)
    np.testing.assert_allclose(output, data["output"], atol=1e-5, rtol=0)
    assert np.abs(output).max() > 0.1


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers_classify_as_the_original(golden, name):
    weights, source = files.read_weights(golden / name, HEADS)
    assert source.contents == "classifier"
    assert ("fc_norm.weight" in weights) == (name == "fb_finetune.pth")
    data = np.load(_outputs(golden, name))
    output = classify(weights, data["images"], HEADS.encoder)
    np.testing.assert_allclose(output, data["output"], atol=1e-5, rtol=0)
    assert np.abs(output).max() > 0.1


def test_another_number_of_heads_would_be_noticed(golden):
    weights, _ = files.read_weights(golden / "timm_cls.safetensors", Heads(2))
    data = np.load(golden / "timm_cls.npz")
    output = classify(weights, data["images"], 2)
    assert np.abs(output - data["output"]).max() > 1e-3


def test_an_encoder_in_the_legacy_format_is_part_of_the_whole(golden):
    encoder, source = files.read_weights(golden / "fb_encoder_legacy.pth", HEADS)
    assert (source.style, source.contents) == ("fb", "encoder")
    whole, _ = files.read_weights(golden / "fb_pretrain.pth", HEADS)
    assert len(encoder) == 30
    for name, array in encoder.items():
        assert array.tobytes() == whole[name].tobytes(), name


def test_heads_come_from_the_config_beside_hugging_face_files_only(golden, tmp_path):
    _, source = files.read_weights(golden / "hf_pretrain")
    assert source.heads == HEADS
    (tmp_path / "config.json").write_text(json.dumps({"num_attention_heads": 3}))
    (tmp_path / "fb.pth").write_bytes((golden / "fb_encoder_legacy.pth").read_bytes())
    with pytest.raises(CheckpointError, match="fb.pth: .*number of heads must be given"):
        files.read_weights(tmp_path / "fb.pth")


@pytest.mark.parametrize("case", range(5))
def test_interpolation_is_the_official_function(golden, case):
    data = np.load(golden / "interpolation.npz")
    source, target = (tuple(grid) for grid in data[f"grids_{case}"])
    table, expected = data[f"source_{case}"], data[f"target_{case}"]
    result = interpolate(table, source, target, extra_tokens=0)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, atol=1e-5, rtol=0)
    cls = np.full((1, 1, table.shape[-1]), 3, np.float32)
    with_cls = interpolate(np.concatenate([cls, table], 1), source, target)
    np.testing.assert_array_equal(with_cls, np.concatenate([cls, result], 1))


def test_interpolation_to_the_same_grid_changes_nothing(golden):
    table = np.load(golden / "interpolation.npz")["source_0"]
    np.testing.assert_array_equal(interpolate(table, (4, 4), (4, 4), 0), table)


@pytest.mark.parametrize(
    ("source", "target"), [("14x14", "16x16"), ("14x14", "7x9"), ("8x32", "5x40"), ("1x1", "3x2")]
)
def test_interpolation_is_that_of_the_installed_torch(oracle, source, target):
    data = oracle("interpolate", source, target)
    grids = [tuple(map(int, grid.split("x"))) for grid in (source, target)]
    result = interpolate(np.array(data["source"], np.float32), *grids, extra_tokens=0)
    np.testing.assert_allclose(result, np.array(data["target"]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", PRETRAINED)
def test_the_official_model_runs_what_we_write(golden, tmp_path, oracle, name):
    weights, _ = files.read_weights(golden / name, HEADS)
    files.write_fb(weights, str(tmp_path / "ours.pth"), HEADS)
    assert oracle("fb_pretraining", tmp_path / "ours.pth", _outputs(golden, name)) < 1e-5


@pytest.mark.parametrize("name", ["fb_pretrain.pth", "hf_pretrain"])
def test_vitmae_of_transformers_runs_what_we_write(golden, tmp_path, oracle, name):
    weights, _ = files.read_weights(golden / name, HEADS)
    files.write_hf(weights, str(tmp_path / "ours"), HEADS, (4, 4))
    arguments = tmp_path / "ours", _outputs(golden, name), "ViTMAEForPreTraining"
    assert oracle("hf", *arguments) < 1e-5


def test_the_names_of_transformers_5_are_those_of_its_modules(golden, tmp_path, oracle):
    weights, _ = files.read_weights(golden / "fb_pretrain.pth", HEADS)
    state = {
        name if name.startswith("decoder.") else f"vit.{name}": array
        for name, array in from_ours(weights, "hf5", HEADS).items()
    }
    torch_writer.save(state, tmp_path / "modules.bin")
    assert oracle("hf_modules", tmp_path / "modules.bin", golden / "hf_pretrain") == len(state)


@pytest.mark.parametrize("name", ["timm_cls.safetensors", "hf_classifier"])
def test_classifiers_that_pool_the_cls_token_go_everywhere(golden, tmp_path, oracle, name):
    weights, _ = files.read_weights(golden / name, HEADS)
    outputs = _outputs(golden, name)
    files.write_hf(weights, str(tmp_path / "hf"), HEADS, (4, 4))
    assert oracle("hf", tmp_path / "hf", outputs, "ViTForImageClassification") < 1e-5
    for target in ("timm.pth", "timm.safetensors"):
        assert files.write_timm(weights, str(tmp_path / target), HEADS) == []
        assert oracle("fb_classifier", tmp_path / target, outputs, "cls") < 1e-5


def test_the_official_classifier_runs_what_we_write(golden, tmp_path, oracle):
    weights, _ = files.read_weights(golden / "fb_finetune.pth", HEADS)
    files.write_fb(weights, str(tmp_path / "ours.pth"), HEADS)
    arguments = tmp_path / "ours.pth", golden / "fb_finetune.npz", "mean"
    assert oracle("fb_classifier", *arguments) < 1e-5
