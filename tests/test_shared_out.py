from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import shared_out

TESTS = Path(__file__).parent


def test_what_comes_first_is_there():
    assert [name for name in shared_out.FIRST if not (TESTS / name).exists()] == []


def test_order_and_shares():
    """Each of two workers gets whole files: one the longest first, the other those with most tests
    of what is short."""
    tests = {"a/test_one": 1, "b/test_many": 9, "tools/test_few": 3, "multiprocess/test_layouts": 4}
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
    for test in nodeids[-4:]:
        scheduling.mark_test_complete(workers[0], nodeids.index(test))
    files = [(name, {part.split("::")[0] for part in parts}) for name, parts in sent]
    assert files == [
        ("first", {"tests/multiprocess/test_layouts.py"}),
        ("second", {"tests/b/test_many.py"}),
        ("first", {"tests/tools/test_few.py"}),
    ]
    assert [len(parts) for _, parts in sent] == [4, 9, 3]


def test_a_report_that_is_no_text_is_sent():
    report = {"sections": [("log", "a \udcff")], "longrepr": ("x.py", 3, "\udce9"), "when": None}
    assert shared_out.encodable(report) == {
        "sections": [("log", "a \\udcff")],
        "longrepr": ("x.py", 3, "\\udce9"),
        "when": None,
    }
