"""NaN put into one iteration of a real run, through the loss or through one gradient alone."""

from __future__ import annotations

import json
import logging
import math
from types import SimpleNamespace

import numpy as np
import oneflow as flow
import pytest

from libai_ext.checkpoint.errors import CheckpointError
from libai_ext.engine.nonfinite import (
    NonFiniteError,
    NonFiniteMonitor,
    refuse_nonfinite,
    sum_of_squares,
)
from libai_ext.optim.param_groups import decay_matrices_only

pytestmark = pytest.mark.slow  # real launches

DIGITS = "projects/MAE/configs/mae_digits.py"
POISONED = 4  # counted from 0


@pytest.fixture(scope="module")
def train(launch, digits):
    def run(folder, mode, *options, what="nothing", processes=1, **keywords):
        return launch.python(
            *("-m", "libai_ext.launch", "--nproc-per-node", processes),
            *("tests/engine/poisoned_run.py", what, POISONED, "--config-file", DIGITS),
            f"data.train=[{digits}/train]",
            f"train.output_dir={folder}",
            f"graph.enabled={mode == 'graph'}",
            "train.train_iter=7",
            "train.warmup_iter=0",
            "train.global_batch_size=16",
            "train.log_period=1",
            "model.depth=1",
            "dataloader.train.num_workers=1",
            *options,
            **keywords,
        )

    return run


@pytest.fixture(scope="module", params=["graph", "eager"])
def sound(request, train, tmp_path_factory):
    """Mode and folder of a run without a fault, with a checkpoint just before that iteration."""
    folder = tmp_path_factory.mktemp(request.param)
    train(folder, request.param, f"train.checkpointer.period={POISONED}")
    return request.param, folder


def weights(folder, name):
    state = flow.load(str(folder / name / "model"), global_src_rank=0)
    return {key: value.numpy() for key, value in state.items()}


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_it_stops_with_the_last_good_state(train, sound, tmp_path, what):
    mode, reference = sound
    out = train(tmp_path, mode, what=what, status=2)
    assert "Traceback" not in out and out.count("error:") == 1
    assert f"not finite at iteration {POISONED}" in out

    name = f"model_{POISONED - 1:07d}"
    assert (tmp_path / "last_checkpoint").read_text().startswith(name)
    expected, found = weights(reference, name), weights(tmp_path, name)
    assert expected.keys() == found.keys()
    assert all(np.array_equal(expected[key], found[key]) for key in expected)

    report = json.loads((tmp_path / f"nonfinite_{POISONED:07d}.json").read_text())
    assert report["iteration"] == POISONED
    assert report["lr"] == pytest.approx(metrics(reference)[POISONED]["lr"])
    assert len(report["samples"]) == 16
    bad = [key for key, norm in report["gradient_norms"].items() if isinstance(norm, str)]
    if what == "loss":
        assert report["loss_magnitudes"] == {"losses": "nan"}
    else:
        assert bad == ["decoder_pred.weight"]
        assert report["loss_magnitudes"]["losses"] > 0


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_it_skips_if_told_to(train, sound, tmp_path, what):
    """The other steps are those of a run that never met the bad batch."""
    mode, reference = sound
    out = train(tmp_path, mode, "train.max_nonfinite_steps=1", what=what)
    assert "step skipped, 1 of 1 allowed" in out
    lines, expected = metrics(tmp_path), metrics(reference)
    assert [line["iteration"] for line in lines] == list(range(1, 8))
    assert ["total_loss" in line for line in lines] == [i != POISONED for i in range(7)]
    for line, other in zip(lines[:POISONED], expected):
        assert line["total_loss"] == other["total_loss"]
    # The schedule waits for the step that was left out.
    assert lines[-1]["lr"] == pytest.approx(expected[-2]["lr"])
    assert all(np.isfinite(value).all() for value in weights(tmp_path, "model_final").values())


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_queued_steps_are_left_out_all_the_same(train, tmp_path, what):
    """What a GPU does: the fault shows at the next logging step, two steps later, and the state
    is the one after all other steps."""
    read_at_once, queued = tmp_path / "read", tmp_path / "queued"
    train(read_at_once, "graph", "train.max_nonfinite_steps=1", what=what)
    out = train(queued, "graph", "train.log_period=7", what=f"{what}-queued", status=2)
    assert "Traceback" not in out and out.count("error:") == 1
    if what == "loss":
        assert "the loss is not finite at iteration 4 (counted from 0), 1 time up to 6" in out
    else:
        assert "gradients are not finite at 1 of the iterations 3 to 6" in out
    assert "the state after iteration 6 is saved, without the skipped steps" in out
    expected, found = weights(read_at_once, "model_final"), weights(queued, "model_0000006")
    assert expected.keys() == found.keys()
    assert all(np.array_equal(expected[key], found[key]) for key in expected)

    out = train(queued, "graph", "train.log_period=7", "--resume", what=f"{what}-queued")
    assert "nothing to do: 7 of 7 iterations are done" in out


def test_a_line_holds_the_means_since_the_line_before(train, sound, tmp_path):
    """Also for a run that was saved between two lines, and with a fault among the steps."""
    mode, reference = sound
    options = ("train.log_period=5", "train.checkpointer.period=2")
    train(tmp_path, mode, *options)
    losses = [line["total_loss"] for line in metrics(reference)]
    rates = [line["lr"] for line in metrics(reference)]
    for _ in range(2):
        lines = metrics(tmp_path)
        assert [line["iteration"] for line in lines] == [5, 7]
        assert [line["total_loss"] for line in lines] == [np.mean(losses[:5]), np.mean(losses[5:])]
        assert [line["lr"] for line in lines] == [rates[4], rates[6]]
        (tmp_path / "last_checkpoint").write_text("model_0000003")
        train(tmp_path, mode, *options, "--resume")


@pytest.mark.parametrize("mode", ["graph", "eager"])
def test_all_ranks_stop_together(train, tmp_path, mode):
    out = train(tmp_path, mode, what="gradient", processes=2, status=2)
    assert out.count("error:") == 1 and "parameters are not finite at iteration 4" in out
    assert (tmp_path / "last_checkpoint").read_text().startswith("model_0000003")


def test_eager_mode_logs_the_gradient_norm(sound):
    mode, folder = sound
    norms = [line.get("gradient_norm") for line in metrics(folder)]
    if mode == "graph":
        assert norms == [None] * 7
    else:
        assert all(0 < norm < 1e3 for norm in norms)


class Saved:
    """In place of a checkpointer: notes each save with the faults that it holds."""

    def __init__(self, trainer):
        self.trainer = trainer
        self.saves = []
        self.failure = None

    def save(self, name, iteration):
        self.saves.append((name, self.trainer.steps.monitor.faults))

    def finish(self):
        if self.failure:
            raise CheckpointError(self.failure)


def monitored(folder, allowed):
    """A trainer as a monitor sees it, before iteration 20."""
    amp = SimpleNamespace(enabled=False)
    trainer = SimpleNamespace(
        cfg=SimpleNamespace(train=SimpleNamespace(output_dir=str(folder), amp=amp)),
        keeps=True,
        start_iter=0,
        order=SimpleNamespace(batch=lambda number: [SimpleNamespace(epoch=0, index=number)]),
        lr_scheduler=SimpleNamespace(get_last_lr=lambda: [0.1]),
    )
    trainer.steps = SimpleNamespace(loss_scale=1.0, monitor=NonFiniteMonitor(trainer, allowed))
    trainer.checkpointer = Saved(trainer)
    return trainer


BAD = {"losses": float("nan")}
GOOD = {"losses": 1.0}


@pytest.mark.parametrize(
    "losses, saved",
    [
        # The step will be tried again: the advice, to allow one more, must be enough.
        ([BAD], ("model_0000019", 1)),
        # It is left out for good.
        ([GOOD, BAD, GOOD], ("model_0000020", 2)),
    ],
)
def test_faults_of_a_step_that_is_tried_again_are_not_saved(tmp_path, losses, saved):
    trainer = monitored(tmp_path, allowed=1)
    monitor = trainer.steps.monitor
    monitor.report(7, [BAD], 1, norms=None)
    with pytest.raises(NonFiniteError, match="allow more such steps by train.max_nonfinite_steps"):
        monitor.report(20, losses, 1, norms=None)
    assert trainer.checkpointer.saves == [saved]


def test_a_full_disk_is_named_and_the_state_goes_first(tmp_path, caplog):
    folder = tmp_path / "full"  # missing: no file can be made in it
    trainer = monitored(folder, allowed=1)
    monitor = trainer.steps.monitor
    with caplog.at_level(logging.WARNING):
        monitor.report(7, [BAD], 1, norms=None)
    assert [record.message for record in caplog.records] == [
        f"the loss is not finite at iteration 7 (counted from 0); {folder}/nonfinite_0000007.json "
        "could not be written: No such file or directory; step skipped, 1 of 1 allowed"
    ]
    with pytest.raises(NonFiniteError, match="iteration 19 is saved, .*0020.json could not be"):
        monitor.report(20, [BAD], 1, norms=None)
    trainer.checkpointer.failure = "model_0000029 could not be written"
    with pytest.raises(NonFiniteError, match="model_0000029 could not be .*0030.json could"):
        monitor.report(30, [BAD], 1, norms=None)
    assert [name for name, _ in trainer.checkpointer.saves] == ["model_0000019", "model_0000029"]


def test_sum_of_squares():
    placement, sbp = flow.placement("cpu", [0]), flow.sbp.broadcast
    tensors = [flow.full((2, 3), 2.0), flow.tensor([3.0, float("nan")]), flow.tensor(5.0)]
    sums = sum_of_squares([tensor.to_global(placement, sbp) for tensor in tensors])
    assert (sums[0], sums[2]) == (24.0, 25.0) and math.isnan(sums[1])


def test_weights_that_are_not_finite_are_refused():
    placement, sbp = flow.placement("cpu", [0]), flow.sbp.broadcast
    model = flow.nn.Sequential(flow.nn.Linear(2, 2), flow.nn.BatchNorm1d(2))
    model = model.to_global(placement, sbp)
    refuse_nonfinite(model, "x")
    model[1].running_var.fill_(float("inf"))
    with pytest.raises(CheckpointError, match="^x: 1 of 7 .* infinity: 1.running_var$"):
        refuse_nonfinite(model, "x")
    with flow.no_grad():
        model[0].bias.fill_(float("nan"))
    with pytest.raises(CheckpointError, match="x: 2 of 7 .* infinity: 0.bias and others"):
        refuse_nonfinite(model, "x")


@pytest.mark.parametrize("graph", [True, False])
def test_clipping_bounds_each_groups_norm(graph):
    """SGD at rate 1 moves each parameter by its gradient: (3, 4) and (1.5, 2), norms 5 and 2.5."""
    placement, sbp = flow.placement("cpu", [0]), flow.sbp.broadcast
    model = flow.nn.Linear(1, 2).to_global(placement, sbp)
    optimizer = flow.optim.SGD(decay_matrices_only(model, 0.0, clip_grad_max_norm=1.0), lr=1.0)
    before = {name: value.numpy().copy() for name, value in model.named_parameters()}
    slope = flow.tensor([[3.0, 4.0]]).to_global(placement, sbp)

    class Step(flow.nn.Graph):
        def __init__(self):
            super().__init__()
            self.model = model
            self.add_optimizer(optimizer)

        def build(self, inputs):
            loss = (self.model(inputs) * slope).sum()
            loss.backward()
            return loss

    inputs = flow.tensor([[0.5]]).to_global(placement, sbp)
    if graph:
        from libai_ext.engine.graph import use_single_cpu_stream

        use_single_cpu_stream()
        Step()(inputs).numpy()
    else:
        (model(inputs) * slope).sum().backward()
        optimizer.clip_grad()
        optimizer.step()
    moved = {name: before[name] - value.numpy() for name, value in model.named_parameters()}
    np.testing.assert_allclose(moved["bias"], [0.6, 0.8], rtol=1e-5)
    np.testing.assert_allclose(moved["weight"][:, 0], [0.6, 0.8], rtol=1e-5)
