"""A rank that does not come on, in a real run of two."""

from __future__ import annotations

import json
import re

import pytest

pytestmark = pytest.mark.slow  # a real launch

STAND, ITERATIONS, PERIOD = 7, 12, 3


@pytest.fixture(scope="module")
def run(launch, digits, tmp_path_factory):
    """Output and folder of a run that stands once."""
    folder = tmp_path_factory.mktemp("run")
    output = launch(
        *("bash", "tools/train.sh", "--restarts", "1", "tests/engine/stuck_run.py"),
        *("projects/MAE/configs/mae_digits.py", "2"),
        f"data.train=[{digits}/train]",
        f"data.test=[{digits}/test]",
        f"train.output_dir={folder}",
        f"train.train_iter={ITERATIONS}",
        "train.warmup_iter=2",
        "train.log_period=1",
        f"train.checkpointer.period={PERIOD}",
        "train.global_batch_size=8",
        "train.test_micro_batch_size=100",
        "train.evaluation.enabled=True",
        f"train.evaluation.eval_period={ITERATIONS}",
        "train.watchdog.factor=2",
        "train.watchdog.min_seconds=2",
        "train.watchdog.end_seconds=10",
        "model.depth=1",
        "dataloader.train.num_workers=1",
        "graph.enabled=False",
        env={"STAND_AT": str(STAND), "http_proxy": "http://127.0.0.1:9"},
        timeout=120,
    )
    return output, folder


def test_ranks_meet_where_a_proxy_is_set_that_is_dead(run):
    assert "data 2 x tensor 1 x pipeline 1" in run[0]


def test_every_ranks_stack_is_shown_once(run):
    output = run[0]
    said = re.findall(
        r"rank (\d): iteration (\d+) has taken \d+ s so far, the median is 0\.\d+ s; after 10 s "
        r"the job is ended \(train.watchdog.end_seconds\)",
        output,
    )
    assert sorted(said) == [("0", str(STAND)), ("1", str(STAND))]
    assert output.count("thread MainThread:") == 2
    assert output.count("time.sleep(600)") == 1


def test_the_launcher_ends_it_and_starts_it_again(run):
    """After it has shown the stacks once more, which needs no thread of the ranks."""
    output, folder = run
    ended = re.findall(r"launch: the job is ended: rank (\d): (iteration \d+) has taken", output)
    assert {iteration for _, iteration in ended} == {f"iteration {STAND}"}
    assert re.search(r"stuck_run.py., line \d+ in stand", output)
    assert "launch: restart 1 of 1" in output
    assert f"model_{STAND // PERIOD * PERIOD - 1:07d}" in output.split("restart 1 of 1")[1]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [*range(1, ITERATIONS + 1)]


def test_what_is_watched(run):
    """From the config on; a step that has a median is reported by it."""
    tasks = re.findall(r"^task: (.*) \| (\d+) \| (\d+)$", run[0].split("restart 1 of 1")[1], re.M)
    names = [name for name, _, _ in tasks]
    first = STAND // PERIOD * PERIOD
    steps = []
    for iteration in range(first, ITERATIONS):
        work = f"the work after iteration {iteration} (logging, evaluation, saving)"
        steps += [f"iteration {iteration}", work]
    evaluation = [f"batch {number} of an evaluation" for number in range(3)]
    assert names == [
        "reading the config",
        "building the run",
        *steps,
        "the start of an evaluation",
        *evaluation,
        "the work after an evaluation",
        "the end of the run",
    ]
    assert tasks[0][2] == "600" and {end for _, _, end in tasks[1:]} == {"10"}
    assert tasks[1][1:] == ("5", "10")
