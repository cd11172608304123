"""The tables of tools/benchmarks."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "tools/benchmarks"
sys.path.append(str(BENCHMARKS))

from markers import Place  # noqa: E402
from protocols import RECIPES  # noqa: E402
from steps import AUTOCAST, FLOAT32, PRODUCTS_ONLY, Measured, as_markdown  # noqa: E402
from steps_side import flops  # noqa: E402


def test_a_table_of_steps_has_medians_ratios_of_pairs_memory_and_shares():
    times = {FLOAT32: [2.0, 1.0, 4.0], "eager": [1.0, 0.9, 8.0]}
    row = Measured(
        "pretrain", "tiny", times, {FLOAT32: 0.5, "eager": 0.75}, flops("pretrain", "tiny")
    )
    lines = as_markdown("float32", [row]).splitlines()
    assert lines[0].startswith("| float32 | PyTorch, s | eager, s |")
    assert lines[2] == (
        "| tiny, batch 64, pre-training | 2.00 | 1.00 (0.90) | 0.5, 0.8 | 50, 100 |"
    )

    times = {PRODUCTS_ONLY: [0.4], AUTOCAST: [0.2], "eager-bf16": [0.1]}
    row = Measured("finetune", "cifar", times, dict.fromkeys(times, 1.0), 1e12)
    line = as_markdown("bfloat16 products", [row]).splitlines()[2]
    assert "fine-tuning | 0.400 (2.00) | 0.200 | 0.100 (0.50) |" in line


def test_flops_of_a_step_of_vit_b():
    """12 layers of 24 N D^2 + 4 N^2 D, the patch embedding, twice more for the gradients."""
    tokens, dim = 197, 768
    layers = 12 * (24 * tokens * dim**2 + 4 * tokens**2 * dim)
    assert flops("finetune", "base") == 3 * 8 * (layers + 2 * 196 * 768 * dim)


def test_only_the_text_between_the_markers_changes(tmp_path):
    page = tmp_path / "page.md"
    before = "a\n<!-- x.py -->\n1\n<!-- end -->\nb\n<!-- y.py -->\n2\n<!-- end -->\n"
    page.write_text(before)
    Place(page, "y.py").write("\\1\n")
    assert page.read_text() == before.replace("2", "\\1")
    with pytest.raises(ValueError, match=r"page\.md has no place for a table: <!-- z"):
        Place(page, "z.py")


@pytest.mark.parametrize(
    "program, page",
    [
        ("steps.py", "README.md"),
        *((f"protocols.py {recipe}", "projects/MAE/README.md") for recipe in RECIPES),
    ],
)
def test_a_page_has_a_place_for_each_table(program, page, tmp_path):
    copy = tmp_path / "page.md"
    copy.write_text((BENCHMARKS.parents[1] / page).read_text())
    Place(copy, f"tools/benchmarks/{program}").write("the table\n")
    assert copy.read_text().count(f"{program} -->\nthe table\n<!-- end -->") == 1
