"""The planner's arithmetic, and the tool's output."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fakecuda.memory_table import CASES, on_page
from omegaconf import OmegaConf

from libai_ext.engine.derive import SIZES
from projects.MAE.modeling.archs import ARCHS
from projects.MAE.parallel.costs import layers_of
from projects.MAE.parallel.memory import Training, fullest
from projects.MAE.parallel.planner import Machine, evaluate, plans
from projects.MAE.run import resolve

ROOT = Path(__file__).resolve().parents[2]
BASE = layers_of(OmegaConf.create(dict(ARCHS["mae_vit_base_patch16"], in_chans=3, mask_ratio=0.75)))
MACHINE = Machine(8, 1e12, 8, 1e11, 1e10, 3e13)
NUMBERS = sum(layer.parameters for layer in BASE)


def plan(*sizes, machine=MACHINE, **training):
    return evaluate(BASE, machine, Training(**dict(dict(batch=256), **training)), *sizes)


def test_states_of_one_process():
    memory = plan(1, 1, 1).memory
    assert memory[:3] == (4 * NUMBERS, 0, 8 * NUMBERS)
    assert plan(1, 1, 1, accumulation=2).memory[:3] == (4 * NUMBERS, 4 * NUMBERS, 8 * NUMBERS)
    mixed = plan(1, 1, 1, accumulation=2, amp=True).memory
    assert mixed[:3] == (6 * NUMBERS, 2 * NUMBERS, 8 * NUMBERS)


def test_zero_divides_by_the_data_parallel_size():
    """Whole weights within the step: all, or those of the largest layer."""
    largest = max(layer.parameters for layer in BASE)
    for stage, whole in ((1, NUMBERS), (2, NUMBERS), (3, largest)):
        memory = plan(8, 1, 1, zero=stage).memory
        assert memory[:3] == (4 * NUMBERS / 8 + 4 * whole, 0, NUMBERS)
        # Gradients take the place of activations.
        assert memory.activations == plan(8, 1, 1).memory.activations - 4 * NUMBERS


def test_zero_divides_the_rest_by_the_tensor_parallel_size():
    """What tensor parallelism leaves whole is not divided by the data-parallel size."""
    split = sum(layer.split_parameters for layer in BASE)
    assert plan(4, 2, 1, zero=1).memory.optimizer == 8 * (split / 8 + (NUMBERS - split) / 2)


def test_gradients_beside_the_kernels():
    """By hand, in ``gradients`` and ``activations``."""

    def more(accumulation=1, amp=False):
        """Bytes more than on one device, with as many samples a device and micro-batch."""
        one, two = (
            plan(n, 1, 1, batch=32 * n * accumulation, accumulation=accumulation, amp=amp).memory
            for n in (1, 2)
        )
        return two.gradients - one.gradients, two.activations - one.activations

    assert more() == (4 * NUMBERS, 4 * NUMBERS)
    assert more(amp=True) == (2 * NUMBERS, 4 * NUMBERS)
    assert more(2) == (4 * NUMBERS, 8 * NUMBERS)
    assert more(2, amp=True) == (2 * NUMBERS, 4 * NUMBERS)
    assert plan(4, 2, 1).memory.gradients == plan(8, 1, 1, zero=1).memory.gradients == 0


def test_tensor_parallelism_divides_matrices_only():
    split = sum(layer.split_parameters for layer in BASE)
    assert plan(1, 4, 1).memory.parameters == 4 * (split / 4 + NUMBERS - split)


def test_data_parallelism_divides_activations_only():
    one, eight = plan(1, 1, 1).memory, plan(8, 1, 1).memory
    assert (eight.parameters, eight.optimizer) == (one.parameters, one.optimizer)
    gradients = 4 * NUMBERS  # on one device they take the place of activations
    assert eight.activations - gradients == one.activations / 8


def test_what_a_layer_keeps():
    """By hand, of a layer of 50 tokens of width 768, 12 heads, for 64 images."""
    tokens, kept = 64 * 50 * 768, 64 * (19 * 50 * 768 + 12 * 50**2)
    for training, expected in (
        (Training(64), 4 * kept),
        (Training(64, amp=True), 2 * kept + 2 * BASE[1].parameters),
        (Training(64, checkpointing=True), 4 * (tokens + kept + 9 * tokens)),
    ):
        assert fullest([BASE[1]], training, 1, 1, [0]).activations == expected


def test_parameters_without_activations():
    """One image: the gradients of all layers take most at the end of the backward pass."""
    assert plan(1, 1, 1, batch=1).memory.activations >= 4 * NUMBERS


def test_a_pipeline_holds_several_micro_batches():
    """Stages of equal layers: the first of p holds p micro-batches, no more than there are."""
    layers = BASE[1:4]

    def first(stages, micro_batches):
        training = Training(64 * micro_batches, accumulation=micro_batches)
        return fullest(layers[:stages], training, 1, 1, range(stages)).activations

    kept = 4 * 64 * (19 * 50 * 768 + 12 * 50**2)
    assert first(3, 4) - first(2, 4) == kept
    assert first(3, 2) == first(2, 2) == first(2, 4)


def test_bubble_and_bytes_sent():
    found = plan(2, 2, 2, accumulation=4)
    assert found.bubble == 1 / 5
    assert found.sent["pipeline"] == 2 * 4 * 128 * 197 * 512  # cut within the decoder
    assert plan(8, 1, 1).sent == {"data": 2 * 7 / 8 * 4 * NUMBERS, "tensor": 0, "pipeline": 0}


def test_checkpointing_and_mixed_precision_save_activations():
    gradients, copies = 4 * NUMBERS, 2 * NUMBERS
    whole = plan(8, 1, 1).memory.activations - gradients
    image = 3 * 224**2 * 32 * 4  # in 4 bytes
    mixed = plan(8, 1, 1, amp=True).memory.activations - gradients
    assert mixed - copies - image == (whole - image) / 2
    assert plan(8, 1, 1, checkpointing=True).memory.activations - gradients < whole / 4


def test_stages_follow_the_memory_where_it_is_short():
    roomy = plan(1, 1, 2, batch=8)
    assert not roomy.by_hand
    tight = plan(1, 1, 2, batch=8, machine=MACHINE._replace(memory=sum(roomy.memory) - 1e8))
    assert tight.by_hand and tight.stages != roomy.stages
    assert sum(tight.memory) < sum(roomy.memory) and tight.seconds > roomy.seconds
    assert plan(1, 1, 2, batch=8, machine=MACHINE._replace(memory=1e8)) is None


def test_only_layouts_that_training_takes():
    found = plans(BASE, MACHINE._replace(devices=24), Training(96))
    sizes = {(p.data, p.tensor, p.pipeline) for p in found}
    # 16 decoder heads do not divide by 3 or 6, nor do tensor groups span nodes.
    assert {tensor for _, tensor, _ in sizes} == {1, 2, 4}
    assert {(24, 1, 1), (2, 4, 3), (1, 4, 6)} <= sizes
    divided = plans(BASE, MACHINE._replace(devices=24), Training(96, zero=1))
    assert {(p.data, p.tensor, p.pipeline) for p in divided} == {x for x in sizes if x[0] > 1}
    assert [p.seconds for p in found] == sorted(p.seconds for p in found)


@pytest.mark.parametrize("devices", [1, 8, 4096])
def test_tool_prints_lines_that_training_takes(launch, monkeypatch, devices):
    out = launch.python(ROOT / "tools/plan.py", "--devices", devices, "--batch", 16 * devices)
    rows = re.findall(r"^\| (\d+) x (\d+) x (\d+) \|", out, re.M)
    assert rows and all(int(d) * int(t) * int(p) == devices for d, t, p in rows)
    monkeypatch.setenv("WORLD_SIZE", str(devices))
    lines = out.split("processes:\n")[1].split()
    layout = resolve("projects/MAE/configs/mae_pretraining.py", lines).train.dist
    assert tuple(str(layout[name]) for name in SIZES) == rows[0]


def test_zero_needs_data_parallel_ranks(launch):
    out = launch.python(ROOT / "tools/plan.py", "--devices", "1", "--zero", "3", status=2)
    assert "no layout of 1 devices" in out and "no --zero" in out


def test_an_image_of_broken_patches(launch):
    out = launch.python(
        ROOT / "tools/plan.py", "--devices", "8", "--img-size", "225", "225", status=2
    )
    assert "error: model.img_size 225x225 " in out and "Traceback" not in out


def test_nothing_fits(launch):
    out = launch.python(ROOT / "tools/plan.py", "--devices", "8", "--memory", "1", status=2)
    assert "no layout of 8 devices divides batch 4096" in out and "fits into 1 GiB" in out


def test_page_has_the_numbers_of_the_tool(launch):
    page = (ROOT / "projects/MAE/PARALLEL.md").read_text()
    command = re.search(r"`.venv/bin/python (tools/plan.py[^`]*)`", page)[1].split()
    out = launch.python(*command).splitlines()
    rows = re.findall(r"^\| \d x \d x \d (?:\| [\d.%]+ ){11}\|$", page, re.M)
    assert len(rows) == 6 and set(rows) <= set(out)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_planned_memory_is_near_what_the_compiler_says(case):
    """The page's table; tests/fakecuda/test_gpu_memory.py compiles some of its cases."""
    compiled = on_page(case)
    page = (ROOT / "projects/MAE/PARALLEL.md").read_text().splitlines()
    row = next(row for row in page if row.startswith(case.start()))
    assert row.split("|")[-3:-1] == case.row(compiled).split("|")[-3:-1]
    assert abs(case.planned() / compiled - 1) < 0.15
