"""Weights that are cut as ZeRO cuts them give the numbers of whole ones.

ZeRO itself runs on GPUs only; here the weights are cut by hand, and eager mode uses them.
"""

from __future__ import annotations

import json
import shutil

import event_pictures
import numpy as np
import oneflow as flow
import pytest

from libai_ext.checkpoint import oneflow_folder
from libai_ext.compat.placements import placement
from libai_ext.engine.sharding import gather_on_use

CONFIG = "projects/MAE/configs/mae_digits.py"
WHOLE, CUT = "projects/MAE/train_net.py", "tests/engine/cut_weights_run.py"
ITERATIONS, SAVED_AT = 4, 2
OPTIONS = (
    "model.embed_dim=16",
    "model.num_heads=2",
    "model.depth=1",
    "model.decoder_depth=1",
    "model.decoder_embed_dim=16",
    "model.decoder_num_heads=2",
    "graph.enabled=False",
    "train.global_batch_size=16",
    "train.test_micro_batch_size=64",
    f"train.train_iter={ITERATIONS}",
    "train.warmup_iter=1",
    "train.log_period=1",
    "train.ema.enabled=True",
    "train.ema.decay=0.5",
    "train.evaluation.enabled=True",
    f"train.evaluation.eval_period={SAVED_AT}",
    f"train.checkpointer.period={SAVED_AT}",
    f"task.picture_period={SAVED_AT}",
    "optim.params.clip_grad_max_norm=0.5",
    "dataloader.train.num_workers=0",
    "dataloader.test.num_workers=0",
)


def on_one_rank(sbp, *shape):
    where = placement("cpu", [0])
    return flow.arange(float(np.prod(shape)), placement=where, sbp=sbp).reshape(*shape)


class Sbp(flow.nn.Module):
    """Notes how its weight is laid out when it is called."""

    def __init__(self):
        super().__init__()
        self.weight = flow.nn.Parameter(on_one_rank(flow.sbp.broadcast, 4, 2))
        self.seen = []

    def forward(self, x):
        self.seen.append(self.weight.sbp)
        return (self.weight * x).sum()


def test_a_module_sees_its_weight_as_built():
    whole, cut = (flow.sbp.broadcast,), (flow.sbp.split(0),)
    model = flow.nn.Sequential(Sbp())
    gather_on_use(model)
    weight = model[0].weight
    x = on_one_rank(flow.sbp.broadcast, 4, 2)
    model(x)
    weight.data = weight.data.to_global(sbp=cut)
    model(x).backward()
    assert model[0].seen == [whole, whole]
    assert model[0].weight is weight and weight.sbp == cut
    assert weight.grad.sbp == cut
    np.testing.assert_array_equal(weight.grad.numpy(), x.numpy())


@pytest.fixture(scope="module")
def runs(launch, digits, tmp_path_factory):
    """Folders: on two processes with whole weights and with cut ones; each went on in the middle
    from the other's checkpoint, that with whole weights on one process."""
    root = tmp_path_factory.mktemp("runs")

    def run(name, program, processes, *options):
        launch.python(
            *("-m", "libai_ext.launch", "--nproc-per-node", processes, program),
            *("--config-file", CONFIG, *options, *OPTIONS),
            *(f"data.train=[{digits}/train]", f"data.test=[{digits}/test]"),
            f"train.output_dir={root / name}",
            env={"OMP_NUM_THREADS": "1"},
        )

    def resume(source, name, program, processes):
        shutil.copytree(root / source, root / name)
        shutil.rmtree(root / name / "model_final")
        (root / name / "last_checkpoint").write_text(f"model_{SAVED_AT - 1:07d}")
        run(name, program, processes, "--resume")

    run("whole", WHOLE, 2)
    run("cut", CUT, 2)
    resume("cut", "cut_then_whole", WHOLE, 1)
    resume("whole", "whole_then_cut", CUT, 2)
    return root


def lines(folder):
    keys = ("total_loss", "gradient_norm", "eval_loss", "ema_eval_loss")
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["iteration"]: [line.get(key, 0.0) for key in keys] for line in found}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cut", "cut_then_whole", "whole_then_cut"])
def test_same_curve_evaluations_and_weights(runs, name):
    found, expected = lines(runs / name), lines(runs / "whole")
    assert list(found) == list(expected) == list(range(1, ITERATIONS + 1))
    for iteration, values in expected.items():
        assert found[iteration] == pytest.approx(values, rel=1e-5)
        # Both evaluations, of the weights and of their averages, are there and differ.
        assert (values[2] != values[3]) == (iteration % SAVED_AT == 0)
    arrays, wanted = (oneflow_folder.load(runs / run / "model_final") for run in (name, "whole"))
    assert list(arrays) == list(wanted)
    for key, array in wanted.items():
        np.testing.assert_allclose(arrays[key], array, rtol=0, atol=1e-5, err_msg=key)


@pytest.mark.slow
def test_same_pictures(runs):
    found, expected = (event_pictures.pictures_of(runs / name) for name in ("cut", "whole"))
    assert list(found) == list(expected) == [2, 4]
    for step, picture in expected.items():
        assert np.abs(found[step].astype(int) - picture).max() <= 1
    event_pictures.check(runs / "cut", steps=[2, 4], samples=5)
