"""Names of files and classes as they are shown."""

from __future__ import annotations

import os

import pytest
from omegaconf import OmegaConf

from libai_ext.config.lazy_config import dump
from libai_ext.errors import ConfigError, DataError
from libai_ext.text import csv_cell, masked, printable, printable_lines

SHOWN = {
    "\x1b[2Jcat": r"\x1b[2Jcat",
    "two\nlines\r\t": r"two\nlines\r\t",
    "\u2028\u202egnp.jpg\x9b\x00": r"\u2028\u202egnp.jpg\x9b\x00",
    os.fsdecode(b"caf\xe9"): r"caf\xe9",
    "\ud800": r"\ud800",
    "café 漢字\u3000🙂 C:\\n": "café 漢字\u3000🙂 C:\\n",
}


@pytest.mark.parametrize("name", SHOWN)
def test_nothing_but_text_is_shown(name):
    assert printable(name) == SHOWN[name]
    assert str(DataError(f"cannot read {name}")) == f"cannot read {SHOWN[name]}"


def test_lines_stay_lines():
    assert printable_lines("run\n  output \x1b\n") == "run\n  output \\x1b\n"


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@x", " =1", "\t=1", "\r-1", "＝1"])
def test_no_cell_is_a_formula(name):
    assert csv_cell(name) == f"'{printable(name)}"


@pytest.mark.parametrize("name", ["a=1", "cat/0.png", "", "3", "'=1"])
def test_other_cells_stay(name):
    assert csv_cell(name) == name


@pytest.mark.parametrize(
    "text, shown",
    [
        ("https://me:se@cret/x@host/a.tar", "https://***@host/a.tar"),
        ("https://host/a-{0..9}.tar?sig=secret%2F: gone", "https://host/a-{0..9}.tar?***: gone"),
        ("['s3://b/a.tar', 'http://m:secret@h/a?x=secret']", "['s3://b/a.tar', 'http://***@h/a?***']"),
        ("a@b.org/what? s3://bucket/a.tar, really?", "a@b.org/what? s3://bucket/a.tar, really?"),
    ],
)  # fmt: skip
def test_passwords_and_signatures_in_urls_are_hidden(text, shown):
    assert masked(text) == shown
    assert masked(shown) == shown
    assert str(ConfigError(text)) == str(DataError(text)) == shown
    assert "secret" not in dump(OmegaConf.create({"data": {"train": [text]}}))
