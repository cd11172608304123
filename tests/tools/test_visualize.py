"""Figures of a model: which weights it takes, what it draws, what it says of mistakes."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import oneflow as flow
import pytest
from made_runs import DATA, pretrained_run
from PIL import Image

from libai_ext.checkpoint.errors import CheckpointError
from libai_ext.data.transforms import Compose, EvalCrop, ToArray
from libai_ext.errors import ConfigError, DataError
from libai_ext.placement import batch_sbp, to_global
from projects.MAE.modeling.mae import MaskedAutoencoder
from projects.MAE.pictures import visualize
from projects.MAE.pictures.figure import image_grid, magnification
from projects.MAE.weights.files import write_fb, write_oneflow, write_timm
from projects.MAE.weights.model import model_of
from projects.MAE.weights.packing import Heads

HEADS = Heads(encoder=4, decoder=2)
TOOL = "tools/visualize.py"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A model of 16 x 24 pixels; its weights as `mae.pth`, `encoder.pth` and the checkpoint of a
    run; a folder of three images."""
    folder = tmp_path_factory.mktemp("visualize")
    model = MaskedAutoencoder((16, 24), 4, 3, 32, 2, 4, 16, 1, 2, mlp_ratio=3).eval()
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    write_fb(weights, str(folder / "mae.pth"), HEADS)
    write_timm(weights, str(folder / "encoder.pth"), HEADS)
    trained = {"pos_embed": weights["pos_embed"] + 1, "decoder_pos_embed": weights["pos_embed"]}
    write_fb({**weights, **trained}, str(folder / "trained.pth"), HEADS)
    (folder / "images").mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (16, 24, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"images/{number}.png")
    (folder / "run").mkdir()
    write_oneflow(weights, str(folder / "run/model_final"))
    (folder / "run/last_checkpoint").write_text("model_final")
    (folder / "run/config.yaml").write_text(
        "model: {num_heads: 4, decoder_num_heads: 2, norm_pix_loss: true, img_size: [16, 24],"
        " mask_ratio: 0.5}\n"
        "data: {mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}\n"
        "dataloader: {test: {dataset: {transform: {_target_: libai_ext.data.transforms.ToArray,"
        " mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}}}}\n"
    )
    return folder, model, weights


def test_sizes_are_read_off_the_tensors(files):
    folder, model, weights = files
    loaded = model_of(str(folder / "mae.pth"), HEADS)
    assert loaded.has_decoder and loaded.model.patch_embed.img_size == (16, 24)
    for name, tensor in loaded.model.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), weights[name], err_msg=name)
    encoder = model_of(str(folder / "encoder.pth"), HEADS, (16, 24))
    assert not encoder.has_decoder
    images = to_global(np.ones((1, 3, 16, 24), np.float32), batch_sbp())
    np.testing.assert_array_equal(
        encoder.model.features(images).numpy(), model.features(images).numpy()
    )


def test_what_a_run_says_of_itself_is_used(files):
    folder, _, _ = files
    subject = visualize.load(str(folder / "run"), Heads())
    assert subject.model.norm_pix_loss and subject.has_decoder
    assert (subject.mask_ratio, subject.preprocess.mean) == (0.5, [0.5, 0.5, 0.5])
    images, _ = visualize.read_images(subject, [str(folder / "images")], samples=2)
    pixels = [np.asarray(Image.open(folder / f"images/{number}.png")) for number in (0, 2)]
    expected = np.stack(pixels).transpose(0, 3, 1, 2) / 127.5 - 1
    np.testing.assert_allclose(images, expected, atol=1e-6)


def test_a_checkpoint_alone_says_how_to_look_at_an_image(files, tmp_path):
    """Without its run's folder: sizes, loss and preprocessing are in its record."""
    run, _ = pretrained_run(tmp_path / "run", img_size=(16, 24), norm_pix_loss=True, mask_ratio=0.5)
    checkpoint = tmp_path / "alone"
    shutil.move(f"{run}/model_final", checkpoint)
    content = json.loads((checkpoint / "record.json").read_text())
    name = "libai_ext.data.transforms."
    content["data"]["transform"] = [
        {"_target_": f"{name}Resize", "size": [16, 24]},
        {"_target_": f"{name}ToArray", "mean": DATA["mean"], "std": DATA["std"]},
    ]
    (checkpoint / "record.json").write_text(json.dumps(content))
    subject = visualize.load(str(checkpoint), Heads())
    assert subject.model.norm_pix_loss and subject.mask_ratio == 0.5 and subject.notes == []
    path = str(files[0] / "images/0.png")
    (image,), _ = visualize.read_images(subject, [path], samples=1)
    pixels = np.asarray(Image.open(path)) / 255
    expected = ((pixels - DATA["mean"]) / DATA["std"]).transpose(2, 0, 1)
    np.testing.assert_allclose(image, expected, atol=1e-5)

    content["data"]["transform"][0]["_target_"] = "os.system"
    (checkpoint / "record.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="os.system' is not among what a config may call"):
        visualize.load(str(checkpoint), Heads())


@pytest.mark.parametrize("transform", ["EvalCrop", "Resize"])
def test_a_run_and_its_hugging_face_folder_see_an_image_alike(tmp_path, monkeypatch, transform):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import convert

    run, _ = pretrained_run(tmp_path / "run")
    record = Path(run, "model_final/record.json")
    content = json.loads(record.read_text())
    name = "libai_ext.data.transforms."
    content["data"]["transform"] = [
        {"_target_": f"{name}{transform}", "size": [16, 16]},
        {"_target_": f"{name}ToArray", "mean": DATA["mean"], "std": DATA["std"]},
    ]
    record.write_text(json.dumps(content))
    assert convert.main([run, str(tmp_path / "hf"), "--to", "hf"]) == 0
    pixels = np.random.default_rng(0).integers(0, 256, (40, 64, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    views = [
        visualize.read_images(visualize.load(str(tmp_path / source), Heads()), [image], 1)
        for source in ("run", "hf")
        for image in [str(tmp_path / "wide.png")]
    ]
    np.testing.assert_array_equal(views[0][0], views[1][0])
    assert views[0][1] == ["wide.png"]
    # The other transform sees another part of it.
    resized = Image.fromarray(pixels).resize((16, 16), Image.Resampling.BICUBIC)
    squashed = ((np.asarray(resized) / 255 - DATA["mean"]) / DATA["std"]).transpose(2, 0, 1)
    assert (np.abs(views[0][0][0] - squashed).max() < 0.1) == (transform == "Resize")


def test_rows_are_named_by_their_files(files):
    folder, _, _ = files
    subject = visualize.load(str(folder / "run"), Heads())
    paths = [str(folder), str(folder / "images/1.png"), str(folder / "images/1.png")]
    images, names = visualize.read_images(subject, paths, samples=2)
    assert names == ["images/0.png", "images/2.png", "1.png", "1.png"]
    assert len(images) == 4


def test_a_ratio_that_hides_everything_is_named(files):
    """Also that of the run."""
    subject = visualize.load(str(files[0] / "run"), Heads())
    subject.mask_ratio = 0.99
    for ratio in (None, 0.98):
        with pytest.raises(ConfigError, match=f"mask ratio of {ratio or 0.99} leaves none of 24"):
            visualize.hidden_patches(subject, 1, seed=0, ratio=ratio)


def test_another_size_sees_the_whole_image(files):
    """As for an input of the recipes: what is recorded is for the size that it was trained at."""
    folder, _, _ = files
    subject = visualize.load(str(folder / "run"), Heads(), (32, 48))
    assert subject.model.patch_embed.grid_size == (8, 12)
    path = str(folder / "images/0.png")
    images, _ = visualize.read_images(subject, [path], samples=1)
    view = Compose([EvalCrop((32, 48)), ToArray([0.5] * 3, [0.5] * 3)])
    expected = view(Image.open(path), np.random.default_rng(0))
    np.testing.assert_allclose(images[0], expected, atol=1e-6)
    hidden = visualize.hidden_patches(subject, 1, seed=0)
    ((original, *_),) = visualize.reconstruction_rows(subject, images, hidden)
    assert original.shape == (32, 48, 3)


def test_what_a_file_does_not_say_is_named(files):
    subject = visualize.load(str(files[0] / "mae.pth"), HEADS)
    said = "\n".join(subject.notes)
    assert "by the sines and cosines in its position table" in said
    assert "does not say mean and deviation of its data: ImageNet's" in said
    assert "does not say norm_pix_loss: off (else: --norm-pix-loss)" in said


def test_reconstructions_under_picked_patches(files):
    """Hidden patches show the model's prediction, scaled back; the others are as they were."""
    folder, _, _ = files
    subject = visualize.load(str(folder / "run"), Heads())
    images, _ = visualize.read_images(subject, [str(folder / "images/1.png")], 1)
    hidden = visualize.hidden_patches(subject, 1, seed=0, patches=[0, 7, 23])
    assert np.flatnonzero(hidden[0]).tolist() == [0, 7, 23]
    ((original, masked, _, mixed),) = visualize.reconstruction_rows(subject, images, hidden)
    changed = np.abs(mixed - original).reshape(4, 4, 6, 4, 3).max(axis=(1, 3, 4)) > 1e-6
    assert np.flatnonzero(changed).tolist() == [0, 7, 23]
    grey = (masked == 0.5).reshape(4, 4, 6, 4, 3).all(axis=(1, 3, 4))
    assert np.flatnonzero(grey).tolist() == [0, 7, 23]
    with flow.no_grad():
        subject.model.keep = 21
        out = subject.model(
            to_global(images, batch_sbp()), to_global(np.float32(hidden), batch_sbp())
        )
    patch = images[0, :, 4:8, 4:8].transpose(1, 2, 0)  # number 7
    drawn = out["prediction"].numpy()[0, 7].reshape(4, 4, 3)
    drawn = drawn * np.sqrt(patch.var(ddof=1) + 1e-6) + patch.mean()
    np.testing.assert_allclose(mixed[4:8, 4:8], np.clip(drawn / 2 + 0.5, 0, 1), atol=1e-5)


def test_larger_ratios_hide_what_smaller_ones_did(files):
    folder, _, _ = files
    subject = visualize.load(str(folder / "run"), Heads())
    masks = [visualize.hidden_patches(subject, 2, 5, ratio) for ratio in (0, 0.25, 0.5, 0.9)]
    assert [mask.sum(axis=1).tolist() for mask in masks] == [[0] * 2, [6] * 2, [12] * 2, [22] * 2]
    assert all((small <= large).all() for small, large in zip(masks, masks[1:]))
    assert (masks[2][0] != masks[2][1]).any()
    assert (masks[2] != visualize.hidden_patches(subject, 2, 6, 0.5)).any()


def test_what_cannot_be_drawn(files):
    folder, _, _ = files
    with pytest.raises(CheckpointError, match="mae.pth.* width 32 is none of the published ones"):
        visualize.load(str(folder / "mae.pth"), Heads())
    with pytest.raises(CheckpointError, match=r"grid of its 24 patches: .*--grid.*\[4,6\], "):
        visualize.load(str(folder / "trained.pth"), HEADS)
    subject = visualize.load(str(folder / "run"), Heads())
    with pytest.raises(DataError, match="cannot open .*none.png: No such file"):
        visualize.read_images(subject, [str(folder / "none.png")], 1)
    with pytest.raises(ConfigError, match="no patch 24; the 4 x 6 patches are numbered 0 to 23"):
        visualize.hidden_patches(subject, 1, 0, patches=[3, 24])
    with pytest.raises(ConfigError, match="nothing is left to see"):
        visualize.hidden_patches(subject, 1, 0, patches=range(24))
    with pytest.raises(ConfigError, match="leaves none of 24 patches"):
        visualize.hidden_patches(subject, 1, 0, 0.99)


def test_a_grid_is_sharp_and_labelled():
    red, blue = np.zeros((2, 2, 3, 3))
    red[..., 0], blue[..., 2] = 1, 1
    pixels = np.asarray(image_grid([[red, blue], [blue, red]], ["one", "two words"], scale=20))
    ink = (pixels == [255, 0, 0]).all(-1)
    assert ink.sum() == 2 * 40 * 60 and (pixels == [0, 0, 255]).all(-1).sum() == 2 * 40 * 60
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    assert (pixels[: rows[0]] < 100).any() and (pixels[rows[-1] + 1 :] == 255).all()
    assert (pixels[:, : columns[0]] == 255).all()
    assert (magnification(32, 32, 224), magnification(32, 128, 224)) == (7, 2)
    assert magnification(448, 448, 224) == 1


def test_names_of_rows():
    """Above their rows, shortened from the front, and nothing is drawn over a picture."""
    picture = np.full((4, 6, 3), [1.0, 0, 0])
    names = ["a/0.png", "a/long/way/" * 20 + "1.png", "\x1b\n"]
    pixels = np.asarray(image_grid([[picture] * 2] * 3, ["one", "two"], 20, names)).astype(int)
    red = (pixels == [255, 0, 0]).all(-1)
    assert red.sum() == 6 * 80 * 120
    tops = np.flatnonzero(np.diff(red.any(1).astype(int)) == 1) + 1
    assert len(tops) == 3
    for number, top in enumerate(tops):
        above = pixels[top - 14 : top]
        ink = np.flatnonzero((above < 140).all(-1).any(0))
        assert ink[0] < 12 and ink[-1] < pixels.shape[1] - 2
        assert ink[-1] > (200 if number == 1 else 15)


@pytest.mark.slow
def test_command_line(launch, files, tmp_path):
    folder, _, _ = files
    out = launch.python(
        TOOL, folder / "run", folder / "images", "--output", tmp_path / "a.png",
        "--gif", tmp_path / "a.gif", "--ratios", "0.25,0.75",
    )  # fmt: skip
    assert out.splitlines() == [str(tmp_path / "a.png"), str(tmp_path / "a.gif")]
    figure, animation = Image.open(tmp_path / "a.png"), Image.open(tmp_path / "a.gif")
    assert figure.width > 4 * 24 * 9 and figure.height > 3 * (16 * 9 + 15)
    assert animation.n_frames == 2

    size = ["--size", "16x24", "--encoder-heads", "4"]
    encoder = [TOOL, folder / "encoder.pth", folder / "images/0.png", *size]
    out = launch.python(*encoder, "--output", tmp_path / "b.png")
    assert "warning: no reconstruction is drawn. The file holds an encoder only." in out
    assert 2 * 24 * 9 < Image.open(tmp_path / "b.png").width < 3 * 24 * 9
    launch.python(*encoder, "--attention", "heads", "--output", tmp_path / "c.png")
    assert 5 * 24 * 9 < Image.open(tmp_path / "c.png").width < 6 * 24 * 9


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments, message",
    [
        (["{}/none.pth", "{}/images"], "none.pth: no such file or folder"),
        (["{}/run", "{}/mae.pth"], "cannot read image .*mae.pth: unknown image format"),
        (["{}/run", "{}/images", "--output", "{}/x.unknown"], "cannot write .*x.unknown"),
    ],
)
def test_mistakes_end_with_one_message(launch, files, arguments, message):
    folder = files[0]
    out = launch.python(TOOL, *(part.format(folder) for part in arguments), status=2)
    assert out.startswith("error: ") and out.count("\n") == 1
    assert re.search(message, out)
