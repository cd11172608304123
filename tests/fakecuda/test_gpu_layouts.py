"""Every task, precision and layout on devices that do not exist: each trains, draws, evaluates,
saves, and goes on from what another layout has saved.

Numbers are not looked at: there are none. tests/multiprocess has them, on CPU.
"""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

pytestmark = pytest.mark.slow  # real launches

# data x tensor x pipeline.
LAYOUTS = {
    "one": (1, 1, 1),
    "dp2tp2pp2": (2, 2, 2),
    "dp2": (2, 1, 1),
    "tp2": (1, 2, 1),
    "pp2": (1, 1, 2),
}
# Their graphs take long to compile: one task.
LARGE = "dp2tp2pp2"
SMALL = (
    "train.global_batch_size=16",
    "train.train_iter=6",
    "train.warmup_iter=1",
    "train.log_period=2",
    "train.checkpointer.period=3",
    "train.evaluation.enabled=True",
    "train.evaluation.eval_epoch=null",
    "train.evaluation.eval_period=5",
    "model.embed_dim=32",
    "model.num_heads=2",
    "dataloader.train.num_workers=1",
    "dataloader.test.num_workers=0",
)
# Two layers for two stages.
DECODER = (
    "model.depth=1",
    "model.decoder_depth=1",
    "model.decoder_embed_dim=32",
    "model.decoder_num_heads=2",
    "task.picture_period=5",
)
SCRATCH = ("finetune.enable=False", "model.depth=2")
# The numbers of steps op by op are stale, and the head's gradients often not finite.
PROBE = (*SCRATCH, "train.max_nonfinite_steps=100")
# Recipe, what makes it small, results of its evaluation.
TASKS = {
    "pretraining": ("mae_digits", DECODER, {"eval_loss"}),
    "finetuning": ("mae_digits_finetune", (*SCRATCH, "model.drop_path=0.3"), {"top1", "top5"}),
    "probe": ("mae_digits_linprobe", PROBE, {"top1", "top5"}),
}
# LARS and the batch norm of the probe have no graph form, mixed precision no other one.
KINDS = {"float32": ("pretraining", "finetuning", "probe"), "amp": ("pretraining", "finetuning")}
# With what else saves memory.
AMP = (
    "train.amp.enabled=True",
    "train.num_accumulation_steps=2",
    "train.activation_checkpoint.enabled=True",
    "optim.params.clip_grad_max_norm=1",
)
MEMORY_MIB = 256
PROCESSES = (1, 2, 8)


@pytest.fixture(scope="module")
def test_images(digits, tmp_path_factory):
    """A few of each class: an evaluation of all is slow, op by op."""
    folder = tmp_path_factory.mktemp("few")
    for source in sorted((digits / "test").iterdir()):
        (folder / source.name).mkdir()
        for image in sorted(source.iterdir())[:2]:
            shutil.copy(image, folder / source.name)
    return folder


def runs_of(precision, processes) -> list[tuple[str, str]]:
    """Task and layout of each run on so many processes."""
    layouts = [name for name, sizes in LAYOUTS.items() if np.prod(sizes) == processes]
    tasks = KINDS[precision] if LARGE not in layouts else ("pretraining",)
    return [(task, layout) for task in tasks for layout in layouts]


class Runs:
    """Of all tasks in one precision: a folder each, and rank 0's report by number of processes."""

    def __init__(self, precision, fake_gpus, data, root):
        self.precision, self.fake_gpus, self.data, self.root = precision, fake_gpus, data, root
        self.reports = {}

    def folder(self, task, layout):
        return self.root / f"{task}-{layout}"

    def command(self, task, layout) -> list[str]:
        config, options, _ = TASKS[task]
        folder = self.folder(task, layout)
        if layout != "one":
            shutil.copytree(self.folder(task, "one"), folder)
            (folder / "last_checkpoint").write_text("model_0000002")
        return [
            "--config-file",
            f"projects/MAE/configs/{config}.py",
            *self.data,
            f"train.output_dir={folder}",
            *SMALL,
            *options,
            *(AMP if self.precision == "amp" else ()),
            *(
                f"train.dist.{kind}_parallel_size={size}"
                for kind, size in zip(("data", "tensor", "pipeline"), LAYOUTS[layout])
            ),
            *(["--resume"] if layout != "one" else []),
        ]

    def run(self, processes) -> None:
        """All that take so many, by one launch."""
        commands = [self.command(*run) for run in runs_of(self.precision, processes)]
        path = self.root / f"commands-{processes}.json"
        path.write_text(json.dumps(commands))
        gpus = self.fake_gpus(count=processes, memory_gib=MEMORY_MIB / 1024)
        launcher = ("-m", "libai_ext.launch", "--nproc-per-node", processes)
        gpus.python(*launcher, "tests/multiprocess/many_runs.py", path, timeout=600)
        self.reports[processes] = gpus.report()


@pytest.fixture(scope="module", params=KINDS)
def runs(request, fake_gpus, digits, test_images, tmp_path_factory):
    """All others go on from what one process has saved after three of six iterations."""
    data = [f"data.train=[{digits}/train]", f"data.test=[{test_images}]"]
    runs = Runs(request.param, fake_gpus, data, tmp_path_factory.mktemp(request.param))
    for processes in PROCESSES:
        runs.run(processes)
    return runs


@pytest.mark.parametrize("processes", PROCESSES)
def test_every_run_has_all_its_lines_and_weights(runs, processes):
    for task, layout in runs_of(runs.precision, processes):
        folder = runs.folder(task, layout)
        loaded = "Loaded checkpoint" in (folder / "log.txt").read_text()
        assert loaded == (layout != "one")
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert [line["iteration"] for line in lines] == [2, 4, 5, 6]
        for line in lines[2:]:
            assert TASKS[task][2] <= line.keys()
        assert (folder / "model_final/model").is_dir()


@pytest.mark.parametrize("processes", PROCESSES)
def test_what_the_device_did(runs, processes):
    """All tasks and layouts of so many processes, summed."""
    report = runs.reports[processes]
    assert not report.unimplemented and not report.forked
    products = {
        kind: sum(
            calls
            for name, calls in report.calls.items()
            if name.startswith("cublas") and name.endswith(f" {kind}")
        )
        for kind in ("half", "float")
    }
    if runs.precision == "amp":
        # Pre-training draws two pictures by the eager model, in float32: six products for each of
        # two layers and three around them.
        runs_drawn = [task for task, _ in runs_of("amp", processes)].count("pretraining")
        drawn = runs_drawn * 2 * (2 * 6 + 3)
        assert products["half"] > 0 and products["float"] <= drawn
    else:
        assert products["half"] == 0 < products["float"]
    assert report.launches("MultiCountNotFiniteGpu") > 0
    # Weights, gradients and moments; the third type is that of a copy.
    assert report.launches("AdamUpdateGpu<float, float,") > 0
    assert report.launches("AdamUpdateGpu<") == report.launches("AdamUpdateGpu<float, float,")
    assert 0 < max(report.peak.values()) < MEMORY_MIB * 2**20


def test_a_probe_has_no_mixed_precision(fake_gpus, tmp_path):
    gpus = fake_gpus()
    config = "projects/MAE/configs/mae_digits_linprobe.py"
    options = ("train.amp.enabled=True", "finetune.enable=False", f"train.output_dir={tmp_path}/o")
    out = gpus.train(config, 1, *options, status=2)
    assert "train.amp: OneFlow supports it in graphs only" in out and "Traceback" not in out
