"""Weights of a run into a model: with its heads, from its grid, or not at all."""

from __future__ import annotations

import logging
import shutil
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import oneflow as flow
import pytest
from made_runs import (
    autoencoder,
    classified_run,
    classifier,
    official_probe,
    pretrained_run,
    randomise,
    weights_of,
)
from omegaconf import OmegaConf

from libai_ext.checkpoint import manifest, oneflow_folder
from libai_ext.checkpoint.checkpointer import Checkpointer
from libai_ext.checkpoint.errors import CheckpointError
from libai_ext.errors import ConfigError
from libai_ext.optim.ema import WeightAverage
from libai_ext.placement import batch_sbp, to_global
from projects.MAE.modeling.pos_embed import sincos_pos_embed
from projects.MAE.run import _set_state
from projects.MAE.tasks import Classification, Pretraining
from projects.MAE.weights.files import read_weights, write_fb, write_hf, write_oneflow
from projects.MAE.weights.load import load_weights
from projects.MAE.weights.match import NEW, REPLACED
from projects.MAE.weights.packing import Heads
from projects.MAE.weights.pos_embed import interpolate

FINETUNE = (*REPLACED["mean"], *NEW)


@pytest.fixture(scope="module")
def square(tmp_path_factory):
    """A run on 16 x 16 pixels with four heads; and its model."""
    return pretrained_run(tmp_path_factory.mktemp("square"))


@pytest.mark.parametrize(
    "sizes, message",
    [
        (dict(num_heads=3), "num_heads 3, the file has 4"),
        (dict(decoder_num_heads=4), "decoder_num_heads 4, the file has 2"),
        (dict(depth=3), "depth 3, the file has 2"),
        (dict(patch_size=8), "patch_size 8, the file has 4"),
        (dict(embed_dim=96, mlp_ratio=2.0), "embed_dim 96, the file has 48; mlp_ratio 2, .* 4"),
    ],
)
def test_another_model_is_refused_by_both_values(square, sizes, message):
    with pytest.raises(CheckpointError, match=f"is of another model: {message}$"):
        load_weights(autoencoder(**sizes), square[0])


def test_the_same_loss_comes_out(square):
    """And not that of another number of heads."""
    run, model = square
    loaded = autoencoder()
    load_weights(loaded, run)
    rng = np.random.default_rng(1)
    arrays = rng.normal(size=(2, 3, 16, 16)), rng.random((2, 16))
    inputs = [to_global(np.float32(array), batch_sbp()) for array in arrays]
    with flow.no_grad():
        expected, found = (m(*inputs)["sample_losses"].numpy() for m in (model, loaded))
    np.testing.assert_array_equal(found, expected)


def test_heads_of_hugging_face_count_as_well(square, tmp_path):
    weights, source = read_weights(square[0])
    write_hf(weights, str(tmp_path / "hf"), source.heads, known=source.record)
    with pytest.raises(CheckpointError, match="num_heads 3, the file has 4"):
        load_weights(classifier(num_heads=3), str(tmp_path / "hf"), FINETUNE)


@pytest.mark.parametrize(
    "trained, wanted",
    [((32, 128), (48, 192)), ((32, 64), (64, 32)), ((32, 64), (40, 80)), ((32, 64), (48, 48))],
)
@pytest.mark.parametrize("style", ["run", "official", "hugging face"])
def test_position_tables_go_from_grid_to_grid(tmp_path, trained, wanted, style):
    """The record names the grid that they come from. The tables are sines and cosines: inside, the
    result is close to theirs at the same places of the image."""
    run, _ = pretrained_run(tmp_path / "run", img_size=trained)
    weights, source = read_weights(run)
    path = str(tmp_path / style.replace(" ", "_"))
    if style == "official":
        path += ".pth"
        write_fb(weights, path, source.heads, source.record)
    elif style == "hugging face":
        write_hf(weights, path, source.heads, known=source.record)
    model = autoencoder(img_size=wanted)
    load_weights(model, path if style != "run" else run)
    grids = [(height // 4, width // 4) for height, width in (trained, wanted)]
    for name, width in (("pos_embed", 48), ("decoder_pos_embed", 24)):
        expected = interpolate(sincos_pos_embed(grids[0], width), *grids)
        np.testing.assert_array_equal(getattr(model, name).numpy(), expected)
        scale = [target / source for source, target in zip(*grids)]
        rows, columns = np.indices(grids[1])
        omega = 10000.0 ** -(np.arange(width // 4) / (width / 4))
        places = (columns + 0.5) / scale[1] - 0.5, (rows + 0.5) / scale[0] - 0.5
        angles = [place.reshape(-1, 1) * omega for place in places]
        exact = np.concatenate([f(a) for a in angles for f in (np.sin, np.cos)], axis=1)
        inner = np.ones(grids[1], bool)
        margin = [max(1, round(2 * factor)) for factor in scale]
        inner[: margin[0]] = inner[-margin[0] :] = False
        inner[:, : margin[1]] = inner[:, -margin[1] :] = False
        difference = np.abs(getattr(model, name).numpy()[0, 1:] - exact)[inner.reshape(-1)]
        assert difference.size and difference.max() < 0.15


def test_what_no_file_says_is_named(square, tmp_path, caplog):
    weights = weights_of(square[1])
    write_oneflow(weights, str(tmp_path / "bare"))
    with caplog.at_level(logging.INFO):
        load_weights(autoencoder(), str(tmp_path / "bare"))
    assert "has no record.json and no config.yaml beside it" in caplog.text
    assert "the file does not say how many heads: 4, as the model has" in caplog.text


def test_a_decoder_of_any_width_is_left_out(square, tmp_path, caplog):
    """Nobody has to know its heads."""
    weights = weights_of(square[1])
    write_fb(weights, str(tmp_path / "mae.pth"), Heads(4, 2))
    model = classifier()
    with caplog.at_level(logging.INFO):
        load_weights(model, str(tmp_path / "mae.pth"), FINETUNE)
    for name in ("patch_embed.proj.weight", "blocks.1.self_attention.query_key_value.weight"):
        np.testing.assert_array_equal(model.state_dict()[name].numpy(), weights[name])
    rows = [" ".join(line.split()) for line in caplog.text.splitlines()]
    assert "left out decoder_blocks (1) 12" in rows


def test_a_model_without_a_head_is_no_classifier(square):
    with pytest.raises(CheckpointError, match="without a class head: .* give it as finetune.path"):
        load_weights(classifier(), square[0])


def test_an_official_linear_probe_is_read(tmp_path):
    run, model = classified_run(tmp_path / "run", pooling="cls", batch_norm=True)
    official_probe(tmp_path / "probe.pth", model)
    pixels = np.random.default_rng(2).normal(size=(3, 3, 16, 16)).astype(np.float32)
    images = to_global(pixels, batch_sbp())
    for path in (run, str(tmp_path / "probe.pth")):
        loaded = randomise(classifier(pooling="cls", batch_norm=True), seed=9)
        load_weights(loaded, path)
        with flow.no_grad():
            expected, found = (m(images)["prediction_scores"].numpy() for m in (model, loaded))
        np.testing.assert_array_equal(found, expected)
    with pytest.raises(CheckpointError, match="batch_norm False, the file has True"):
        load_weights(classifier(pooling="cls"), run)
    # Fine-tuning starts from its encoder.
    load_weights(classifier(), str(tmp_path / "probe.pth"), FINETUNE)


def test_fine_tuning_takes_no_head_of_a_classifier(tmp_path):
    """Nor one that fits: its classes are others."""
    run, old = classified_run(tmp_path / "run")
    model = randomise(classifier(), seed=9)
    first, old = weights_of(model), weights_of(old)
    cfg = {
        "model": {"pooling": "mean"},
        "train": {"load_weight": None, "load_grid": None},
        "finetune": {"enable": True, "path": run, "weight_style": None},
    }
    Classification().start_from(model, OmegaConf.create(cfg))
    for name, array in weights_of(model).items():
        expected = first if name.startswith("head.") else old
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


def evaluated(model, path, output_dir):
    """The averages with which an evaluation of ``path`` begins."""
    cfg = {"load_weight": path, "load_grid": None, "extend_from": None, "output_dir": output_dir}
    average = WeightAverage(model, 0.5)
    trainer = SimpleNamespace(
        cfg=OmegaConf.create({"train": cfg}),
        model=model,
        average=average,
        task=Pretraining(),
        checkpointer=Checkpointer(model, output_dir),
    )
    _set_state(trainer, Namespace(resume=False, eval_only=True))
    return {name: tensor.numpy() for name, tensor in average.averages.items()}


def test_an_evaluation_has_the_averages_of_the_checkpoint(tmp_path):
    run, saved = pretrained_run(tmp_path / "run")
    with pytest.raises(ConfigError, match="no moving average .*: train.ema.enabled=False "):
        evaluated(autoencoder(), run, str(tmp_path))
    average = WeightAverage(randomise(saved, seed=1), 0.5)
    checkpointer = Checkpointer(randomise(saved, seed=2), run, ema=average)
    checkpointer.save("model_best", 9)
    checkpointer.finish()
    # Of another size of images: the encoder's table is fixed, and none of its averages.
    for model in (autoencoder(), autoencoder(img_size=(16, 32))):
        found = evaluated(model, f"{run}/model_best", str(tmp_path))
        for name, tensor in average.averages.items():
            np.testing.assert_array_equal(found[name], tensor.numpy(), err_msg=name)
            assert not (found[name] == model.state_dict()[name].numpy()).all()
    shutil.rmtree(f"{run}/model_best/ema")
    oneflow_folder.save({"norm.weight": np.zeros(48, np.float32)}, str(tmp_path / "other"))
    (tmp_path / "other/model").rename(f"{run}/model_best/ema")
    with pytest.raises(CheckpointError, match="model_best/ema/pickled_data: not what was written"):
        evaluated(autoencoder(), f"{run}/model_best", str(tmp_path))
    manifest.write(Path(run, "model_best"))
    with pytest.raises(CheckpointError, match="model_best/ema: .* tensors are missing"):
        evaluated(autoencoder(), f"{run}/model_best", str(tmp_path))
