"""What a checkpoint says of its model, and what others' files say of theirs."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from made_runs import DATA, DECODER, SIZES, classified_run, pretrained_run, weights_of
from PIL import Image

from libai_ext.checkpoint import manifest, torch_writer
from libai_ext.checkpoint.errors import CheckpointError
from libai_ext.data.channels import DIVISORS
from libai_ext.data.decode import BadImage
from libai_ext.data.sources import open_images
from projects.MAE.weights.describe import describe
from projects.MAE.weights.files import read_weights, write_fb, write_hf, write_oneflow, write_timm
from projects.MAE.weights.mapping import from_ours
from projects.MAE.weights.packing import Heads
from projects.MAE.weights.preprocessing import preprocessing_of
from projects.MAE.weights.record import EMPTY, parse

LINES = dict(img_size=(32, 128), embed_dim=48, num_heads=6, norm_pix_loss=True, mask_ratio=0.6)


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    """A run on lines of text, 8 x 32 patches, and its model."""
    return pretrained_run(tmp_path_factory.mktemp("lines"), **LINES)


def known(path, *arguments):
    return describe(path, *arguments)[1].record


def everything(record):
    """Its model and preprocessing, as the run of `lines` has them."""
    model = dict(SIZES, **DECODER, **LINES, mlp_ratio=4.0)
    assert dict(record.model) == dict(model, img_size=[32, 128])
    assert {key: record.data[key] for key in DATA} == DATA
    return True


def test_a_checkpoint_says_what_is_needed_to_use_it(lines):
    """Wherever its folder is taken."""
    run, _ = lines
    for path in (run, f"{run}/model_final", f"{run}/model_final/model"):
        assert everything(known(path))
    content = json.loads(Path(run, "model_final/record.json").read_text())
    assert content["version"] == 1 and content["model"]["num_heads"] == 6
    manifest.verify(Path(run, "model_final"))
    assert " record.json\n" in Path(run, "model_final/manifest").read_text()


def test_damaged_weights_are_not_used(lines, tmp_path):
    """By no reader: a changed bit may give any number."""
    run = shutil.copytree(lines[0], tmp_path / "run")
    tensor = next(Path(run, "model_final/model").glob("*tensor_*/out"))
    content = bytearray(tensor.read_bytes())
    content[3] ^= 64
    tensor.write_bytes(content)
    for path in (run, f"{run}/model_final", f"{run}/model_final/model"):
        with pytest.raises(CheckpointError, match="/out: not what was written"):
            read_weights(path)


def test_a_checkpoint_without_a_record_has_its_run(lines, tmp_path):
    """As runs before it was written."""
    shutil.copytree(lines[0], tmp_path / "run")
    os.unlink(tmp_path / "run/model_final/record.json")
    assert everything(known(tmp_path / "run"))
    os.unlink(tmp_path / "run/config.yaml")
    _, source = describe(tmp_path / "run")
    assert source.heads == Heads(None, None) and "norm_pix_loss" not in source.record.model
    assert source.grid == (8, 32)  # by its sines and cosines
    assert "has no record.json and no config.yaml beside it" in source.notes[0]


def test_an_older_config_names_its_sizes_by_the_arch(tmp_path):
    (tmp_path / "config.yaml").write_text(
        "model: {arch: mae_vit_digits, img_size: null, num_heads: null, decoder_num_heads: null}\n"
    )
    _, model = pretrained_run(tmp_path / "x", embed_dim=64, depth=4, decoder_embed_dim=64)
    write_oneflow(weights_of(model), str(tmp_path / "model_final"))
    with pytest.raises(CheckpointError, match="config.yaml says 32 x 32 pixels, 8 x 8 patches"):
        describe(tmp_path / "model_final")
    (tmp_path / "config.yaml").write_text(
        "model: {arch: mae_vit_digits, img_size: 16, num_heads: null, decoder_num_heads: null}\n"
    )
    record = known(tmp_path / "model_final")
    assert (record.model["num_heads"], record.model["img_size"]) == (4, [16, 16])


def test_the_names_of_classes_are_kept_in_order(tmp_path):
    run, _ = classified_run(tmp_path, num_classes=12, pooling="cls")
    record = known(run)
    assert record.classes == tuple(f"c{number}" for number in range(12))
    assert (record.model["pooling"], record.model["batch_norm"]) == ("cls", False)
    path = tmp_path / "model_final/record.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "classes": ["only"]}))
    with pytest.raises(CheckpointError, match="names 1 classes, the head has 12"):
        describe(run)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"version": 2}, "is of version 2, this program reads 1"),
        ({"version": None}, "not the record of a checkpoint"),
        ({"model": {"num_heads": "6"}}, "record.json: model.num_heads must be a whole number"),
        ({"model": {"img_size": [32, 0]}}, r"model.img_size must be \[height, width\]"),
        ({"model": {"depth": 12}}, r"of another model: it says depth 12 \(the tensors 2\)"),
        ({"model": {"img_size": [64, 32]}}, "64 x 32 pixels, 16 x 8 patches; .* has 256"),
        ({"data": {"std": [0.0]}}, "data.std must be a list of numbers above 0"),
        ({"data": {"mode": 0}}, "data.mode must be RGB, L or a number of channels"),
        ({"data": {"mode": 3, "divisors": {"uint8": 1}}}, "data.divisors must be .*65535.*version"),
        ({"data": {"picture_channels": [0, 1]}}, "picture_channels must be one or three whole"),
        ({"data": [1]}, "data is not a group of keys"),
        ({"classes": "cat"}, "classes is not a list of names"),
    ],
)
def test_a_record_is_not_trusted(lines, tmp_path, change, message):
    shutil.copytree(f"{lines[0]}/model_final", tmp_path / "x")
    path = tmp_path / "x/record.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(CheckpointError, match=message):
        describe(tmp_path / "x")


@pytest.mark.parametrize("content", ["", "[1]", "{" * 5000, "\x00"])
def test_a_record_that_is_none(lines, tmp_path, content):
    shutil.copytree(f"{lines[0]}/model_final", tmp_path / "x")
    (tmp_path / "x/record.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"record\.json"):
        describe(tmp_path / "x")


def test_the_record_goes_along_where_a_file_has_room(lines, tmp_path):
    run, model = lines
    weights, source = read_weights(run)
    write_fb(weights, str(tmp_path / "fb.pth"), source.heads, source.record)
    write_fb(weights, str(tmp_path / "fb.safetensors"), source.heads, source.record)
    write_oneflow(weights, str(tmp_path / "ours"), source.record)
    for name in ("fb.pth", "fb.safetensors", "ours"):
        assert everything(known(tmp_path / name)), name
        back, _ = read_weights(tmp_path / name)
        for key, array in weights_of(model).items():
            np.testing.assert_array_equal(back[key], array, err_msg=f"{name} {key}")
    write_hf(weights, str(tmp_path / "hf"), source.heads, known=source.record)
    assert everything(known(tmp_path / "hf"))
    write_timm(weights, str(tmp_path / "timm.safetensors"), source.heads, source.record)
    record = known(tmp_path / "timm.safetensors").model
    assert (record["num_heads"], record["img_size"]) == (6, [32, 128])


@pytest.mark.parametrize("as_torchvision", [True, False, None])
def test_photos_on_their_side(tmp_path, as_torchvision):
    """Turned by their EXIF tag or not, as in the run; a run before it was recorded turned them."""
    data = DATA if as_torchvision is None else dict(DATA, as_torchvision=as_torchvision)
    run, _ = pretrained_run(tmp_path / "run", data=data)
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "x").mkdir()
    path = tmp_path / "x/photo.png"
    image = Image.fromarray(np.random.default_rng(0).integers(256, size=(20, 16, 3), dtype="u1"))
    image.save(path, exif=exif)
    seen = image if as_torchvision else image.transpose(Image.Transpose.ROTATE_270)
    weights, source = read_weights(run)
    write_fb(weights, str(tmp_path / "fb.pth"), source.heads, source.record)
    write_hf(weights, str(tmp_path / "hf"), source.heads, known=source.record)
    for weights in (run, tmp_path / "fb.pth", tmp_path / "hf"):
        prepare = preprocessing_of(describe(weights)[1])
        expected = prepare.of(seen)
        np.testing.assert_array_equal(prepare(str(path)), expected)
        for root in (path, tmp_path / "x"):
            image, _ = open_images([root], prepare.mode, prepare.as_torchvision)[0]
            np.testing.assert_array_equal(prepare.of(image), expected)


def test_images_of_any_number_of_channels(tmp_path):
    """How they are read goes along as well, also to Hugging Face, which has no key for it."""
    data = dict(mode=2, mean=[0.5, 0.2], std=[0.3, 0.1])
    run, _ = pretrained_run(tmp_path / "run", data=data, in_chans=2)
    weights, source = read_weights(run)
    write_fb(weights, str(tmp_path / "fb.pth"), source.heads, source.record)
    write_hf(weights, str(tmp_path / "hf"), source.heads, known=source.record)
    for path in (run, tmp_path / "fb.pth", tmp_path / "hf"):
        found = known(path).data
        assert {key: found[key] for key in data} == data and found["divisors"] == DIVISORS
        preprocess = preprocessing_of(describe(path)[1], (16, 16))
        assert (preprocess.mode, preprocess.mean, preprocess.std) == tuple(data.values())
        image = np.full((20, 20, 2), [60_000, 30_000], np.uint16)
        expected = (np.array([60_000, 30_000]) / 65535 - data["mean"]) / data["std"]
        np.testing.assert_allclose(preprocess(image)[:, 8, 8], expected, rtol=1e-4)
        for given in (image.astype(np.float32) / 65535, image[..., 0]):
            if given.ndim == 3:
                np.testing.assert_allclose(preprocess(given)[:, 8, 8], expected, rtol=1e-4)
            else:
                with pytest.raises(BadImage, match=r"\[20, 20\]; data.mode expects .*, 2\]"):
                    preprocess(given)
    # A file that says nothing: it is named what is assumed.
    write_timm(weights, str(tmp_path / "timm.pth"), source.heads)
    bare = preprocessing_of(describe(tmp_path / "timm.pth", Heads(4))[1], (16, 16))
    assert (bare.mode, bare.mean, bare.std) == (2, [0.0, 0.0], [1.0, 1.0])
    assert any("does not say data.mode: 2 channels as stored" in note for note in bare.notes)
    assert any("mean and deviation of its data: 0 and 1" in note for note in bare.notes)
    path = tmp_path / "run/model_final/record.json"
    content = json.loads(path.read_text())
    content["data"]["mode"] = 3
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="data.mode is 3, the model has 2"):
        preprocessing_of(describe(run)[1])


def test_a_bare_file_of_an_unpublished_width_asks_for_its_heads(lines, tmp_path):
    """Width 192 may have 3 or 6."""
    _, model = pretrained_run(tmp_path / "x", embed_dim=192, num_heads=6)
    write_timm(weights_of(model), str(tmp_path / "timm.pth"), Heads(6))
    with pytest.raises(CheckpointError, match="width 192 .* must be given: .*--encoder-heads"):
        read_weights(tmp_path / "timm.pth")


def test_heads_given_by_hand_do_not_overrule_the_file(lines):
    with pytest.raises(CheckpointError, match="3 heads of the encoder are given, .* says 6"):
        describe(lines[0], Heads(3))
    with pytest.raises(CheckpointError, match="4 heads of the decoder are given, .* says 2"):
        describe(lines[0], Heads(None, 4))
    with pytest.raises(CheckpointError, match="grid of 16 x 16 is given, .* says 8 x 32"):
        describe(lines[0], Heads(), (16, 16))


def test_official_args_are_read(tmp_path):
    """What forks left wrong is named and not used."""
    _, model = pretrained_run(tmp_path / "x")
    write_fb(weights_of(model), str(tmp_path / "plain.pth"), Heads(4, 2))
    state = read_weights(tmp_path / "plain.pth", Heads(4, 2))[0]

    def described(args):
        tree = {"model": from_ours(state, "fb", Heads(4, 2)), "args": args}
        torch_writer.save(tree, tmp_path / "fb.pth")
        return describe(tmp_path / "fb.pth", Heads(4, 2))[1]

    source = described({"input_size": 16, "mask_ratio": 0.5, "norm_pix_loss": True, "lr": 0.1})
    model = source.record.model
    assert (model["img_size"], model["mask_ratio"], model["norm_pix_loss"]) == ([16, 16], 0.5, True)
    assert source.notes == ()
    source = described({"input_size": 224, "norm_pix_loss": 3})
    model = source.record.model
    assert model["img_size"] == [16, 16] and "norm_pix_loss" not in model
    assert "norm_pix_loss 3, which is not used" in source.notes[0]
    assert "input_size 224 is not that of 16 patches" in source.notes[1]


def test_the_golden_namespace_is_read(golden):
    """`args` of a real torch.save, an argparse.Namespace without sizes."""
    _, source = describe(golden / "fb_finetune.pth", Heads(3))
    assert source.record.origin.endswith("fb_finetune.pth (args)") and source.grid is None


def test_timm_says_its_size_and_preprocessing_beside_the_weights(lines, tmp_path):
    _, model = pretrained_run(tmp_path / "x", img_size=(16, 32))
    (tmp_path / "timm").mkdir()
    path = tmp_path / "timm/model.safetensors"
    write_timm(weights_of(model), str(path), Heads(4))
    config = {
        "architecture": "vit_small_patch16_224",
        "pretrained_cfg": {"input_size": [3, 16, 32], "mean": DATA["mean"], "std": DATA["std"]},
        "model_args": {"num_heads": 4},
    }
    (tmp_path / "timm/config.json").write_text(json.dumps(config))
    _, source = describe(tmp_path / "timm")
    assert (source.heads.encoder, source.grid) == (4, (4, 8))
    assert source.record.data == {key: DATA[key] for key in ("mean", "std")}


def test_hugging_face_says_it_in_two_files(golden, tmp_path):
    shutil.copytree(golden / "hf_pretrain", tmp_path / "hf")
    (tmp_path / "hf/preprocessor_config.json").write_text(
        json.dumps({"image_mean": DATA["mean"], "image_std": DATA["std"], "size": 8})
    )
    record = known(tmp_path / "hf")
    assert record.model["img_size"] == [8, 8] and record.model["mask_ratio"] == 0.75
    assert record.model["norm_pix_loss"] is False and record.model["decoder_num_heads"] == 2
    assert record.data == dict(DATA)
    (tmp_path / "hf/preprocessor_config.json").write_text('{"image_mean": 0.5, "image_std": 0.25}')
    assert known(tmp_path / "hf").data == dict(mode="RGB", mean=[0.5] * 3, std=[0.25] * 3)
    config = json.loads((tmp_path / "hf/config.json").read_text())
    for change, message in (
        ({"num_hidden_layers": 4}, r"it says depth 4 \(the tensors 2\)"),
        ({"image_size": [4, 8]}, "4 x 8 pixels, 2 x 4 patches; the position table has 16"),
        ({"num_attention_heads": -1}, "num_heads must be a whole number above 0, not -1"),
        ({"hidden_act": "gelu_new"}, "config.json: hidden_act 'gelu_new': models here have exact"),
    ):
        (tmp_path / "hf/config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(CheckpointError, match=message):
            describe(tmp_path / "hf")


@pytest.mark.parametrize(
    "pixels, grid", [((16, 64), (4, 16)), ((64, 16), (16, 4)), ((32, 32), (8, 8))]
)
def test_sines_and_cosines_name_their_grid(tmp_path, pixels, grid):
    """64 patches could be seven rectangles."""
    _, model = pretrained_run(tmp_path / "x", img_size=pixels)
    write_fb(weights_of(model), str(tmp_path / "fb.pth"), Heads(4, 2))
    _, source = describe(tmp_path / "fb.pth", Heads(4, 2))
    assert source.grid == grid
    assert "by the sines and cosines in its position table" in source.notes[0]
    rng = np.random.default_rng(0)
    trained = {"pos_embed": rng.normal(size=(1, 65, 48)).astype(np.float32)}
    write_fb({**weights_of(model), **trained}, str(tmp_path / "trained.pth"), Heads(4, 2))
    assert describe(tmp_path / "trained.pth", Heads(4, 2))[1].grid is None


def test_nothing_known_is_nothing_said():
    assert parse({}, "x").model == {} and EMPTY.plain() == {"model": {}, "data": {}}
