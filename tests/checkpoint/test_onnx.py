"""ONNX files give, in onnxruntime, the numbers of the models."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import onnxruntime
import pytest
from made_runs import classified_run, pretrained_run

from projects.MAE import load_encoder
from projects.MAE.weights import files, onnx_graph
from projects.MAE.weights.packing import Heads


def export(path, weights: str, heads: Heads = Heads(), grid=None) -> onnxruntime.InferenceSession:
    arrays, source = files.read_weights(weights, heads, grid)
    if "head_norm.running_mean" in arrays:
        arrays = files.fold_probe(arrays)
        source = dataclasses.replace(source, record=source.record.having(batch_norm=False))
    onnx_graph.write(onnx_graph.build(arrays, source), str(path))
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("name", ["fb_finetune.pth", "timm_cls.safetensors", "hf_classifier"])
def test_logits_are_those_of_pytorch(golden, tmp_path, name):
    session = export(tmp_path / "x.onnx", str(golden / name), Heads(3), (4, 4))
    data = np.load(golden / f"{name.split('.')[0]}.npz")
    (logits,) = session.run(["logits"], {"images": data["images"]})
    np.testing.assert_allclose(logits, data["output"], atol=1e-5)


@pytest.mark.parametrize("batch", [1, 5])
def test_encoder_of_a_grey_rectangular_run(tmp_path, batch):
    data = dict(mode="L", mean=[0.5], std=[0.3])
    run, _ = pretrained_run(tmp_path / "run", data=data, img_size=(8, 24), in_chans=1)
    session = export(tmp_path / "x.onnx", run)
    assert [output.name for output in session.get_outputs()] == ["tokens"]
    record = json.loads(session.get_modelmeta().custom_metadata_map["record"])
    assert record["data"]["mean"] == [0.5] and record["model"]["img_size"] == [8, 24]
    images = np.random.default_rng(0).normal(size=(batch, 1, 8, 24)).astype(np.float32)
    (tokens,) = session.run(None, {"images": images})
    expected = load_encoder(run).features(images, pool="tokens")
    np.testing.assert_allclose(tokens, expected, atol=1e-5)


@pytest.mark.parametrize("limit", [onnx_graph.MAX_BYTES, 0], ids=["one file", "weights beside"])
def test_a_linear_probe(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(onnx_graph, "MAX_BYTES", limit)
    run, _ = classified_run(tmp_path / "run", pooling="cls", batch_norm=True)
    (tmp_path / "x.onnx.data").write_bytes(b"of an earlier export")
    session = export(tmp_path / "x.onnx", run)
    graph_size = (tmp_path / "x.onnx").stat().st_size
    assert (graph_size < 50_000) == (limit == 0)
    images = np.random.default_rng(0).normal(size=(3, 3, 16, 16)).astype(np.float32)
    tokens, logits = session.run(["tokens", "logits"], {"images": images})
    encoder = load_encoder(run)
    np.testing.assert_allclose(logits, encoder.logits(images), atol=1e-5)
    np.testing.assert_allclose(tokens, encoder.features(images, pool="tokens"), atol=1e-5)
