"""Weights as other programs wrap, name and split them, and encoders of colours for grey images."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
from made_runs import autoencoder, classifier, randomise, weights_of

from libai_ext.checkpoint import formats, safetensors_file, torch_writer
from libai_ext.checkpoint.errors import CheckpointError
from projects.MAE.weights.files import read_weights, write_fb
from projects.MAE.weights.load import load_weights
from projects.MAE.weights.mapping import from_ours
from projects.MAE.weights.match import NEW, REPLACED
from projects.MAE.weights.packing import Heads

HEADS = Heads(4, 2)


@pytest.fixture(scope="module")
def weights():
    return weights_of(randomise(autoencoder()))


def encoder(weights):
    return {name: array for name, array in weights.items() if not name.startswith(("dec", "mask"))}


def prefixed(state, prefix):
    return {prefix + name: array for name, array in state.items()}


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.mark.parametrize(
    "prefix",
    [
        "_orig_mod.",
        "module.",
        "module._orig_mod.",
        "_orig_mod.module.",
        "model.",
        "model._orig_mod.",
    ],
)
def test_prefixes_of_wrapper_modules(weights, tmp_path, prefix):
    path = tmp_path / "wrapped.pth"
    torch_writer.save({"state_dict": prefixed(from_ours(weights, "fb", HEADS), prefix)}, path)
    same(read_weights(path, HEADS)[0], weights)


def test_the_teacher_of_dino(weights, tmp_path):
    state = from_ours(encoder(weights), "fb", HEADS)
    head = {
        "head.mlp.0.weight": np.ones((8, 48), np.float32),
        "head.last_layer.weight_g": np.ones(1),
    }
    student = prefixed({name: array + 1 for name, array in state.items()}, "module.backbone.")
    teacher = {**prefixed(state, "backbone."), **head}
    path = tmp_path / "dino.pth"
    torch_writer.save({"student": student, "teacher": teacher, "epoch": 3}, path)
    found, source = read_weights(path, HEADS)
    same(found, encoder(weights))
    assert source.left_out == tuple(head)
    assert "the weights under teacher are used, not those of student" in source.notes


def mmpretrain_names(state):
    """Names as mmpretrain's VisionTransformer, MAEPretrainDecoder and LinearClsHead have them."""
    renamed = {}
    for name, array in state.items():
        blocks = "blocks." in name
        for theirs, there in (
            ("patch_embed.proj.", "patch_embed.projection."),
            ("decoder_norm.", "ln1."),
            ("norm1.", "ln1."),
            ("norm2.", "ln2."),
            ("mlp.fc1.", "ffn.layers.0.0."),
            ("mlp.fc2.", "ffn.layers.1."),
            ("head.", "head.fc."),
            ("fc_norm.", "backbone.ln2."),
        ):
            name = name.replace(theirs, there)
        if name.startswith(("decoder", "mask_token")) or (name.startswith("ln1") and not blocks):
            name = f"neck.{name}"
        elif not name.startswith(("head", "backbone")):
            name = "backbone." + name.replace("blocks.", "layers.").replace("norm.", "ln1.")
        renamed[name] = array
    return renamed


def test_mmpretrain(weights, tmp_path):
    state = mmpretrain_names(from_ours(weights, "fb", HEADS))
    for name in (
        "backbone.layers.1.ffn.layers.0.0.weight",
        "backbone.ln1.weight",
        "neck.decoder_blocks.0.ln2.bias",
        "neck.ln1.weight",
        "neck.mask_token",
    ):
        assert name in state
    path = tmp_path / "mm.pth"
    torch_writer.save({"meta": {"epoch": 3}, "state_dict": state}, path)
    found, source = read_weights(path, HEADS)
    same(found, weights)
    assert source.style == "mm" and source.contents == "pretraining"


def test_a_classifier_of_mmpretrain(tmp_path):
    expected = weights_of(randomise(classifier(pooling="mean")))
    state = mmpretrain_names(from_ours(expected, "fb", HEADS))
    assert "backbone.ln2.weight" in state and "head.fc.bias" in state
    torch_writer.save({"state_dict": state}, tmp_path / "mm.pth")
    found, source = read_weights(tmp_path / "mm.pth", HEADS)
    same(found, expected)
    assert (source.contents, source.record.model["pooling"]) == ("classifier", "mean")


def split(golden, folder):
    """The Hugging Face folder of the golden files, its weights in three files."""
    state = formats.load(golden / "hf_pretrain")
    names = list(state)
    places = {}
    for number in range(3):
        shard = f"model-{number + 1:05d}-of-00003.safetensors"
        own = names[number::3]
        safetensors_file.save({name: state[name] for name in own}, folder / shard)
        places.update(dict.fromkeys(own, shard))
    for name in ("config.json", "preprocessor_config.json"):
        if (golden / "hf_pretrain" / name).exists():
            (folder / name).write_bytes((golden / "hf_pretrain" / name).read_bytes())
    return places


def index(folder, places):
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))


def test_weights_in_several_files(golden, tmp_path):
    index(tmp_path, split(golden, tmp_path))
    (found, source), (expected, whole) = (
        read_weights(folder) for folder in (tmp_path, golden / "hf_pretrain")
    )
    same(found, expected)
    assert source.record.model == whole.record.model


@pytest.mark.parametrize(
    "name, message",
    [
        ("../model.safetensors", "'../model.safetensors' is not the name of a file beside it"),
        ("/etc/passwd", "is not the name of a file beside it"),
        ("..", "is not the name of a file"),
        (7, "7 is not the name of a file"),
        ("gone.safetensors", "gone.safetensors"),
        ("model-00002-of-00003.safetensors", "does not hold the .* tensors of"),
    ],
)
def test_an_index_that_lies(golden, tmp_path, name, message):
    places = split(golden, tmp_path)
    index(tmp_path, {**places, next(iter(places)): name})
    with pytest.raises(CheckpointError, match=message):
        read_weights(tmp_path)


@pytest.mark.parametrize(
    "content, message",
    [
        ("[", "Expecting value"),
        ("[]", "has no weight_map"),
        ('{"weight_map": []}', "has no weight_map"),
        ('{"weight_map": {}}', "has no weight_map"),
        (json.dumps({"weight_map": {str(n): f"{n}.bin" for n in range(1001)}}), "1001 files, more"),
        ("[" * 100_000, "recursion"),
    ],
)
def test_an_index_of_rubbish(tmp_path, content, message):
    (tmp_path / "pytorch_model.bin.index.json").write_text(content)
    with pytest.raises(CheckpointError, match=message):
        read_weights(tmp_path)


def test_an_encoder_of_colours_sees_grey_as_three_channels(weights, tmp_path, caplog):
    path = str(tmp_path / "colours.pth")
    write_fb(weights, path, HEADS)
    model = classifier(in_chans=1)
    with caplog.at_level(logging.WARNING):
        load_weights(model, path, REPLACED["mean"], grid=(4, 4), new=NEW)
    assert "its patch embedding is the sum over them" in caplog.text
    kernel = model.patch_embed.proj.weight.numpy()
    np.testing.assert_array_equal(kernel, weights["patch_embed.proj.weight"].sum(1, keepdims=True))
    with pytest.raises(CheckpointError, match="in_chans 1, the file has 3"):
        load_weights(autoencoder(in_chans=1), path, grid=(4, 4))
