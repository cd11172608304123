"""YAML configs made to run code, to read what is not theirs or to take all memory or time: each is
refused by one message that names the file and the key, before anything is resolved or called."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from libai_ext.config import lazy_config, targets
from libai_ext.engine import cli as entry
from libai_ext.errors import ConfigError, UserError
from projects.MAE.run import resolve

RECIPES = sorted(Path("projects/MAE/configs").glob("*.py"))
DIGITS = "projects/MAE/configs/mae_digits.py"
SYSTEM = "_target_: os.system, command: touch ran"
CALL = "_target_:os.system,command:'touch ran'"


# Where in the quickstart's config, what YAML text to put there, the message.
def _powers(form: str, between: str) -> str:
    """Keys of which each holds the one before ten times."""
    tenfold = [between.join([f"${{extra.a{i}}}"] * 10) for i in range(8)]
    values = [form.format(f"'{text}'" if between else text) for text in tenfold]
    return "{a0: abcdefghij, " + ", ".join(f"a{i + 1}: {v}" for i, v in enumerate(values)) + "}"


HOSTILE = [
    # Resolvers, where there is a rule and where there is none.
    ("task", f'"${{oc.create:{{{CALL}}}}}"', "task: of interpolations only"),
    ("optim.betas", f'"${{oc.create:[{{{CALL}}}]}}"', "optim.betas: of interpolations only"),
    ("task.picture_period", '"${oc.decode:12}"', "task.picture_period: of interpolations only"),
    ("task", "\"${oc.decode:'{_target_: os.system, command: touch ran}'}\"", "task: of interp"),
    ("train.output_dir", "/x/${oc.env:HOME}", "train.output_dir: of interpolations only"),
    ("train.output_dir", "${oc.env:HOME}", "train.output_dir: of interpolations only"),
    ("data.train", "['${oc.env:PATH,/x}']", "data.train.0: of interpolations only"),
    ("train.seed", "'${oc.select:train.log_period,3}'", "train.seed: of interpolations only"),
    ("model.depth", "'${oc.deprecated:model.num_heads}'", "model.depth: of interpolations only"),
    ("data.mean", "'${oc.dict.values:train.dist}'", "data.mean: of interpolations only"),
    ("train.seed", "'${hydra:job.num}'", "train.seed: of interpolations only"),
    # References that are put together, escaped, relative or broken.
    ("train.output_dir", "'${model.${train.seed}}'", "train.output_dir: of interpolations only"),
    ("train.output_dir", "'${${data.mode}:x}'", "train.output_dir: of interpolations only"),
    ("train.output_dir", r"'\${oc.env:HOME}'", "train.output_dir: of interpolations only"),
    ("train.output_dir", r"'\${data.mode}'", "train.output_dir: of interpolations only"),
    ("train.output_dir", r"'\\${data.mode}'", "train.output_dir: of interpolations only"),
    ("train.seed", "'${.log_period}'", "train.seed: of interpolations only"),
    ("train.seed", "'${train[log_period]}'", "train.seed: of interpolations only"),
    ("train.seed", "'${ train.log_period }'", "train.seed: of interpolations only"),
    ("train.output_dir", "'${data.mode'", "train.output_dir: of interpolations only"),
    ("train.output_dir", '"${oc.env:\\x48OME}"', "train.output_dir: of interpolations only"),
    ("extra", "{train: [$], test: ['{oc.env:HOME}'], mode: '${extra.train.0}${extra.test.0}'}",
     "extra.mode comes to '${oc.env:HOME}', which would be resolved again"),
    # Targets that are no texts, hidden or reached through references.
    ("task.picture_period", f"{{{SYSTEM}}}", "task.picture_period._target_ 'os.system' is not"),
    ("train.seed", f"{{{SYSTEM}}}", "train.seed._target_ 'os.system' is not"),
    ("data.mean", f"[{{{SYSTEM}}}]", "data.mean.0._target_ 'os.system' is not"),
    ("task._target_", f"{{{SYSTEM}}}", "task._target_ must name a class or a function"),
    ("extra", "{mode: os.system, max_bad_share: {_target_: '${extra.mode}', command: touch ran}}",
     "extra.max_bad_share._target_ 'os.system' is not"),
    ("extra", "{mode: os, std: system, mean: {_target_: '${extra.mode}.${extra.std}'}}",
     "extra.mean._target_ 'os.system' is not"),
    ("task._target_", "[os.system]", "task._target_ must name a class or a function"),
    ("task._target_", "null", "task._target_ must name a class or a function"),
    ("optim._target_", "oneflow.optim.SGD", "optim._target_ 'oneflow.optim.SGD' is not among"),
    ("model._target_", "libai.models.build.build_model", "is not among what a config may call"),
    ("model._target_", "projects.MAE.modeling.archs.nearest", "is not among"),
    ("model._target_", "projects.MAE.modeling.archs._arch", "is not among"),
    ("model._target_", "projects.MAE.modeling.archs.Path", "does not exist"),
    # Tags, documents and keys that plain YAML has, and configs have not.
    ("task", "!!python/object/apply:os.system ['touch ran']", "tags such as"),
    ("task", "!!python/object/new:tuple [[1]]", "tags such as"),
    ("task", "!!python/name:os.system ''", "tags such as"),
    ("train.seed", "!!int '3'", "tags such as"),
    ("train.seed", "!own 3", "tags such as"),
    ("train.seed", "! '3'", "tags such as"),
    ("data.mean", "&a [0.5]", "anchors and aliases are not read"),
    ("extra", "{mean: &a [0.5], std: *a}", "anchors and aliases are not read"),
    ("extra", "{<<: {mode: L}}", "a key must be a name"),
    ("extra", "{mode: L, mode: RGB}", "the key 'mode' is there twice"),
    ("extra", "{true: 1}", "a key must be a name"),
    ("extra", "{? [a] : 1}", "a key must be a name"),
    ("extra", "{'a.b': 1}", "a key must be a name"),
    ("extra", "{}\n--- {}", "not plain YAML"),
    # Too much of it.
    ("data.mean", "[" * 5000, "more than 20 levels deep"),
    ("data.mean", "{a: " * 30 + "1" + "}" * 30, "more than 20 levels deep"),
    ("train.output_dir", "a" * 5000, "a value of more than 4096 characters"),
    ("train.seed", "9" * 5000, "a value of more than 4096 characters"),
    ("data.mean", "[" + "0," * 200_000 + "0]", "larger than 256 KiB"),
    ("extra", _powers("'{}'", ""), "too large with what is referred to"),
    ("extra", _powers("[{}]", "','"), "too large with what is referred to"),
    ("extra", "{a: '${extra.b}', b: '${extra.a}'}", "extra.b -> extra.a -> extra.b do not end"),
    ("data.mean", "'${data.mean}'", "data.mean -> data.mean do not end"),
    ("data.mean", "['${data}']", "do not end"),
    ("extra", "{a0: 1, " + ", ".join(f"a{i + 1}: '${{extra.a{i}}}'" for i in range(50)) + "}",
     "do not end"),
    ("data.mean", "'${data.average}'", "data.mean refers to data.average, which is not there"),
    # What no program can print or hand to the system.
    ("train.output_dir", '"a\\0b"', "train.output_dir holds a control character"),
    ("train.output_dir", '"\\e[2J"', "train.output_dir holds a control character"),
    ("train.output_dir", '"\\ud800"', "train.output_dir holds a control character"),
    ("train.seed", "'???'", "train.seed has no value"),
]  # fmt: skip


@pytest.fixture(scope="module")
def plain():
    return lazy_config.dump(lazy_config.load(DIGITS))


@pytest.mark.parametrize("place, text, message", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_yaml_is_refused(place, text, message, plain, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "config.yaml"
    path.write_text(_put(plain, place, text))
    with pytest.raises(UserError) as caught:
        resolve(str(path), [])
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"config file {path}: ")
    assert entry._report(caught.value) == 2
    assert capsys.readouterr().err.count("error: ") == 1
    assert list(tmp_path.iterdir()) == [path]


def _put(plain: str, place: str, text: str) -> str:
    content = yaml.safe_load(plain)
    *parents, name = place.split(".")
    node = content
    for parent in parents:
        node = node[parent]
    node[name] = "HERE"
    return yaml.safe_dump(content, sort_keys=False, width=10**6).replace("HERE", text)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"train: \x00", b"train: \xed\xa0\x80"])
def test_what_is_no_text(content, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"config file {path}: not plain YAML"):
        lazy_config.load(str(path))


@pytest.mark.parametrize(
    "assignment",
    [
        "train.output_dir=${oc.env:HOME}",
        "model.img_size=${oc.decode:32}",
        "data.train=[${oc.env:HOME}]",
        "finetune.path=/x/${hydra:a}",
        "model.depth=${oc.create:{_target_:os.system}}",
    ],
)
def test_overrides_hold_references_alone(assignment):
    key = assignment.partition("=")[0]
    with pytest.raises(ConfigError, match=f"{key}.*: of interpolations only"):
        resolve("projects/MAE/configs/mae_digits_finetune.py", [assignment])


def test_an_override_may_refer_to_a_key():
    assert resolve(DIGITS, ["train.log_period=${train.seed}", "train.seed=7"]).train.log_period == 7


def test_an_override_may_not_call(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = lazy_config.load(str(Path(lazy_config.__file__).parents[2] / DIGITS))
    lazy_config.override(cfg, ["model.depth={_target_:os.system,command:'touch ran'}"])
    with pytest.raises(ConfigError, match="model.depth._target_ 'os.system' is not among"):
        lazy_config.instantiate(cfg.model)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_calls_what_a_file_may_call(recipe, tmp_path):
    """Its dump is read again and is the same."""
    cfg = lazy_config.load(str(recipe))
    path = tmp_path / "config.yaml"
    path.write_text(lazy_config.dump(cfg))
    assert lazy_config.dump(lazy_config.load(str(path))) == lazy_config.dump(cfg)


def test_a_package_of_ones_own_is_asked_for(plain, tmp_path, monkeypatch):
    monkeypatch.setattr(targets, "_added", [])
    monkeypatch.syspath_prepend(str(tmp_path))
    package = tmp_path / "surely_mine"
    package.mkdir()
    package.joinpath("__init__.py").touch()
    package.joinpath("views.py").write_text(
        f"from os import system\nopen({str(tmp_path / 'imported')!r}, 'w')\n"
        "class Blur:\n    def __init__(self, radius): self.radius = radius\n"
    )
    path = tmp_path / "config.yaml"
    path.write_text(_put(plain, "task", "{_target_: surely_mine.views.Blur, radius: 3}"))
    with pytest.raises(ConfigError, match="added by --allow-targets PACKAGE"):
        lazy_config.load(str(path))
    assert not (tmp_path / "imported").exists()

    monkeypatch.setattr("sys.argv", ["x", "--config-file", "c", "--allow-targets", "surely_mine"])
    entry.parse_args("")
    assert lazy_config.instantiate(lazy_config.load(str(path)).task).radius == 3
    path.write_text(_put(plain, "task", "{_target_: surely_mine.views.system, command: id}"))
    with pytest.raises(ConfigError, match="surely_mine.views.system' is not among"):
        lazy_config.load(str(path))


@pytest.mark.parametrize("package", ["surely_absent", "os.system", ""])
def test_a_package_that_is_none(package, monkeypatch):
    monkeypatch.setattr("sys.argv", ["x", "--config-file", "c", "--allow-targets", package])
    with pytest.raises(ConfigError, match=f"--allow-targets {package}: there is no such package"):
        entry.parse_args("")
