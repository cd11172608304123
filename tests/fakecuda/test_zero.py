"""ZeRO on devices that do not exist: it runs with all that a run does, and saves what it should."""

from __future__ import annotations

import json
import shutil

import event_pictures
import pytest
from fakecuda.compile import compile_memory
from fakecuda.gpus import FakeGpus

from libai_ext.checkpoint import oneflow_folder

pytestmark = pytest.mark.slow

CONFIG = "projects/MAE/configs/mae_digits.py"
ITERATIONS, SAVED_AT = 4, 2
RESULTS = {"total_loss", "eval_loss", "ema_eval_loss"}
OPTIONS = (
    "model.depth=1",
    "model.decoder_depth=1",
    "train.global_batch_size=16",
    "train.test_micro_batch_size=64",
    f"train.train_iter={ITERATIONS}",
    "train.warmup_iter=1",
    "train.log_period=1",
    "train.ema.enabled=True",
    "train.evaluation.enabled=True",
    f"train.evaluation.eval_period={SAVED_AT}",
    "train.evaluation.eval_metric=loss",
    f"train.checkpointer.period={SAVED_AT}",
    f"task.picture_period={SAVED_AT}",
    "optim.params.clip_grad_max_norm=1",
    "dataloader.train.num_workers=0",
    "dataloader.test.num_workers=0",
)
AMP, TENSOR = "train.amp.enabled=True", "train.dist.tensor_parallel_size=2"
CHECKPOINTING, ACCUMULATION = (
    "train.activation_checkpoint.enabled=True",
    "train.num_accumulation_steps=2",
)


def zero(stage):
    return "train.zero_optimization.enabled=True", f"train.zero_optimization.stage={stage}"


# Name -> processes and options; those that go on from another run come later.
FRESH = {
    "one": (1, ()),
    "stage1": (2, zero(1)),
    "stage2": (2, (*zero(2), AMP, ACCUMULATION)),
    "stage3": (2, (*zero(3), ACCUMULATION)),
    "stage3_tensor": (4, (*zero(3), TENSOR, AMP, CHECKPOINTING)),
}
RESUMED = {
    ("stage1", "one"): (1, ()),
    ("stage3_tensor", "tensor"): (2, (TENSOR,)),
    ("one", "stage3"): (2, zero(3)),
    ("stage3", "stage1"): (2, zero(1)),
}


class Runs:
    """Folders of the runs by name, and a launch's report by number of processes."""

    def __init__(self, launch, digits, root):
        self.launch, self.root = launch, root
        self.data = [f"data.train=[{digits}/train]", f"data.test=[{digits}/test]"]
        self.reports = {}

    def folder(self, *parts):
        return self.root / "-".join(parts)

    def run(self, cases) -> None:
        """One launch for each number of processes."""
        for count in sorted({processes for processes, _ in cases.values()}):
            commands = [
                ["--config-file", CONFIG, *self.data, *OPTIONS, *options, f"train.output_dir={out}"]
                for out, (processes, options) in cases.items()
                if processes == count
            ]
            path = self.root / f"commands-{count}.json"
            path.write_text(json.dumps(commands))
            counters = self.root / f"counters-{count}"
            counters.mkdir(exist_ok=True)
            gpus = FakeGpus(self.launch, counters, count=count)
            script = "tests/multiprocess/many_runs.py"
            gpus.python(
                "-m", "libai_ext.launch", "--nproc-per-node", count, script, path, timeout=600
            )
            self.reports.setdefault(count, gpus.report())


@pytest.fixture(scope="module")
def runs(launch, digits, tmp_path_factory):
    runs = Runs(launch, digits, tmp_path_factory.mktemp("zero"))
    runs.run({runs.folder(name): case for name, case in FRESH.items()})
    later = {}
    for (source, target), (processes, options) in RESUMED.items():
        folder = runs.folder(source, "to", target)
        shutil.copytree(runs.folder(source), folder)
        shutil.rmtree(folder / "model_final")
        (folder / "last_checkpoint").write_text(f"model_{SAVED_AT - 1:07d}")
        later[folder] = (processes, (*options, "--resume"))
    runs.run(later)
    return runs


def shapes(checkpoint, part):
    return {name: array.shape for name, array in oneflow_folder.load(checkpoint / part).items()}


@pytest.mark.parametrize("name", [*FRESH, *("-to-".join(pair) for pair in RESUMED)])
def test_a_run_and_its_checkpoints(runs, name):
    """Every iteration, evaluation and picture is there; what is saved has the same names and
    shapes as without ZeRO."""
    folder = runs.folder(name)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == list(range(1, ITERATIONS + 1))
    assert RESULTS <= set(lines[SAVED_AT - 1]) and RESULTS <= set(lines[-1])
    assert list(event_pictures.pictures_of(folder)) == [2, 4]
    for checkpoint in ("model_best", "model_final"):
        for part in ("model", "ema", "graph"):
            found, expected = (
                shapes(run / checkpoint, part) for run in (folder, runs.folder("one"))
            )
            added = {"loss_scale", "good_steps"} if part == "graph" else set()
            assert {key: shape for key, shape in found.items() if key not in added} == expected


def test_gradients_are_scattered_and_weights_gathered(runs):
    """Each matrix of the model, 9 in all, has two moments and a gradient; no kernel is missing."""
    report = runs.reports[2]
    assert report.unimplemented == {} and report.forked == {}
    # One reduce-scatter a matrix and step: three runs of four steps.
    calls = {name: count.calls for name, count in report.collectives.items()}
    assert calls["ncclReduceScatter"] == 3 * ITERATIONS * 9
    assert runs.reports[1].collectives == {}


BIG = (
    "model.embed_dim=256",
    "model.depth=4",
    "model.decoder_depth=1",
    "train.train_micro_batch_size=2",
)


def test_memory():
    """A model whose weights outweigh its activations, by the compiler's own report.

    In OneFlow 0.9.0, stage 1 cuts the weights, their moments and gradients, but holds all weights
    whole within the step; so does stage 2. Stage 3 holds those of a layer.
    """

    def memory(stage, devices):
        return compile_memory(CONFIG, [*BIG, *(zero(stage) if stage else ())], devices)[0]

    none, one, two, three = (memory(stage, 8) for stage in range(4))
    weights = none.variables / 3  # and two moments
    for cut in (one, two, three):
        # Biases and norms stay whole.
        assert weights * 3 / 8 < cut.variables < weights * 3 / 8 * 1.08
    # Without ZeRO, gradients fill the memory of the kernels, and that of NCCL beside it.
    assert 2 * weights < none.reused < 2.1 * weights
    assert 0.99 * weights < none.unreused < 1.01 * weights
    # The whole weights and an eighth of the gradients.
    assert weights * 9 / 8 < one.reused < 1.35 * weights
    assert two.reused == pytest.approx(one.reused, rel=0.01)
    assert three.reused < 0.45 * weights
    assert three.total < 0.5 * one.total < 0.25 * none.total
    # With two devices half of what is kept is saved, at most.
    assert 0.5 < memory(3, 2).variables / none.variables < 0.55
