"""Configs and command lines that no run can use: each ends with one message that helps.

Here in process, by the function that the program runs; tests/test_command_line.py sends some
through the launcher.
"""

from __future__ import annotations

import argparse

import oneflow as flow
import pytest
import yaml
from omegaconf import OmegaConf

from libai_ext.config import lazy_config
from libai_ext.engine import cli as entry
from libai_ext.engine.output_dir import write_record
from libai_ext.errors import ConfigError, UserError
from projects.MAE.rules import COMMON, RULES, read_config
from projects.MAE.run import _given, resolve

DIGITS = "projects/MAE/configs/mae_digits.py"

OVERRIDES = [
    # Misspelt, or in the wrong place.
    ("train.sed=1", "unknown config key 'train.sed': did you mean 'train.seed'?"),
    ("trian.seed=1", "unknown config key 'trian.seed': did you mean 'train.seed'?"),
    ("train.warmup_ratio=1", "a name of LiBai, here 'train.warmup_epoch'"),
    ("train.rdma_enabled=1", "OneFlow finds InfiniBand by itself"),
    ("mlp_ratio=4", "unknown config key 'mlp_ratio': a name of timm, without a key"),
    ("save_model_after_n_epoch=1", "a name of LiBai, here 'train.checkpointer.epoch'"),
    ("finetune=x.pth", "a name of the official code, here 'finetune.path'"),
    (
        "model=mae_vit_base_patch16",
        "group of keys: a name of the official code, here 'model.arch'",
    ),
    ("optim.learning_rate=1", "unknown config key 'optim.learning_rate'"),
    ("model.embed_dims=64", "did you mean 'model.embed_dim'?"),
    ("max_to_keep=2", "did you mean 'train.checkpointer.max_to_keep'?"),
    ("train.dist.tensor_parallel=2", "did you mean 'train.dist.tensor_parallel_size'?"),
    ("data.train.1=/data", "unknown config key 'data.train.1'"),
    # Not an assignment.
    ("train.seed", "'train.seed' is not of the form key=value"),
    ("+train.seed=1", "can be set, not added or deleted"),
    ("=3", "not of the form key=value"),
    # Of the wrong type.
    ("train.seed=abc", "train.seed must be a number such as 0, not 'abc'"),
    ("train.seed=1.5", "train.seed must be a whole number of at least 0, not 1.5"),
    ("train.log_period=true", "train.log_period must be a number such as 50, not True"),
    ("train.output_dir=[a]", "train.output_dir must be a text such as 'output/digits'"),
    ("graph.enabled=1", "graph.enabled must be true or false, not 1"),
    ("graph.enabled=yess", "graph.enabled must be true or false, not 'yess'"),
    ("data.train=/a,/b", "data.train=/a,/b: several values are written [/a,/b]"),
    ("data.train=[]", "data.train must be a list: a text, not []"),
    ("data.train=[/a,]", "data.train must be a list: a text, not ['/a', '']"),
    ("data.train=null", "data.train must be a list: a text, not None"),
    ("optim.lr=1e-3,1e-4", "optim.lr=1e-3,1e-4: one value is read, or a list, which is written"),
    ("data.mean=0.5,0.5", "a list, which is written [0.5,0.5]"),
    ("optim.lr=range(1,3)", "optim.lr=range(1,3): one value is read"),
    ("optim.lr=1(", "optim.lr=1(: not a value: write a number, true, false, null, a list as"),
    ("model.arch=", "model.arch must be a text, not ''"),
    ("train.checkpointer=null", "train.checkpointer is a group of keys, set them one by one"),
    ("train.checkpointer=5", "train.checkpointer is a group of keys, set them one by one: period"),
    ("train.train_iter=many", "train.train_iter must be a whole number of at least 1, not 'many'"),
    ("train.seed=null", "train.seed must be a whole number of at least 0, not None"),
    ("model.img_size=[32]", "model.img_size must be a whole number of at least 1 or a list: 2 of"),
    # Out of range.
    ("train.train_epoch=0", "train.train_epoch must be a finite number above 0, not 0"),
    ("train.warmup_epoch=-1", "train.warmup_epoch must be a finite number of at least 0, not -1"),
    ("train.base_lr=nan", "train.base_lr must be a finite number of at least 0, not nan"),
    ("train.train_micro_batch_size=0", "must be a whole number of at least 1, not 0"),
    ("train.checkpointer.period=0", "train.checkpointer.period must be a whole number of at least"),
    ("train.zero_optimization.stage=4", "must be one of (1, 2, 3), not 4"),
    ("optim.betas=[0.9]", "optim.betas must be a list: 2 of a finite number"),
    ("optim.betas=[0.9,2]", "of at least 0 and below 1, not [0.9, 2]"),
    ("optim.betas=[1,1]", "of at least 0 and below 1, not [1, 1]"),
    ("optim.betas=[0.9,1.0]", "of at least 0 and below 1, not [0.9, 1.0]"),
    ("optim.params.weight_decay=-0.1", "must be a finite number of at least 0, not -0.1"),
    ("train.device=gpu", "train.device must be one of ('cpu', 'cuda'), not 'gpu'"),
    ("model.mask_ratio=75", "model.mask_ratio must be a finite number of at least 0 and at most 1"),
    ("model.depth=-1", "model.depth must be a whole number of at least 1, not -1"),
    ("model.num_heads=5", "model.embed_dim 64 is not divisible by model.num_heads 5"),
    ("data.std=[0]", "data.std must be a list: a finite number above 0, not [0]"),
    ("dataloader.train.num_workers=-1", "must be a whole number of at least 0, not -1"),
    (
        f"train.seed={2**63}",
        "train.seed must be a whole number of at least 0, not a number beyond 2^63",
    ),
    ("optim.eps=1e400", "optim.eps must be a finite number above 0, not inf"),
    ("train.ema.decay=1", "train.ema.decay must be a finite number of at least 0 and below 1, not"),
    # At odds with another key.
    ("data.mode=RGB", "model.in_chans 1 does not go with data.mode RGB"),
    ("data.mean=[0.5,0.5]", "data.mean has 2 values for model.in_chans 1 channels"),
    ("train.num_accumulation_steps=5 train.global_batch_size=64", "64 is not divisible by"),
    ("train.train_iter=9 train.train_epoch=3", "train.train_epoch=3 has no effect while"),
    (
        "train.evaluation.eval_epoch=1 train.evaluation.eval_period=9",
        "train.evaluation.eval_period=9 has no effect while train.evaluation.eval_epoch=1 is set: "
        "leave it out, or add train.evaluation.eval_epoch=null",
    ),
    ("train.checkpointer.period=9 train.checkpointer.epoch=2", "train.checkpointer.epoch=2 is set"),
    (
        "train.evaluation.evals.knn.period=9 train.evaluation.evals.knn.epoch=2",
        "train.evaluation.evals.knn.epoch=2 is set: leave it out, or add",
    ),
    ("optim.lr=1 train.base_lr=2", "train.base_lr=2 has no effect while optim.lr=1 is set"),
    ("train.global_batch_size=64 train.train_micro_batch_size=8", "has no effect while"),
    ("train.dist.data_parallel_size=2", "= 2 processes, but 1 are running"),
    ("data.mean='${data.average}'", "data.mean"),
    ("optim._target_=os.system", "optim._target_ 'os.system' is not among what a config may call"),
    ("train.evaluation.eval_metric=top1", "eval_metric 'top1' is not one of the results: loss"),
    ("train.evaluation.eval_metric=loss train.evaluation.eval_mode=max", "minimum of loss is best"),
    (
        "train.evaluation.eval_metric=loss",
        "train.evaluation.eval_metric=loss has no effect while train.evaluation.enabled=False: "
        "leave it out, or add train.evaluation.enabled=True",
    ),
    ("train.evaluation.eval_mode=min train.evaluation.eval_metric=loss", "eval_mode=min has no e"),
    ("train.evaluation.eval_epoch=2", "train.evaluation.eval_epoch=2 has no effect while"),
    (
        "train.evaluation.evals.knn.epoch=1 train.evaluation.eval_metric=loss",
        "train.evaluation.eval_metric=loss has no effect while train.evaluation.enabled=False",
    ),
    ("train.evaluation.eval_mode=best", "train.evaluation.eval_mode must be one of ('max', 'min')"),
    ("model.mask_ratio=0", "model.mask_ratio 0 leaves 64 of 64 patches visible"),
    ("model.mask_ratio=1e-20", "model.mask_ratio 1e-20 leaves 64 of 64 patches"),
    ("model.mask_ratio=0.99", "model.mask_ratio 0.99 leaves 0 of 64 patches visible"),
    ("model.arch=mae_vit_base", "model.arch 'mae_vit_base' is unknown: did you mean"),
]


@pytest.mark.parametrize("assignments, message", OVERRIDES)
def test_bad_overrides(assignments, message, capsys):
    with pytest.raises(UserError) as caught:
        resolve(DIGITS, assignments.split(" "))
    assert message in str(caught.value)
    assert entry._report(caught.value) == 2
    assert capsys.readouterr().err == f"error: {caught.value}\n"


@pytest.mark.parametrize("key, rule", {**COMMON, **RULES}.items())
def test_no_rule_allows_numbers_that_no_computer_holds(key, rule):
    for value in (10**400, -(10**400), float("inf"), float("nan")):
        assert not rule.holds(value) and not rule.holds([value]) and not rule.holds([value] * 2)


@pytest.mark.parametrize(
    "key, digits, message",
    [
        ("train.seed", 400, "train.seed must be a whole number of at least 0, not a number beyond"),
        ("train.seed", 5000, "not a value: write a number"),
        ("optim.eps", 400, "optim.eps must be a finite number above 0, not a number beyond"),
        ("train.ema.decay", 400, "train.ema.decay must be a finite number of at least 0 and below"),
    ],
)
def test_integers_of_many_digits(key, digits, message):
    with pytest.raises(ConfigError, match=message):
        resolve(DIGITS, [f"{key}={'9' * digits}"])


def test_the_largest_seed():
    assert resolve(DIGITS, [f"train.seed={2**63 - 1}"]).train.seed == 2**63 - 1
    flow.manual_seed(2**63 - 1)


@pytest.mark.parametrize(
    "line, assignments",
    [
        ("train.evaluation.eval_metric = 'loss'", ""),
        ("", "train.evaluation.eval_metric=loss train.evaluation.enabled=True"),
        ("", "train.evaluation.evals.knn.epoch=1 train.evaluation.eval_metric=knn/top1"),
        ("", "train.evaluation.eval_metric=null"),
    ],
)
def test_metrics_with_an_effect_and_those_of_recipes(line, assignments, tmp_path):
    path = tmp_path / "config.py"
    path.write_text(_head() + line + "\n")
    resolve(str(path), assignments.split())


FILES = [
    (
        "train.train_epochs = 3",
        "unknown config key 'train.train_epochs': did you mean 'train.tra",
    ),
    ("model.mlp_size = 2", "unknown config key 'model.mlp_size'"),
    ("model.mask_ration = 2", "'model.mask_ration': did you mean 'model.mask_ratio'? (build_mae"),
    ("model.pooling = 'cls'", "unknown config key 'model.pooling'"),
    ("train.warmup_ratio = 2", "a name of LiBai, here 'train.warmup_epoch'"),
    ("train.dist.tensor = 2", "unknown config key 'train.dist.tensor'"),
    ("optim.momentum = 0.9", "unknown config key 'optim.momentum'"),
    ("data.means = [0.5]", "unknown config key 'data.means': did you mean 'data.mean'?"),
    ("dataloader.train.dataset.sauce = 1", "did you mean 'dataloader.train.dataset.source'?"),
    ("train.checkpointer = 5", "train.checkpointer is a group of keys: period, epoch, max_to_keep"),
    ("task = []", "task must be a group of keys with a _target_"),
    ("del task", "task must be a group of keys with a _target_"),
    ("graph.train_graph = 3", "graph.train_graph must be a group of keys with a _target_"),
    ("del optim.params", "optim.params must be a group of keys with a _target_"),
    ("dataloader.test.dataset = 1", "dataloader.test.dataset must be a group of keys with a"),
    ("model.arch = None", "model.arch must be a text, not None"),
    ("del train", "the config has no node 'train'"),
    ("model.depth = = 1", "config.py, line 2: invalid syntax"),
    ("\nmodle.depth = 1", "config.py, line 3: NameError: name 'modle' is not defined"),
]


@pytest.mark.parametrize("line, message", FILES)
def test_bad_files(line, message, tmp_path):
    path = tmp_path / "config.py"
    path.write_text(_head() + line + "\n")
    with pytest.raises(UserError) as caught:
        resolve(str(path), [])
    assert message in str(caught.value)


OLDER = {
    "train.seed": ["train.seed=0"],
    "train.amp.min_scale train.load_grid": ["train.load_grid=None", "train.amp.min_scale=1.0"],
    "train.ema train.watchdog.factor": [
        "train.watchdog.factor=20",
        "train.ema={'enabled': False, 'decay': 0.9999}",
    ],
}


@pytest.mark.parametrize("absent", OLDER)
def test_what_an_older_config_lacks_is_by_default(absent, kept, tmp_path):
    older = lazy_config.load(kept)
    for key in absent.split():
        parent, _, name = key.rpartition(".")
        del OmegaConf.select(older, parent)[name]
    path = tmp_path / "config.yaml"
    path.write_text(lazy_config.dump(older))
    notes = []
    found = resolve(str(path), ["train.seed=3"], notes=notes)
    assert notes[:1] == [f"keys that the config lacks, by default: {', '.join(OLDER[absent])}"]
    assert found == resolve(kept, [])


def _head():
    names = ("data", "dataloader", "graph", "model", "optim", "task", "train")
    nodes = "; ".join(f"{name} = c.{name}" for name in names)
    return f"from libai_ext.config.lazy_config import load; c = load({DIGITS!r}); {nodes}; del c\n"


HOSTILE = [
    "os.system",
    "builtins.eval",
    "subprocess.Popen",
    "oneflow.load",
    "oneflow.hub.load",
    "oneflow.os.system",
    "libai.config.LazyConfig.load",
    "libai_ext.config.lazy_config.load",
    "libai_ext.launch.launcher.main",
    "libai_ext.data.download.urlopen",
    "libai_ext.data.dataset.np.load",
    "libai_ext.data.transforms.Compose.__init__",
    "libai_ext.engine.graph.dist.synchronize",
    "oneflow.nn.optimizer.adamw.flow.load",
    "projects.MAE.run.run",
    "libai_ext.data.transforms",
    "libai_ext.data.transforms.Absent",
]


@pytest.mark.parametrize("target", HOSTILE)
@pytest.mark.parametrize("place", ["model", "train.scheduler", "dataloader.test.dataset.fields.0"])
def test_a_yaml_cannot_name_what_runs_code(target, place, tmp_path):
    content = yaml.safe_load(lazy_config.dump(lazy_config.load(DIGITS)))
    node = content
    for name in place.split("."):
        node = node[int(name) if name.isdigit() else name]
    node["_target_"] = target
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=rf"{place}._target_ '{target}' (is not among|does not)"):
        lazy_config.load(str(path))


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """The config.yaml of a run of the quickstart on one process."""
    path = tmp_path_factory.mktemp("run") / "config.yaml"
    options = argparse.Namespace(config_file=DIGITS, opts=["train.seed=3"], fast_dev_run=False)
    write_record(str(path.parent), _given(options))
    return str(path)


@pytest.mark.parametrize(
    "recipe", [f"mae_{name}" for name in ("pretraining", "stl10", "finetune_huge", "linprobe")]
)
def test_what_a_run_writes_is_the_same_run(recipe, tmp_path):
    recipe = f"projects/MAE/configs/{recipe}.py"
    given = read_config(recipe, [])
    given.train.output_dir = str(tmp_path)
    write_record(str(tmp_path), given)
    again = resolve(f"{tmp_path}/config.yaml", [])
    assert lazy_config.dump(again) == lazy_config.dump(
        resolve(recipe, [f"train.output_dir={tmp_path}"])
    )


def test_another_number_of_processes(kept, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    train = resolve(kept, []).train
    assert (train.dist.data_parallel_size, train.global_batch_size, train.seed) == (2, 128, 3)


@pytest.mark.parametrize(
    "assignments, values",
    [
        ("model.arch=mae_vit_tiny_patch4", {"model.embed_dim": 192, "model.decoder_depth": 4}),
        ("train.global_batch_size=128", {"optim.lr": 4e-3, "train.train_micro_batch_size": 128}),
        ("train.train_micro_batch_size=16", {"optim.lr": 5e-4, "train.global_batch_size": 16}),
        ("model.depth=6", {"model.depth": 6, "train.dist.custom_pipeline_stage_id": [0] * 7}),
        ("model.img_size=[16,32]", {"dataloader.train.dataset.fields.0.num_patches": 32}),
        ("optim.lr=0.5", {"optim.lr": 0.5}),
        ("train.base_lr=1", {"optim.lr": 0.25}),
    ],
)
def test_other_overrides(assignments, values, kept):
    cfg = resolve(kept, assignments.split())
    assert {key: OmegaConf.select(cfg, key) for key in values} == values
