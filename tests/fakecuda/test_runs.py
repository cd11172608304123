"""Real runs on the device: every op has its kernel, and no data worker touches CUDA."""

from __future__ import annotations

import pytest
from fakecuda.compile import compile_memory

pytestmark = pytest.mark.slow

PRETRAINING = "projects/MAE/configs/mae_digits.py"
FINETUNING = "projects/MAE/configs/mae_digits_finetune.py"
SMALL = ["model.depth=1", "train.global_batch_size=16"]


@pytest.mark.parametrize("config", [PRETRAINING, FINETUNING])
def test_training(fake_gpus, digits, tmp_path, config):
    gpus = fake_gpus()
    out = gpus.train(
        config,
        1,
        f"data.train=[{digits}/train]",
        f"data.test=[{digits}/test]",
        f"train.output_dir={tmp_path}",
        "train.train_iter=3",
        "train.warmup_iter=1",
        "dataloader.train.num_workers=2",
        *(["finetune.enable=False"] if config == FINETUNING else []),
        *SMALL,
    )
    assert "cuda" in out
    report = gpus.report()
    assert report.unimplemented == {}
    assert report.forked == {}
    assert report.launches("AdamUpdateGpu", "float") > 0
    assert report.launches("", "half") == 0
    assert report.calls["cublasGemmEx float"] > 0
    assert report.collectives == {}


def test_compiled_memory():
    stages = compile_memory(PRETRAINING, [*SMALL, "train.dist.pipeline_parallel_size=2"], 2)
    (whole,) = compile_memory(PRETRAINING, SMALL, 1)
    assert len(stages) == 2
    for memory in (whole, *stages):
        parts = memory.reused + memory.unreused + memory.variables
        assert parts == pytest.approx(memory.total, rel=1e-4)  # six digits are printed
    # Parameters and two moments, float32, each tensor of whole 512 bytes.
    assert 12 * 106_640 < whole.variables < 1.1 * 12 * 106_640
    assert sum(stage.variables for stage in stages) == pytest.approx(whole.variables, rel=0.01)
    assert max(stage.total for stage in stages) < whole.total
