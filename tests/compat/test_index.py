"""libai_ext/compat/README.md names what is there."""

from __future__ import annotations

import re
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "libai_ext/compat"
PAGE = (FOLDER / "README.md").read_text()
# What the code takes from OneFlow and LiBai under a private name.
PRIVATE = re.compile(r"\b_oneflow_internal\.|\boneflow\.(framework|core)\.|\bdist\._")


def rows():
    for line in PAGE.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 6 and "](" in cells[2]:
            yield cells


def linked(cell: str) -> Path:
    return FOLDER / re.search(r"\]\((.+?)\)", cell)[1]


def test_each_row_names_what_is_there():
    assert len(list(rows())) > 40
    for symptom, whose, file, private, retire, test in rows():
        assert symptom and retire and whose in ("OneFlow", "LiBai", "both"), symptom
        text = linked(file).read_text()
        assert [name for name in re.findall(r"`(.+?)`", private) if name not in text] == [], symptom
        assert f"def {re.search('`(.+)`', test)[1]}(" in linked(test).read_text(), test


def test_each_repair_and_each_private_name_has_a_row():
    named = {linked(file).resolve() for _, _, file, *_ in rows()}
    applied = {path for path in FOLDER.glob("*.py") if "\ndef apply()" in path.read_text()}
    assert len(applied) > 5
    assert applied - {FOLDER / "repairs.py"} <= named
    users = {path for path in FOLDER.parent.rglob("*.py") if PRIVATE.search(path.read_text())}
    assert len(users) > 5
    assert sorted(users - named) == []
