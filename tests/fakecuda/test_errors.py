"""What a user of GPUs meets: each fault is one message and status 2, and no process stays."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fakecuda.gpus import NO_DRIVER_NEW_ENOUGH

pytestmark = pytest.mark.slow
CONFIG = "projects/MAE/configs/mae_digits.py"
OPTIONS = (
    "model.depth=1",
    "train.train_iter=4",
    "train.warmup_iter=1",
    "train.log_period=1",
    "dataloader.train.num_workers=1",
)


@pytest.fixture
def options(digits, tmp_path):
    roots = f"data.train=[{digits / 'train'}]", f"data.test=[{digits / 'test'}]"
    return [*OPTIONS, *roots, f"train.output_dir={tmp_path / 'out'}"]


@pytest.fixture
def gpu_machine(tmp_path):
    """Files of a machine with a GPU and an old driver."""
    root = tmp_path / "root"
    for path, text in {
        "sys/bus/pci/devices/0000:01:00.0/vendor": "0x10de\n",
        "sys/bus/pci/devices/0000:01:00.0/class": "0x030200\n",
        "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  418.87.00\n",
    }.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


def processes_of(folder) -> list[str]:
    """Command lines that name ``folder``."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = file.read_bytes()
        except OSError:
            continue
        if str(folder).encode() in line:
            found.append(line.decode(errors="replace"))
    return found


def message(output: str, tmp_path) -> str:
    """The only error in ``output``, at its end."""
    assert "Traceback" not in output and "stack trace" not in output and "Aborted" not in output
    assert output.count("error: ") == 1
    assert processes_of(tmp_path) == []
    return output[output.index("error: ") :]


def losses(tmp_path, name) -> list[float]:
    lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
    return [line["total_loss"] for line in map(json.loads, lines) if "total_loss" in line]


def test_a_gpu_that_cannot_be_used(fake_gpus, options, tmp_path, gpu_machine, monkeypatch):
    monkeypatch.delenv("GLOG_minloglevel")  # that of this machine, which has no GPU
    output = fake_gpus(error=NO_DRIVER_NEW_ENOUGH).python(
        *("-m", "libai_ext.launch", "--nproc-per-node", 2, "tests/fakecuda/train_elsewhere.py"),
        *("--config-file", CONFIG, *options),
        env=dict(OTHER_ROOT=str(gpu_machine)),
        status=2,
    )
    text = message(output, tmp_path)
    words = "CUDA driver version is insufficient for CUDA runtime version"
    assert f"that OneFlow cannot use: {words}\n" in text
    assert "driver found: 418.87.00\n" in text and "driver needed: 450.80.02 or newer" in text


def test_a_capability_without_code(fake_gpus, options, tmp_path):
    gpus = fake_gpus(count=2, capability=(9, 0), name="Odd GPU")
    text = message(gpus.train(CONFIG, 2, *options, status=2), tmp_path)
    assert "(Odd GPU) has compute capability 9.0; OneFlow 0.9.0 runs on 6.0 to 8.9: " in text


def test_more_processes_than_gpus(fake_gpus, options, tmp_path):
    text = message(fake_gpus(count=1).train(CONFIG, 2, *options, status=2), tmp_path)
    assert text.startswith("error: 2 processes on ") and "but 1 GPU;" in text


# The first allocations of the engine, an eager step, a training graph, that of an evaluation.
@pytest.mark.parametrize(
    "gib, processes, given, advice",
    [
        (0.002, 1, ["graph.enabled=False"], "graph.enabled=true train.amp.enabled=true\n"),
        (0.06, 1, ["graph.enabled=False"], "graph.enabled=true train.amp.enabled=true\n"),
        (0.05, 2, [], "  - train.activation_checkpoint.enabled=true\n"),
        (
            0.1,
            1,
            ["--fast-dev-run", "train.test_micro_batch_size=512"],
            "in an evaluation, train.test_micro_batch_size below 512\n",
        ),
    ],
)
def test_out_of_memory(fake_gpus, options, tmp_path, gib, processes, given, advice):
    gpus = fake_gpus(count=processes, memory_gib=gib)
    text = message(gpus.train(CONFIG, processes, *options, *given, status=2), tmp_path)
    assert text.startswith("error: out of GPU memory (OneFlow does not say how much was asked for)")
    assert f"{gib:.2f} of {gib:.2f} GiB free at the start" in text
    assert "train.train_micro_batch_size=32 with train.num_accumulation_steps=2 (now 64" in text
    assert advice in text
    assert "tools/plan.py" in text and "another process" not in text


def test_a_gpu_in_use_is_named_at_once_and_when_memory_runs_out(fake_gpus, options, tmp_path):
    gpus = fake_gpus(memory_gib=80, used_gib=79.95)
    output = gpus.train(CONFIG, 1, *options, status=2)
    text = message(output, tmp_path)
    warning = "(Fake CUDA device), 0.05 of 80.00 GiB free at the start: nvidia-smi lists"
    assert warning in output[: output.index("error: ")] and warning in text


def test_dry_run_reports_the_memory_of_the_fullest_gpu(fake_gpus, options):
    gpus = fake_gpus(count=2, used_gib=2)
    output = gpus.train(CONFIG, 2, *options, "--dry-run")
    peak = max(gpus.report(rank).peak[rank] for rank in (0, 1)) / 2**30 + 2
    assert peak > 2.05
    assert f"memory {peak:.2f} GiB of the GPU's 80.0, on rank " in output


def test_the_cpu_where_there_are_gpus(fake_gpus, launch, options, tmp_path):
    gpus = fake_gpus(count=1)
    output = gpus.train(CONFIG, 1, *options, "train.device=cpu")
    assert "device           cpu (train.device=cpu)\n" in output
    report = gpus.report()
    assert (report.allocations, report.kernels, report.waits) == ({}, {}, {})
    without = f"train.output_dir={tmp_path / 'without'}"
    output = launch.train(CONFIG, 1, *options, without)
    assert "device           cpu (no GPU in this machine)\n" in output
    assert losses(tmp_path, "out") == losses(tmp_path, "without")
    assert len(losses(tmp_path, "out")) == 4
