"""tools/check_gpu.py to its end, on a device whose kernels compute nothing: every comparison of
numbers fails there and everything else passes."""

from __future__ import annotations

import json
import re

import pytest

pytestmark = pytest.mark.slow  # real launches


@pytest.fixture(scope="module")
def report(fake_gpus, tmp_path_factory):
    path = tmp_path_factory.mktemp("check") / "check_gpu.json"
    gpus = fake_gpus(count=2, name="No Such Card", capability=(8, 6))
    out = gpus.python("tests/fakecuda/check_small.py", "--output", path, status=1, timeout=900)
    return out, json.loads(path.read_text())


def test_what_it_compares_fails(report):
    _, result = report
    rows = {row["name"]: row for row in result["checks"]}
    compared = {name for name, row in rows.items() if "error" in row}
    assert not any(rows[name]["passed"] for name in compared)
    assert {"matmul (float32)", "matmul (float16)", "layer_norm (float16)"} <= compared
    assert {"AdamW, three steps (float32)", "loss curve, GPU and CPU"} <= compared
    assert {"evaluation, GPU and CPU", "loss curve, mixed precision and CPU"} <= compared
    assert "loss curve, 2 x 1 x 1 GPUs, ZeRO 3" in compared


def test_what_runs_passes(report):
    out, result = report
    rows = {row["name"]: row for row in result["checks"] if "error" not in row}
    # Memory is real, but for the kernels' own.
    assert [name for name, row in rows.items() if not row["passed"]] == []
    layouts = {name for name in rows if re.match(r"\d x \d x \d GPUs", name)}
    assert layouts == {
        "2 x 1 x 1 GPUs",
        *(f"2 x 1 x 1 GPUs, ZeRO {stage}" for stage in (1, 2, 3)),
        "1 x 2 x 1 GPUs",
        "1 x 1 x 2 GPUs",
    }
    assert {"20 steps on CPU", "20 steps on GPU", "20 steps with mixed precision"} <= rows.keys()
    assert rows["ViT-B/16, speed"]["images_per_second"] > 0
    assert "No Such Card" in rows["device"]["detail"]
    assert (result["device"]["capability"], result["device"]["count"]) == ([8, 6], 2)
    assert "Traceback" not in out and f"of {len(result['checks'])} checks passed" in out
