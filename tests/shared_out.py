"""How the tests are shared out among the workers of pytest-xdist.

A file's tests run one after the other, on one worker: they share what its fixtures have made. The
longest files come first, so that no worker is left alone with one at the end.
"""

from __future__ import annotations

from xdist.scheduler import LoadFileScheduling

# Files that take half a minute or more on two cores, longest first.
LONG = (
    "multiprocess/test_layouts.py",
    "tools/test_quickstart.py",
    "fakecuda/test_gpu_layouts.py",
    "fakecuda/test_check_gpu.py",
    "multiprocess/test_killed.py",
)


class LongestFirst(LoadFileScheduling):
    """Files as units of work: those of :data:`LONG`, then those with most tests."""

    def _assign_work_unit(self, node) -> None:
        waiting = (f"tests/{name}" for name in LONG if f"tests/{name}" in self.workqueue)
        for name in waiting:
            self.workqueue.move_to_end(name, last=False)
            break
        super()._assign_work_unit(node)
