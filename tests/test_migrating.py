"""Keys and options of other programs: each one typed is answered by its name here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from libai_ext.config import lazy_config
from libai_ext.config.names import from_elsewhere
from libai_ext.engine import cli as entry
from libai_ext.errors import ConfigError
from projects.MAE.former_names import NAMES

PAGE = Path("projects/MAE/MIGRATING.md").read_text()
RECIPES = ("mae_pretraining", "mae_finetune", "mae_linprobe")
PAIRS = [(old, new) for names in NAMES.values() for old, new in names.items()]


@pytest.fixture(scope="module")
def recipes():
    return [lazy_config.load(f"projects/MAE/configs/{name}.py") for name in RECIPES]


def answer(cfg, key: str) -> str:
    try:
        lazy_config.override(cfg.copy(), [f"{key}=surely-not"])
    except ConfigError as error:
        return str(error)
    return ""


def tells(message: str, new: str) -> bool:
    """Whether it has the key and the note, or the sentence."""
    return all(part in message for part in new.split(", "))


@pytest.mark.parametrize("recipe", range(len(RECIPES)))
def test_each_old_key_gets_the_new_one_named(recipe, recipes):
    cfg = recipes[recipe]
    answers = {old: answer(cfg, old) for old, _ in PAIRS}
    silent = [(old, new) for old, new in PAIRS if not tells(answers[old], new)]
    # Two programs have it, and one means a key that this recipe has.
    assert silent == ([("momentum", "optim.betas")] if "momentum" in cfg.optim else [])


def test_a_key_that_only_other_recipes_have(recipes):
    cfg = next(cfg for cfg in recipes if "momentum" not in cfg.optim)
    assert answer(cfg, "optim.momentum").endswith(
        ": a name of timm, the same here, but not in this config; a name of MAE-code, here "
        "'optim.betas'"
    )


def test_each_old_option_gets_the_new_one_named(monkeypatch):
    own = {"resume"}  # an option here too
    for old, new in PAIRS:
        if old in own or "." in old:
            continue
        monkeypatch.setattr("sys.argv", ["x", "--config-file", "c", f"--{old}", "1"])
        with pytest.raises(ConfigError) as caught:
            entry.parse_args("")
        assert tells(str(caught.value), new), old
        assert tells(from_elsewhere(old.replace("_", "-")), new)


def test_each_new_name_exists(recipes, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["x", "--help"])
    with pytest.raises(SystemExit):
        entry.parse_args("")
    known = {key for cfg in recipes for key in lazy_config.keys_of(cfg)}
    known |= set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    keys = {new.partition(",")[0] for _, new in PAIRS if not new.startswith("without")}
    assert len(keys) > 50 and keys - known == set()


def test_the_page_is_the_table():
    rows = re.findall(r"^\| `([\w.]+)` \| (.*) \|$", PAGE, re.MULTILINE)
    assert [(old, new.replace("`", "")) for old, new in rows] == PAIRS


def test_commands_name_recipes_that_exist():
    named = set(re.findall(r"mae_\w+\.py", PAGE))
    assert len(named) == 9
    assert all(Path("projects/MAE/configs", name).is_file() for name in named)


def test_places_of_transforms(recipes):
    """Their numbers are part of keys of the table."""
    steps = recipes[1].dataloader.train.dataset.transform.transforms
    names = [steps[place]._target_.__name__ for place in (0, 1, 2, 4)]
    assert names == ["RandomResizedCrop", "RandomHorizontalFlip", "RandAugment", "RandomErasing"]
