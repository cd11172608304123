from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from libai_ext.config import lazy_config
from libai_ext.config.rules import RULES
from libai_ext.errors import ConfigError
from projects.MAE import rules

ROOT = Path(__file__).resolve().parents[2]

DIGITS = "projects/MAE/configs/mae_digits.py"
PRETRAIN = "projects/MAE/configs/mae_pretraining.py"


@pytest.fixture
def cfg():
    return lazy_config.load(PRETRAIN)


def test_the_recipe_of_the_paper(cfg):
    train, optim = cfg.train, cfg.optim
    assert (train.train_epoch, train.warmup_epoch, train.base_lr) == (800, 40, 1.5e-4)
    assert (list(optim.betas), optim.params.weight_decay) == ([0.9, 0.95], 0.05)
    assert (cfg.model.mask_ratio, cfg.model.norm_pix_loss) == (0.75, False)
    crop, flip = cfg.dataloader.train.dataset.transform.transforms[:2]
    assert (list(crop.scale), flip.p) == ([0.2, 1.0], 0.5)
    assert list(cfg.data.mean) == [0.485, 0.456, 0.406]


def test_each_load_is_a_fresh_copy(cfg):
    cfg.train.train_epoch = 1
    cfg.data.mean[0] = 9.0
    digits = lazy_config.load("projects/MAE/configs/mae_digits.py")
    assert lazy_config.load(PRETRAIN).train.train_epoch == 800
    assert lazy_config.load(PRETRAIN).data.mean[0] == 0.485
    assert lazy_config.get_config("common/train.py").train.base_lr is None
    assert (digits.model.arch, cfg.model.arch) == ("mae_vit_digits", "mae_vit_base_patch16")


def test_a_recipe_imported_by_its_full_name_is_a_fresh_copy_too(tmp_path):
    path = tmp_path / "c.py"
    path.write_text("from projects.MAE.configs.mae_digits import task\ntask.picture_samples += 1\n")
    assert [lazy_config.load(str(path)).task.picture_samples for _ in "12"] == [6, 6]


def test_a_config_with_data_of_its_own_may_lack_newer_keys(tmp_path):
    path = tmp_path / "c.py"
    text = "from projects.MAE.configs.mae_digits import *\ndel data.cache_gib, data.reduce_jpegs\n"
    path.write_text(text)
    notes = []
    cfg = rules.read_config(str(path), [], notes)
    assert (cfg.data.cache_gib, cfg.dataloader.train.dataset.reduce_jpegs) == (32.0, False)
    assert notes == [
        "keys that the config lacks, by default: data.reduce_jpegs=False, data.cache_gib=32.0"
    ]


def test_a_recipe_is_found_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mae_linprobe").write_text("of the user")
    expected = str(ROOT / "projects/MAE/configs/mae_digits.py")
    for name in ("mae_digits", "mae_digits.py", "projects/MAE/configs/mae_digits.py"):
        assert rules.find_recipe(name) == expected
    assert rules.find_recipe("mae_linprobe") == "mae_linprobe"
    for name in ("my/mae_digits", "mae_digit", "mae_digits.yaml", "../configs/mae_digits"):
        with pytest.raises(ConfigError, match="recipes mae_cifar10, mae_cifar100, .*mae_digits,"):
            rules.find_recipe(name)


def test_override_reaches_every_kind_of_key(cfg):
    lazy_config.override(
        cfg,
        [
            "train.train_epoch=3",
            "model.img_size=[32,128]",
            "data.train=[/a,/b]",
            "dataloader.train.dataset.transform.transforms.1.p=0",
            "train.dist.tensor_parallel_size=2",
            "optim.lr=1e-3",
            "train.output_dir='a b'",
        ],
    )
    assert (cfg.train.train_epoch, cfg.optim.lr, cfg.train.output_dir) == (3, 1e-3, "a b")
    assert list(cfg.dataloader.train.dataset.source.roots) == ["/a", "/b"]
    assert cfg.dataloader.train.dataset.transform.transforms[1].p == 0
    assert list(cfg.dataloader.train.dataset.transform.transforms[0].size) == [32, 128]


@pytest.mark.parametrize(
    "assignment, message",
    [
        ("train.train_epochs=3", "unknown config key 'train.train_epochs'.*'train.train_epoch'"),
        ("mask_ratio=0.5", "did you mean 'model.mask_ratio'"),
        ("nonsense.key=1", "unknown config key 'nonsense.key'"),
        ("train.train_epoch", "not of the form key=value"),
        ("+train.new=1", "can be set, not added"),
        ("~train.seed", "can be set, not added or deleted"),
    ],
)
def test_bad_overrides(cfg, assignment, message):
    with pytest.raises(ConfigError, match=message):
        lazy_config.override(cfg, [assignment])


def test_dump_reads_back(cfg, tmp_path):
    cfg.model.img_size = [32, 64]
    path = tmp_path / "config.yaml"
    path.write_text(lazy_config.dump(cfg))
    again = lazy_config.load(str(path))
    assert lazy_config.dump(again) == lazy_config.dump(cfg)
    assert again.optim._target_ == "oneflow.nn.optimizer.adamw.AdamW"


def test_yaml_cannot_run_code(tmp_path):
    path = tmp_path / "config.yaml"
    ran = tmp_path / "ran"
    path.write_text(f"train: !!python/object/apply:os.system ['touch {ran}']\n")
    with pytest.raises(ConfigError, match="not plain YAML"):
        lazy_config.load(str(path))
    assert not ran.exists()


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("absent.py", None, "does not exist"),
        ("config.txt", "a: 1", "must end in .py"),
        ("config.yaml", "- 1\n- 2\n", "must hold a mapping"),
        ("config.yaml", "a: [1", "not plain YAML"),
    ],
)
def test_unreadable_configs(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        lazy_config.load(str(path))


def test_unknown_shared_node():
    with pytest.raises(ConfigError, match="no shared config common/trian.py"):
        lazy_config.get_config("common/trian.py")


TEXTS = {
    "/data/\u6570\u636e": "/data/\u6570\u636e",
    "/x/lr=1": "/x/lr=1",
    "/x/a(1)": "/x/a(1)",
    "/x/a b": "/x/a b",
    "/x/a,b": "/x/a,b",
    "/x/{a}#%&$b": "/x/{a}#%&$b",
    "/x/it's": "/x/it's",
    "'a b'": "a b",
    '"[a]"': "[a]",
    "=": "=",
    "3": "3",
    "true": "true",
    "'null'": "null",
    "null": None,
    "~/x": "/home/of/x",
    "~x": "~x",
    "1:2": "1:2",
    "\u00e9\u0301\u202e": "\u00e9\u0301\u202e",
}


@pytest.mark.parametrize("typed, value", TEXTS.items())
@pytest.mark.parametrize("key", ["train.output_dir", "train.load_weight", "data.train"])
def test_texts_are_taken_as_they_stand(key, typed, value, monkeypatch):
    monkeypatch.setenv("HOME", "/home/of")
    if key == "data.train" and (value is None or typed == "/x/a,b"):
        return
    got = OmegaConf.select(
        lazy_config.override(lazy_config.load(DIGITS), [f"{key}={typed}"], RULES), key
    )
    assert got == ([value] if key == "data.train" else value)


LISTS = {
    "[/a,/b]": ["/a", "/b"],
    "[/a, /b]": ["/a", "/b"],
    "['/a','/b']": ["/a", "/b"],
    "[/x/lr=1,/x/a(1),~/z]": ["/x/lr=1", "/x/a(1)", "/home/of/z"],
    "[/data/\u6570\u636e]": ["/data/\u6570\u636e"],
    '["/a/s-{000000..000999}.tar"]': ["/a/s-{000000..000999}.tar"],
    "/a/s-{0,1}.tar": ["/a/s-{0,1}.tar"],
    "[/a/{0,1}.tar,/b]": ["/a/{0,1}.tar", "/b"],
    "['/a,b']": ["/a,b"],
    "'/a,b'": ["/a,b"],
    "[/it's,/b]": ["/it's", "/b"],
    "cifar10:train:data/cifar10": ["cifar10:train:data/cifar10"],
}


@pytest.mark.parametrize("typed, value", LISTS.items())
def test_lists_of_texts(typed, value, monkeypatch):
    monkeypatch.setenv("HOME", "/home/of")
    assert (
        lazy_config.override(lazy_config.load(DIGITS), [f"data.train={typed}"]).data.train == value
    )


def test_a_part_that_may_be_missing_is_switched_off():
    cfg = lazy_config.load("projects/MAE/configs/mae_digits_finetune.py")
    lazy_config.override(cfg, ["dataloader.train.dataset.mixer=null"])
    assert cfg.dataloader.train.dataset.mixer is None
    with pytest.raises(ConfigError, match="source is a group of keys"):
        lazy_config.override(cfg, ["dataloader.train.dataset.source=null"])
