"""How the tests are shared out among the workers of pytest-xdist.

The tests of a file run one after the other on one worker: they share what its fixtures have made.
One worker begins with what takes long, so that it is not left alone with it at the end.
"""

from __future__ import annotations

from xdist.scheduler import LoadFileScheduling

# Beginnings of names in this folder: the longest files, then folders that start many programs.
FIRST = (
    "multiprocess/test_layouts.py",
    "tools/test_quickstart.py",
    "fakecuda/test_gpu_layouts.py",
    "multiprocess/test_killed.py",
    "fakecuda/",
    "multiprocess/",
    "engine/",
    "tools/",
)


def turn(file: str) -> int:
    """When a file's turn is, the first 0; at equal turns the one with most tests is first."""
    name = file.partition("tests/")[2]
    return next((i for i, begin in enumerate(FIRST) if name.startswith(begin)), len(FIRST))


class LongestFirst(LoadFileScheduling):
    """One worker begins with what takes long and starts many processes, the others with the rest,
    so that two of these do not run at the same time: ranks that wait for each other take a core."""

    def _assign_work_unit(self, node) -> None:
        choose = min if node is self.nodes[0] else max
        self.workqueue.move_to_end(choose(self.workqueue, key=turn), last=False)
        super()._assign_work_unit(node)

    def remove_node(self, node) -> str | None:
        """Share out what a crashed worker leaves, and return the test that it ran, if any.

        Not that test, which would crash the next worker. Nor files that are finished, which
        pytest-xdist 3.8.0 hands out again: of these a worker gets no tests, and as it keeps its
        last test until it gets another one, it waits for ever.
        """
        left = self.assigned_work.pop(node)
        waiting = [(file, test) for file in left for test, done in left[file].items() if not done]
        if not waiting:
            return None
        (file, crashed), *others = waiting
        left[file][crashed] = True
        self.workqueue.update({file: left[file] for file, _ in others})
        for other in self.nodes:
            self._reschedule(other)
        return crashed


def encodable(value):
    """The same, with escapes for what is no text: a worker could not send its report else."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {key: encodable(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(encodable, value))
    return value
