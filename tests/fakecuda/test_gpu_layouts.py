"""Every task, precision and layout on devices that do not exist: each trains, draws, evaluates,
saves, and goes on from what another layout has saved.

Numbers are not looked at: there are none. tests/multiprocess has them, on CPU.
"""

from __future__ import annotations

import json
import shutil

import pytest

pytestmark = pytest.mark.slow  # real launches

# data x tensor x pipeline; each goes on from the one before.
LAYOUTS = {
    "one": (1, 1, 1),
    "dp2": (2, 1, 1),
    "tp2": (1, 2, 1),
    "dp2tp2pp2": (2, 2, 2),
    "pp2": (1, 1, 2),
}
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
    "model.depth=2",
    "dataloader.train.num_workers=1",
    "dataloader.test.num_workers=0",
)
DECODER = (
    "model.decoder_depth=1",
    "model.decoder_embed_dim=32",
    "model.decoder_num_heads=2",
    "task.picture_period=5",
)
SCRATCH = ("finetune.enable=False",)
# The numbers of steps op by op are stale, and the head's gradients often not finite.
PROBE = (*SCRATCH, "train.max_nonfinite_steps=100")
# Recipe, what makes it small, results of its evaluation.
TASKS = {
    "pretraining": ("mae_digits", DECODER, {"eval_loss"}),
    "finetuning": ("mae_digits_finetune", (*SCRATCH, "model.drop_path=0.3"), {"top1", "top5"}),
    "probe": ("mae_digits_linprobe", PROBE, {"top1", "top5"}),
}
# LARS and the batch norm of the probe have no graph form, mixed precision no other one.
KINDS = [
    ("pretraining", "float32"),
    ("pretraining", "amp"),
    ("finetuning", "float32"),
    ("finetuning", "amp"),
    ("probe", "float32"),
]
# With what else saves memory.
AMP = (
    "train.amp.enabled=True",
    "train.num_accumulation_steps=2",
    "train.activation_checkpoint.enabled=True",
    "optim.params.clip_grad_max_norm=1",
)
MEMORY_MIB = 256


@pytest.fixture(scope="module")
def test_images(digits, tmp_path_factory):
    """A few of each class: an evaluation of all is slow, op by op."""
    folder = tmp_path_factory.mktemp("few")
    for source in sorted((digits / "test").iterdir()):
        (folder / source.name).mkdir()
        for image in sorted(source.iterdir())[:2]:
            shutil.copy(image, folder / source.name)
    return folder


@pytest.fixture(scope="module", params=KINDS, ids="-".join)
def folders(request, fake_gpus, digits, test_images, tmp_path_factory):
    """Folder and report of rank 0 of each layout's run; a layout goes on from the checkpoint that
    the one before saved after three of six iterations."""
    task, precision = request.param
    config, options, _ = TASKS[task]
    runs, before = {}, None
    for name, sizes in LAYOUTS.items():
        folder = tmp_path_factory.mktemp(name) / "run"
        if before:
            shutil.copytree(before, folder)
            (folder / "last_checkpoint").write_text("model_0000002")
        processes = sizes[0] * sizes[1] * sizes[2]
        gpus = fake_gpus(count=processes, memory_gib=MEMORY_MIB / 1024)
        out = gpus.train(
            f"projects/MAE/configs/{config}.py",
            processes,
            f"data.train=[{digits}/train]",
            f"data.test=[{test_images}]",
            f"train.output_dir={folder}",
            *SMALL,
            *options,
            *(AMP if precision == "amp" else ()),
            *(
                f"train.dist.{kind}_parallel_size={size}"
                for kind, size in zip(("data", "tensor", "pipeline"), sizes)
            ),
            *(["--resume"] if before else []),
        )
        runs[name] = (folder, gpus.report(0), out)
        before = folder
    return task, precision, runs


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_run(folders, layout):
    task, precision, runs = folders
    folder, report, out = runs[layout]
    assert ("Loaded checkpoint" in out) == (layout != "one")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [2, 4, 5, 6]
    for line in lines[2:]:
        assert TASKS[task][2] <= line.keys()
    assert (folder / "model_final/model").is_dir()
    assert not report.unimplemented and not report.forked

    products = {
        kind: sum(
            calls
            for name, calls in report.calls.items()
            if name.startswith("cublas") and name.endswith(f" {kind}")
        )
        for kind in ("half", "float")
    }
    if precision == "amp":
        # Two pictures are drawn by the eager model, in float32: six products for each of three
        # layers and three around them.
        drawn = 2 * (3 * 6 + 3) if task == "pretraining" else 0
        assert products["half"] > 0 and products["float"] <= drawn
    else:
        assert products["half"] == 0 < products["float"]
    if task != "probe":
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
    assert "train.amp: OneFlow does this in graphs only" in out and "Traceback" not in out
