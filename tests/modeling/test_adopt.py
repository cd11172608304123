"""A config takes from the weights what it leaves open, and does not contradict them."""

from __future__ import annotations

import shutil

import numpy as np
import oneflow as flow
import pytest
from made_runs import (
    DATA,
    autoencoder,
    classified_run,
    official_probe,
    pretrained_run,
    randomise,
    weights_of,
)

from libai_ext.errors import ConfigError, UserError
from libai_ext.placement import batch_sbp, to_global
from projects.MAE.evaluation.probe import load_run
from projects.MAE.run import resolve
from projects.MAE.weights.describe import describe
from projects.MAE.weights.files import write_fb, write_timm
from projects.MAE.weights.model import model_of
from projects.MAE.weights.packing import Heads

CONFIGS = "projects/MAE/configs"
SIZES = ("img_size", "patch_size", "embed_dim", "depth", "num_heads")
SAME_DATA = [f"data.{key}={value}".replace(" ", "") for key, value in DATA.items()]


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    """A pre-training run on 16 x 64 pixels with six heads."""
    folder = tmp_path_factory.mktemp("lines")
    return pretrained_run(folder, img_size=(16, 64), num_heads=6, norm_pix_loss=True)[0]


def finetune(*opts, config="mae_finetune", **keywords):
    return resolve(f"{CONFIGS}/{config}.py", ["model.num_classes=5", *opts], **keywords)


def pretrain(*opts, **keywords):
    return resolve(f"{CONFIGS}/mae_pretraining.py", opts, **keywords)


@pytest.mark.parametrize("config", ["mae_finetune", "mae_linprobe", "mae_cifar10_finetune"])
def test_finetuning_has_the_sizes_of_the_run(lines, config):
    notes = []
    cfg = finetune(f"finetune.path={lines}", config=config, notes=notes)
    assert [cfg.model[key] for key in SIZES] == [[16, 64], 4, 48, 2, 6]
    if config != "mae_cifar10_finetune":
        size = cfg.dataloader.train.dataset.transform.transforms[0].size
        assert size == [16, 64]
    said = "\n".join(notes)
    assert "model_final/record.json has it: " in said
    assert "embed_dim 48, depth 2, num_heads 6, img_size [16,64]" in said
    assert "gives way to the weights in " in said


def test_pretraining_goes_on_with_the_sizes_of_the_run(lines):
    cfg = pretrain(f"train.load_weight={lines}")
    assert [cfg.model[key] for key in SIZES] == [[16, 64], 4, 48, 2, 6]
    assert [cfg.model[f"decoder_{key}"] for key in SIZES[2:]] == [24, 1, 2]


def test_another_image_size_is_no_contradiction(lines):
    cfg = finetune(f"finetune.path={lines}", "model.img_size=[24,96]")
    assert cfg.model.img_size == [24, 96] and cfg.model.num_heads == 6


@pytest.mark.parametrize(
    "option, message",
    [
        ("model.num_heads=3", "model.num_heads 3, the file has 6"),
        ("model.depth=12", "model.depth 12, the file has 2"),
        ("model.patch_size=8", "model.patch_size 8, the file has 4"),
        ("model.embed_dim=96", "model.embed_dim 96, the file has 48"),
        (
            "model.arch=mae_vit_base_patch16",
            r"embed_dim 768, the file has 48; .* \(model.arch mae_vit_base_patch16\): set these",
        ),
    ],
)
def test_what_is_set_must_agree(lines, option, message):
    """Both values are named, and no tensor."""
    with pytest.raises(ConfigError, match=message) as error:
        finetune(f"finetune.path={lines}", *option.split(" "))
    assert "blocks." not in str(error.value) and lines in str(error.value)


GREY = ("model.in_chans=1", "data.mode=L", "data.mean=[0.5]", "data.std=[0.5]")


def test_a_decoder_of_colours_predicts_no_grey(lines):
    with pytest.raises(
        ConfigError,
        match=r"model.in_chans 1, the file has 3: set model.in_chans=3 data.mode=RGB "
        r"data.mean=\[0.5,0.4,0.3\] data.std=\[0.3,0.2,0.1\]",
    ):
        pretrain(f"train.load_weight={lines}", *GREY)


def test_an_encoder_of_colours_may_see_grey(lines):
    assert finetune(f"finetune.path={lines}", *GREY).model.in_chans == 1


def test_a_decoder_must_agree_where_it_is_used(lines):
    with pytest.raises(ConfigError, match="model.decoder_num_heads 4, the file has 2"):
        pretrain(f"train.load_weight={lines}", "model.decoder_num_heads=4")


def test_a_recipe_that_sets_a_size_must_agree(lines, tmp_path):
    path = tmp_path / "recipe.py"
    path.write_text(
        "from libai_ext.config.lazy_config import load\n"
        f"cfg = load('{CONFIGS}/mae_pretraining.py')\n"
        "data, dataloader, graph, model, optim, task, train = (cfg[key] for key in ("
        "'data', 'dataloader', 'graph', 'model', 'optim', 'task', 'train'))\n"
        "model.depth = 3\n"
    )
    with pytest.raises(ConfigError, match="model.depth 3, the file has 2"):
        resolve(str(path), [f"train.load_weight={lines}"])
    assert resolve(str(path), [f"train.load_weight={lines}", "model.depth=null"]).model.depth == 2


def test_without_weights_the_arch_counts():
    cfg = finetune("finetune.enable=False")
    assert [cfg.model[key] for key in SIZES] == [[224, 224], 16, 768, 12, 12]


def test_weights_that_are_not_there(tmp_path):
    """At the start, not after the data have been read."""
    for option in (f"finetune.path={tmp_path}/none.pth", f"train.load_weight={tmp_path}"):
        with pytest.raises(UserError, match=str(tmp_path)):
            finetune(option)


def test_heads_that_no_file_names_are_asked_for(tmp_path):
    weights = weights_of(randomise(autoencoder()))
    write_timm(weights, str(tmp_path / "timm.pth"), Heads(4))
    path = f"finetune.path={tmp_path}/timm.pth"
    with pytest.raises(ConfigError, match="does not say how many .* set model.num_heads"):
        finetune(path)
    assert finetune(path, "model.num_heads=4").model.depth == 2


def test_a_grid_that_no_file_names_is_asked_for(tmp_path):
    weights = weights_of(randomise(autoencoder()))
    table = np.random.default_rng(0).normal(size=(1, 17, 48)).astype(np.float32)
    write_timm({**weights, "pos_embed": table}, str(tmp_path / "timm.pth"), Heads(4))
    opts = [f"finetune.path={tmp_path}/timm.pth", "model.num_heads=4"]
    with pytest.raises(ConfigError, match=r"grid of its 16 patches: set train.load_grid .*\[4,4\]"):
        finetune(*opts)
    assert finetune(*opts, "train.load_grid=[2,8]").model.img_size == [8, 32]
    # As many patches as the model has: its grid.
    assert finetune(*opts, "model.img_size=[32,8]").model.img_size == [32, 8]
    with pytest.raises(ConfigError, match="the grid of its 16 patches"):
        finetune(*opts, "model.img_size=[32,32]")


def test_an_mlp_of_another_width_is_taken_over(tmp_path):
    run, _ = pretrained_run(tmp_path, mlp_ratio=3.0)
    assert finetune(f"finetune.path={run}").model.mlp_ratio == 3.0


def test_an_evaluation_is_of_what_was_trained(lines):
    """The loss on pixels of a model of normalised ones, and other preprocessing, mean nothing."""
    opts = [f"train.load_weight={lines}", *SAME_DATA]
    with pytest.raises(ConfigError, match="model.norm_pix_loss False, the file has True"):
        pretrain(*opts, evaluate=True)
    assert pretrain(*opts, "model.norm_pix_loss=True", evaluate=True).model.num_heads == 6
    with pytest.raises(ConfigError, match=r"data.std \[1,1,1\], the file has \[0.3,0.2,0.1\]"):
        pretrain(*opts, "model.norm_pix_loss=True", "data.std=[1,1,1]", evaluate=True)


@pytest.mark.parametrize("key", ["train.load_weight", "train.extend_from"])
def test_a_run_starts_from_one_file(tmp_path, key):
    run, _ = classified_run(tmp_path)
    both = [f"finetune.path={run}", f"{key}={run}", "model.num_classes=5"]
    with pytest.raises(ConfigError, match=f"set finetune.path .* or {key} .*, not both"):
        finetune(*both, *SAME_DATA)
    assert finetune(*both[1:], *SAME_DATA, "finetune.path=null").model.num_heads == 4
    assert finetune(both[0], f"{key}=null", both[2], *SAME_DATA).model.num_heads == 4


@pytest.mark.parametrize("mine, theirs", [(True, False), (False, True)])
def test_so_is_how_images_are_decoded(tmp_path, mine, theirs):
    run, _ = pretrained_run(tmp_path, data=dict(DATA, as_torchvision=theirs))
    opts = [f"train.load_weight={run}", *SAME_DATA, f"data.as_torchvision={mine}"]
    message = f"data.as_torchvision {mine}, the file has {theirs}"
    with pytest.raises(ConfigError, match=message):
        pretrain(*opts, evaluate=True)
    notes = []
    pretrain(*opts, notes=notes)
    assert message in "".join(notes)


def test_training_otherwise_is_named(lines):
    notes = []
    pretrain(f"train.load_weight={lines}", "model.mask_ratio=0.5", notes=notes)
    said = "\n".join(notes)
    assert "was trained otherwise: model.norm_pix_loss False, the file has True" in said
    assert "data.mean [0.485,0.456,0.406], the file has [0.5,0.4,0.3]" in said
    assert "model.mask_ratio 0.5, the file has 0.75" in said


def test_a_whole_classifier_must_agree(tmp_path):
    run, _ = classified_run(tmp_path, pooling="cls")
    opts = [f"train.load_weight={run}", *SAME_DATA]
    with pytest.raises(ConfigError, match="model.pooling mean, the file has cls"):
        finetune(*opts, evaluate=True)
    with pytest.raises(ConfigError, match="model.num_classes 6, the file has 5"):
        finetune(*opts, "model.pooling=cls", "model.num_classes=6", evaluate=True)
    cfg = finetune(*opts, "model.pooling=cls", evaluate=True)
    assert [cfg.model[key] for key in SIZES] == [[16, 16], 4, 48, 2, 4]
    # Its head is not used by another fine-tuning.
    assert finetune(f"finetune.path={run}", "model.num_classes=7").model.num_heads == 4


def test_a_run_evaluates_its_own_checkpoint(lines):
    opts = [f"train.output_dir={lines}", "model.norm_pix_loss=True"]
    cfg = pretrain(*opts, *SAME_DATA, evaluate=True)
    assert [cfg.model[key] for key in SIZES] == [[16, 64], 4, 48, 2, 6]
    with pytest.raises(ConfigError, match=r"data.mean \[0.485,0.456,0.406\], the file has "):
        pretrain(*opts, evaluate=True)


@pytest.mark.parametrize("official", [False, True], ids=["own", "official"])
def test_a_linear_probe_is_read_wherever_weights_are(tmp_path, official):
    """To look at its encoder, as tools/knn.py and tools/visualize.py do; to evaluate it; to start
    from it."""
    path, probe = classified_run(tmp_path / "run", pooling="cls", batch_norm=True)
    if official:  # it does not say how many heads, nor which classes
        path = official_probe(tmp_path / "probe.pth", probe)
    opts = [f"train.load_weight={path}", "model.num_heads=4", *SAME_DATA]
    pixels = np.random.default_rng(6).normal(size=(2, 3, 16, 16)).astype(np.float32)
    images = to_global(pixels, batch_sbp())
    encoders = load_run(f"{CONFIGS}/mae_pretraining.py", opts), model_of(path, Heads(4))
    with flow.no_grad():
        expected = probe.features(images).numpy()
        for encoder in encoders:
            tokens = encoder.model.features(images)[:, 0]
            found = probe.head_norm(tokens).numpy()
            np.testing.assert_allclose(found, expected, atol=1e-5)
        opts.append("model.num_classes=5")
        same = load_run(f"{CONFIGS}/mae_linprobe.py", opts).model
        scores = [model(images)["prediction_scores"].numpy() for model in (same, probe)]
        np.testing.assert_array_equal(*scores)
    start = [f"finetune.path={path}", "model.num_heads=4", f"train.output_dir={tmp_path}/none"]
    tuned = load_run(f"{CONFIGS}/mae_finetune.py", [*start, *opts[2:]]).model.state_dict()
    for name in ("patch_embed.proj.weight", "pos_embed", "blocks.1.mlp.dense_4h_to_h.weight"):
        np.testing.assert_array_equal(tuned[name].numpy(), weights_of(probe)[name])


def test_a_run_goes_on_with_its_own_sizes(lines, tmp_path):
    """Also where its last checkpoint is damaged, so that the one before will be used."""
    shutil.copytree(lines, tmp_path / "run")
    shutil.copytree(f"{lines}/model_final", tmp_path / "run/model_0000003")
    opts = f"train.output_dir={tmp_path}/run", "model.patch_size=8"  # refused elsewhere
    for content in (None, "{"):
        if content:
            (tmp_path / "run/model_final/record.json").write_text(content)
        cfg = pretrain(*opts, go_on=True)
        assert [cfg.model[key] for key in SIZES] == [[16, 64], 8, 48, 2, 6]


def test_a_decoder_of_any_width_is_left_out_by_finetuning(tmp_path):
    """A file of the official code, whose decoder has no published width."""
    weights = weights_of(randomise(autoencoder()))
    write_fb(weights, str(tmp_path / "mae.pth"), Heads(4, 2))
    opts = [f"finetune.path={tmp_path}/mae.pth", "model.num_heads=4"]
    assert finetune(*opts).model.embed_dim == 48


@pytest.mark.parametrize(
    "key", ["embed_dim=198 model.num_heads=3", "embed_dim=6", "decoder_embed_dim=66"]
)
def test_a_width_without_a_position_table_is_refused(key):
    name = key.split("=")[0]
    with pytest.raises(ConfigError, match=f"model.{name} .* is not divisible by 4"):
        pretrain(*f"model.num_heads=2 model.decoder_num_heads=2 model.{key}".split(" "))


@pytest.mark.slow
def test_a_run_is_fine_tuned_and_evaluated_by_its_folder_alone(launch, digits, tmp_path):
    """No size is said twice; its heads are not to be contradicted, and the log says whose they
    are."""
    data = [f"data.train=[{digits}/train]", f"data.test=[{digits}/test]"]
    short = ["train.train_iter=2", "train.warmup_iter=1", "train.log_period=1"]
    sizes = ["model.depth=1", "model.embed_dim=48", "model.num_heads=6", "model.img_size=[16,32]"]
    run, tuned = tmp_path / "run", tmp_path / "tuned"
    digits_config, finetune_config = (f"{CONFIGS}/mae_digits{end}.py" for end in ("", "_finetune"))
    launch.train(digits_config, 1, *data, *short, *sizes, f"train.output_dir={run}")

    common = [*data, *short, f"finetune.path={run}", f"train.output_dir={tuned}"]
    out = launch.train(finetune_config, 1, *common, "model.num_heads=4", status=2)
    assert "model.num_heads 4, the file has 6" in out and "Traceback" not in out
    launch.train(finetune_config, 1, *common)
    log = (tuned / "log.txt").read_text()
    assert "embed_dim 48, depth 1, num_heads 6, img_size [16,32]" in log
    record = describe(tuned)[1].record
    assert record.model["num_heads"] == 6 and record.classes == tuple("0123456789")

    shutil.rmtree(run)
    out = launch.train(finetune_config, 1, *common, "--resume")
    assert "nothing to do: 2 of 2 iterations are done" in out
    evaluated = [f"train.load_weight={tuned}", f"train.output_dir={tmp_path}/evaluation"]
    out = launch.train(finetune_config, 1, "--eval-only", *data, *evaluated)
    assert "evaluation on 599 samples: top1" in out
