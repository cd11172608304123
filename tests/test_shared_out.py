from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import shared_out

TESTS = Path(__file__).parent


def test_what_comes_first_is_there():
    assert [name for name in shared_out.FIRST if not (TESTS / name).exists()] == []


def scheduled(tests):
    """Two workers that have begun, with what they get, as (name, tests)."""
    nodeids = [f"tests/{file}.py::test_{i}" for file, n in tests.items() for i in range(n)]
    sent = []

    class Worker:
        shutting_down = False

        def __init__(self, name):
            self.name, self.gateway = name, SimpleNamespace(id=name)

        def send_runtest_some(self, indices):
            sent.append((self.name, [nodeids[i] for i in indices]))

        def shutdown(self):
            self.shutting_down = True

    option = SimpleNamespace(loadscopereorder=True)
    config = SimpleNamespace(getvalue={"tx": ["2*popen"]}.get, option=option)
    scheduling = shared_out.LongestFirst(config)
    workers = [Worker("first"), Worker("second")]
    for one in workers:
        scheduling.add_node(one)
        scheduling.add_node_collection(one, nodeids)
    scheduling.schedule()

    def finish(worker, *tests):
        for test in tests:
            scheduling.mark_test_complete(worker, nodeids.index(test))

    return scheduling, workers, sent, finish


def test_order_and_shares():
    """Each of two workers gets whole files: one the longest first, the other those with most tests
    of what is short."""
    tests = {"a/test_one": 1, "b/test_many": 9, "tools/test_few": 3, "multiprocess/test_layouts": 4}
    _, workers, sent, finish = scheduled(tests)
    finish(workers[0], *sent[0][1])
    files = [(name, {part.split("::")[0] for part in parts}) for name, parts in sent]
    assert files == [
        ("first", {"tests/multiprocess/test_layouts.py"}),
        ("second", {"tests/b/test_many.py"}),
        ("first", {"tests/tools/test_few.py"}),
    ]
    assert [len(parts) for _, parts in sent] == [4, 9, 3]


def test_what_a_crashed_worker_leaves():
    """Its tests that have not begun, so that the other worker gets the end of its work too."""
    tests = {"tools/test_a": 4, "tools/test_b": 3, "c/test_c": 5}
    scheduling, workers, sent, finish = scheduled(tests)
    first, second = workers
    finish(first, *sent[0][1])
    (_, begun) = sent[-1]
    finish(first, begun[0])
    del sent[2:]
    assert scheduling.remove_node(first) == begun[1]
    finish(second, *sent[1][1])
    assert sent[2:] == [("second", begun[2:])]
    finish(second, *begun[2:])
    assert second.shutting_down and scheduling.tests_finished


def test_a_report_that_is_no_text_is_sent():
    report = {"sections": [("log", "a \udcff")], "longrepr": ("x.py", 3, "\udce9"), "when": None}
    assert shared_out.encodable(report) == {
        "sections": [("log", "a \\udcff")],
        "longrepr": ("x.py", 3, "\\udce9"),
        "when": None,
    }
