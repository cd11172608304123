"""What the planner says a device needs, beside OneFlow's compiler and a run."""

from __future__ import annotations

import pytest
from fakecuda.memory_table import CASES, Case, on_page
from omegaconf import OmegaConf

from projects.MAE.modeling.archs import ARCHS
from projects.MAE.parallel.costs import layers_of
from projects.MAE.parallel.memory import Training
from projects.MAE.parallel.planner import Machine, evaluate

ARCH = "mae_vit_small_patch8"
CHEAP = [
    Case("ViT-B", (1, 1, 1), 64, 1, "AMP"),
    Case("ViT-B", (1, 1, 2), 256, 4),
]


@pytest.mark.slow
@pytest.mark.parametrize("case", CHEAP, ids=str)
def test_page_has_the_compilers_figures(case):
    assert case in CASES
    assert case.compiled() == pytest.approx(on_page(case), rel=0.01)


@pytest.mark.slow
def test_peak_of_a_run(fake_gpus, digits, tmp_path):
    """Two pipeline stages, of a model with more activations than parameters."""
    gpus = fake_gpus(count=2, memory_gib=20)
    gpus.train(
        "projects/MAE/configs/mae_pretraining.py",
        2,
        f"data.train=[{digits}/train]",
        f"data.test=[{digits}/test]",
        f"model.arch={ARCH}",
        "train.global_batch_size=64",
        "train.num_accumulation_steps=4",
        "train.dist.pipeline_parallel_size=2",
        "train.train_iter=2",
        "train.warmup_iter=1",
        "task.picture_period=100",
        f"train.output_dir={tmp_path}",
    )
    model = OmegaConf.create(dict(ARCHS[ARCH], in_chans=3, mask_ratio=0.75))
    machine = Machine(2, float("inf"), 2, 1e11, 1e11, 3e13)
    planned = evaluate(layers_of(model), machine, Training(64, 4), 1, 1, 2)
    peak = max(max(gpus.report(rank).peak.values()) for rank in range(2))
    assert sum(planned.memory) == pytest.approx(peak, rel=0.1)
