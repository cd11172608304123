"""Values of options that no tool can use end with one message, before anything is read."""

from __future__ import annotations

import sys
from importlib import import_module

import pytest

from projects.MAE.option_types import pair

WHOLE, PAIR = "a whole number of at least {}, not {!r}", "two whole numbers of at least 1"
WRONG = [
    ("visualize", "w x --seed=-1", WHOLE.format(0, "-1")),
    ("visualize", "w x --seed=1.5", WHOLE.format(0, "1.5")),
    ("visualize", "w x --samples=0", WHOLE.format(1, "0")),
    ("visualize", "w x --pixels=0", WHOLE.format(1, "0")),
    ("visualize", "w x --mask-ratio=1", "at least 0 and below 1, not '1'"),
    ("visualize", "w x --ratios=0.5,nan", "at least 0 and below 1, not 'nan'"),
    ("visualize", "w x --patches=5-3", "argument --patches"),
    ("knn", "mae_digits --neighbours 0", WHOLE.format(1, "0")),
    ("plan", "--devices=8 --classes=0", WHOLE.format(1, "0")),
    ("plan", "--devices=0", WHOLE.format(1, "0")),
    ("plan", "--devices=8 --img-size 224 -1", WHOLE.format(1, "-1")),
    ("plan", "--devices=8 --tflops=0", "a number above 0, not '0'"),
    ("plan", "--devices=8 --mask-ratio=1.5", "at least 0 and below 1, not '1.5'"),
    ("features", "w x --processes=0", WHOLE.format(1, "0")),
    ("predict", "w x --top=0", WHOLE.format(1, "0")),
    *((tool, f"a b --encoder-heads={number}", WHOLE.format(1, number))
      for tool in ("visualize", "features", "predict", "convert", "export_onnx")
      for number in ("0", "-3", "x")),
    *((tool, f"a b --decoder-heads={number}", WHOLE.format(1, number))
      for tool in ("visualize", "convert", "export_onnx") for number in ("0", "-3")),
    *((tool, f"a b --grid={grid}", PAIR)
      for tool in ("visualize", "features", "predict", "convert", "export_onnx")
      for grid in ("4x", "0x4", "x4", "4x4x4", "-4", "")),
    *((tool, "a b --size=0", PAIR) for tool in ("visualize", "features", "predict")),
]  # fmt: skip


@pytest.mark.parametrize("tool, arguments, message", WRONG)
def test_values_that_no_tool_can_use(tool, arguments, message, monkeypatch, capsys):
    program = import_module(f"tools.{tool}")
    monkeypatch.setattr(sys, "argv", [tool, *arguments.split(" ")])
    with pytest.raises(SystemExit) as caught:
        program.main()
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_one_number_is_that_of_both_sides():
    assert (pair("4"), pair("4x8")) == ((4, 4), (4, 8))
