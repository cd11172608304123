from __future__ import annotations

import pytest

from libai_ext import config
from libai_ext.errors import ConfigError

PRETRAIN = "projects/MAE/configs/mae_pretraining.py"


@pytest.fixture
def cfg():
    return config.load(PRETRAIN)


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
    digits = config.load("projects/MAE/configs/mae_digits.py")
    assert config.load(PRETRAIN).train.train_epoch == 800
    assert config.load(PRETRAIN).data.mean[0] == 0.485
    assert config.get_config("common/train.py").train.base_lr is None
    assert (digits.model.arch, cfg.model.arch) == ("mae_vit_digits", "mae_vit_base_patch16")


def test_override_reaches_every_kind_of_key(cfg):
    config.override(
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
        config.override(cfg, [assignment])


def test_dump_reads_back(cfg, tmp_path):
    cfg.model.img_size = [32, 64]
    path = tmp_path / "config.yaml"
    path.write_text(config.dump(cfg))
    again = config.load(str(path))
    assert config.dump(again) == config.dump(cfg)
    assert again.optim._target_ == "oneflow.nn.optimizer.adamw.AdamW"


def test_yaml_cannot_run_code(tmp_path):
    path = tmp_path / "config.yaml"
    ran = tmp_path / "ran"
    path.write_text(f"train: !!python/object/apply:os.system ['touch {ran}']\n")
    with pytest.raises(ConfigError, match="not plain YAML"):
        config.load(str(path))
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
        config.load(str(path))


def test_unknown_shared_node():
    with pytest.raises(ConfigError, match="no shared config common/trian.py"):
        config.get_config("common/trian.py")
