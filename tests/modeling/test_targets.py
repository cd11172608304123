"""Targets: their numbers, and that they are neither trained nor saved."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import oneflow as flow
import pytest
from made_runs import DECODER, SIZES, autoencoder, make_run, pretrained_run, weights_of

from libai_ext.checkpoint.errors import CheckpointError
from libai_ext.engine.graph import use_single_cpu_stream
from libai_ext.errors import ConfigError
from libai_ext.optim.ema import WeightAverage
from libai_ext.optim.param_groups import decay_matrices_only
from libai_ext.placement import batch_sbp, to_global
from projects.MAE.modeling.targets.base import Target
from projects.MAE.modeling.targets.hog import Hog
from projects.MAE.modeling.targets.pixels import Pixels
from projects.MAE.modeling.targets.teacher import TeacherFeatures
from projects.MAE.pictures import visualize
from projects.MAE.tasks import Pretraining
from projects.MAE.weights.describe import describe
from projects.MAE.weights.load import load_weights
from projects.MAE.weights.model import model_of
from projects.MAE.weights.packing import PUBLISHED

GOLDEN = np.load(Path(__file__).resolve().parents[1] / "golden" / "hog_numbers.npz")


@pytest.mark.parametrize("name, cell, side", [("rgb", 8, 1), ("rgb", 8, 2), ("grey", 4, 2)])
def test_hog_is_scikit_images(name, cell, side):
    """Whatever the patch, also of images normalised by mean and deviation."""
    pixels = GOLDEN[f"{name}/images"].astype(np.float32) / 255
    expected = GOLDEN[f"{name}/hog"]  # [2, C, rows, columns, bins]
    (_, channels, height, width), bins = pixels.shape, expected.shape[-1]
    target = Hog(bins, cell)
    target.prepare((height, width), side * cell, channels)
    found = target(to_global(pixels, batch_sbp())).numpy()
    rows, columns = height // cell // side, width // cell // side
    assert found.shape == (2, rows * columns, target.width)
    shape = (2, rows, columns, side, side, channels, bins)
    cells = found.reshape(shape).transpose(0, 5, 1, 3, 2, 4, 6).reshape(expected.shape)
    np.testing.assert_allclose(cells, expected, rtol=0, atol=1e-5)
    assert np.linalg.norm(expected, axis=-1)[0].min() > 0.99
    shifted = target(to_global((pixels - 0.4) / 0.2, batch_sbp())).numpy()
    np.testing.assert_allclose(shifted, found, rtol=0, atol=2e-4)


def test_hog_of_parts_of_cells_is_refused():
    with pytest.raises(ConfigError, match="model.target.cell 8 does not divide .* 4"):
        autoencoder(target=Hog())


def test_pixels_are_those_of_before():
    pixels = np.random.default_rng(0).normal(size=(2, 3, 16, 16)).astype(np.float32)
    for normalized in (False, True):
        target = Pixels(normalized)
        target.prepare((16, 16), 4, 3)
        found = target(flow.from_numpy(pixels)).numpy()
        patch = pixels[1, :, 4:8, 8:12].transpose(1, 2, 0).reshape(-1)
        expected = (patch - patch.mean()) / np.sqrt(patch.var(ddof=1) + 1e-6)
        np.testing.assert_allclose(found[1, 6], expected if normalized else patch, atol=1e-5)
        np.testing.assert_allclose(target.as_pixels(found[1, 6:7], patch[None])[0], patch, 0, 1e-5)


def test_a_teacher_of_hugging_face():
    """Its folder says its heads; what else is known of it comes along."""
    folder = str(Path(__file__).resolve().parents[1] / "golden/hf_pretrain")
    target = TeacherFeatures(folder)
    target.prepare((8, 8), 2, 3)
    images = to_global(np.load(f"{folder}.npz")["images"], batch_sbp())
    with flow.no_grad():
        tokens = model_of(folder).model.features(images).numpy()[:, 1:]
    centred = tokens - tokens.mean(-1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(target(images).numpy(), expected, atol=1e-4)


def test_a_teacher_that_has_changed_is_another_one(teacher, tmp_path):
    """A resumed run compares what the weights hold, not where they lie."""
    run, model = teacher
    named = {}
    for path in (run, make_run(tmp_path / "same", model, {**SIZES, **DECODER}),
                 pretrained_run(tmp_path / "run", num_heads=3)[0]):  # fmt: skip
        student = autoencoder(target=TeacherFeatures(path))
        named[path] = Pretraining().settings(student)["content of model.target"]
    first, same, other = named.values()
    assert len(first) == 8 and first == same != other  # of the same weights, as other heads
    assert Pretraining().settings(autoencoder()) == {}


def test_one_target_at_a_time():
    with pytest.raises(ConfigError, match="norm_pix_loss=True is for pixels"):
        autoencoder(target=Hog(cell=4), norm_pix_loss=True)
    with pytest.raises(ConfigError, match="pixels are the target of a model without model.target"):
        autoencoder(target=Pixels())


class Trained(Target):
    """What a target must not be."""

    def prepare(self, img_size, patch_size, in_chans):
        self.width = 1
        self.scale = flow.nn.Parameter(flow.ones(1))


def test_a_target_with_parameters_is_refused():
    with pytest.raises(TypeError, match="Trained would be trained or saved .*: scale;"):
        autoencoder(target=Trained())


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return pretrained_run(tmp_path_factory.mktemp("teacher") / "run")


def test_teacher_features(teacher):
    """The patch tokens of the run's own encoder, normalised."""
    run, model = teacher
    target = TeacherFeatures(run)
    target.prepare((16, 16), 4, 3)
    assert target.width == 48
    assert (target.data["mean"], target.data["mode"]) == ([0.5, 0.4, 0.3], "RGB")
    pixels = to_global(np.random.default_rng(0).normal(size=(2, 3, 16, 16)).astype(np.float32),
                       batch_sbp())  # fmt: skip
    with flow.no_grad():
        tokens = model.features(pixels).numpy()[:, 1:]
    expected = tokens - tokens.mean(-1, keepdims=True)
    expected /= np.sqrt((expected**2).mean(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(target(pixels).numpy(), expected, atol=1e-5)
    losses = target.loss(flow.tensor([[[0.5, 3.0]]]), flow.tensor([[[0.0, 1.0]]]))
    assert losses.numpy().tolist() == [[(0.5**2 / 2 + 1.5) / 2]]


def test_a_teacher_is_no_part_of_the_model(teacher):
    run, _ = teacher
    student = autoencoder(embed_dim=24, target=TeacherFeatures(run)).train()
    plain = autoencoder(embed_dim=24)
    assert student.decoder_pred.weight.shape == (24, 48)
    assert list(student.state_dict()) == list(plain.state_dict())
    names = [name for name, _ in student.named_parameters()]
    assert names == [name for name, _ in plain.named_parameters()]
    trained = sum(len(group["params"]) for group in decay_matrices_only(student, 0.05))
    assert trained == len(names) == len(WeightAverage(student, 0.9).averages)
    # Its own weights are read into it, and nothing else is drawn otherwise for it.
    own = dict(student.target.named_buffers())
    assert len(own) > 20 and not any(tensor.requires_grad for tensor in own.values())
    np.testing.assert_array_equal(student.cls_token.numpy(), plain.cls_token.numpy())


class Steps(flow.nn.Graph):
    """A model's training step, compiled."""

    def __init__(self, model, optimizer):
        use_single_cpu_stream()
        super().__init__()
        self.model = model
        self.add_optimizer(optimizer)

    def build(self, images, noise):
        loss = self.model(images, noise)["losses"]
        loss.backward()
        return loss


def test_a_teacher_stays_as_it_is(teacher):
    """To the bit, in 20 steps; and the losses are the same in graph and in eager mode."""
    losses = {"eager": [], "graph": []}
    for mode, found in losses.items():
        student = autoencoder(embed_dim=24, target=TeacherFeatures(teacher[0])).train()
        before = {name: tensor.numpy() for name, tensor in student.target.named_buffers()}
        optimizer = flow.optim.AdamW(decay_matrices_only(student, 0.05), lr=1e-3)
        step = Steps(student, optimizer) if mode == "graph" else None
        rng = np.random.default_rng(0)
        for _ in range(20):
            images = to_global(rng.normal(size=(4, 3, 16, 16)).astype(np.float32), batch_sbp())
            noise = to_global(rng.random((4, 16), dtype=np.float32), batch_sbp())
            if step is not None:
                loss = step(images, noise)
            else:
                loss = student(images, noise)["losses"]
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            found.append(loss.numpy().item())
        after = dict(student.target.named_buffers())
        assert after.keys() == before.keys() and len(before) > 20
        for name, tensor in after.items():
            np.testing.assert_array_equal(tensor.numpy(), before[name], err_msg=name)
    assert losses["graph"] == pytest.approx(losses["eager"], rel=1e-5)
    assert losses["eager"][-1] < losses["eager"][0]


@pytest.mark.parametrize(
    "sizes, message",
    [
        (dict(patch_size=8), "has patch_size 4, the model 8"),
        (dict(in_chans=1), "has in_chans 3, the model 1"),
    ],
)
def test_teachers_of_other_patches(teacher, sizes, message):
    with pytest.raises(ConfigError, match=message):
        autoencoder(target=TeacherFeatures(teacher[0]), **sizes)


def test_a_teacher_of_another_grid_is_interpolated(teacher):
    student = autoencoder(img_size=(16, 32), target=TeacherFeatures(teacher[0]))
    images = to_global(np.zeros((1, 3, 16, 32), np.float32), batch_sbp())
    assert student.target(images).shape == (1, 32, 48)


def test_a_teacher_that_is_missing(tmp_path):
    with pytest.raises(CheckpointError, match="none"):
        autoencoder(target=TeacherFeatures(str(tmp_path / "none")))


def test_a_checkpoint_says_what_it_predicts(tmp_path):
    """Nothing but the encoder is taken for what it is not."""
    target = {"_target_": f"{Hog.__module__}.Hog", "bins": 9, "cell": 4}
    sizes = dict(SIZES, **DECODER, mask_ratio=0.75, norm_pix_loss=False)
    model = autoencoder(target=Hog(cell=4))
    run = make_run(tmp_path / "run", model, dict(sizes, target=target))
    record = json.loads((tmp_path / "run/model_final/record.json").read_text())
    assert record["model"]["target"] == "projects.MAE.modeling.targets.hog.Hog"
    assert describe(run)[1].record.model["target"] == record["model"]["target"]
    subject = visualize.load(run, PUBLISHED, img_size=(16, 16))
    assert not subject.has_decoder and subject.target == record["model"]["target"]
    assert subject.notes[-1].endswith("hog.Hog, not pixels: no reconstruction is drawn")
    # Its whole, decoder included, goes back into a model of its kind, and no other.
    again = autoencoder(target=Hog(cell=4))
    load_weights(again, run)
    for name, array in weights_of(model).items():
        np.testing.assert_array_equal(weights_of(again)[name], array)
    with pytest.raises(CheckpointError, match="decoder_pred.weight"):
        load_weights(autoencoder(), run)
