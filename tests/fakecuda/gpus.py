"""A CUDA device that does not exist.

OneFlow's CUDA build compiles for it and runs on it, on a machine without a GPU. The CUDA runtime
is linked into OneFlow's library, whose symbol table is whole: in each process the functions of
the runtime are overwritten, and cuBLAS, cuDNN and NCCL are found in a library that is loaded
first. Memory of the device is host memory with a limit, and copies are done. Kernels are counted
and compute nothing: what they would have written is zero or stale. Collectives do not wait for
their peers, so that each rank runs by itself.

What it shows: that a kernel for the device, the element type and the layout exists; how often
what is launched, copied, sent, allocated and waited for; how the programs meet CUDA's errors.
What it does not: numbers, failures of kernels, races, deadlocks of collectives, speed. Processes
that share a device do not see each other's memory. Kernels of CUTLASS, which has a CUDA runtime of
its own, fail.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from fakecuda import report
from fakecuda.build import build

INJECT = Path(__file__).parent / "inject"
NO_DRIVER_NEW_ENOUGH, NO_DEVICE = 35, 100


def environment(**settings) -> dict[str, str]:
    """Variables that put the device into a process and those it starts.

    Args:
        settings: names of ``FAKECUDA_*`` in lower case -> values; None: not set.
    """
    path = os.pathsep.join([str(INJECT), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = dict(PYTHONPATH=path, FAKECUDA_LIBRARY=str(build().library))
    given = {name: value for name, value in settings.items() if value is not None}
    return dict(env, **{f"FAKECUDA_{name.upper()}": str(value) for name, value in given.items()})


class FakeGpus:
    """Runs the project's programs on devices that do not exist.

    Args:
        launch: the fixture of this name.
        folder: for the counters.
        count: devices of the machine.
        memory_gib: of a device.
        used_gib: of that, by other programs.
        capability: compute capability.
        name: of each device.
        overflow: for which training steps, counted from 0, the loss scaler finds gradients that
            are not finite: ``first:N`` (steps), ``every:N`` (N-th step), ``always``, ``steps:A,B``,
            or a list of 0 and 1 for the first steps. Each process counts its own steps.
        error: that every call of CUDA returns: ``NO_DRIVER_NEW_ENOUGH`` or ``NO_DEVICE``.
    """

    def __init__(
        self,
        launch,
        folder: Path,
        count: int = 1,
        memory_gib: float = 80,
        used_gib: float = 0,
        capability: tuple[int, int] = (8, 0),
        name: str | None = None,
        overflow: str | list[int] | None = None,
        error: int | None = None,
    ):
        self._launch, self._folder = launch, folder
        self._env = environment(
            devices=count,
            memory_gib=memory_gib,
            used_gib=used_gib,
            capability=10 * capability[0] + capability[1],
            name=name,
            overflow=_rule(overflow),
            error=error,
            report=folder,
        )

    def train(self, config, processes, *options, **keywords) -> str:
        """As ``launch.train``."""
        return self._run(self._launch.train, config, processes, *options, **keywords)

    def python(self, *arguments, **keywords) -> str:
        """As ``launch.python``."""
        return self._run(self._launch.python, *arguments, **keywords)

    def report(self, rank: int = 0) -> report.Report:
        """Of the last run."""
        files = sorted(self._folder.glob(f"{rank}-*"))
        assert files, f"rank {rank} has not imported OneFlow"
        return report.read(files, build().engine)

    def _run(self, command, *arguments, env=None, **keywords) -> str:
        for file in self._folder.iterdir():
            file.unlink()
        return command(*arguments, env=dict(self._env, **(env or {})), **keywords)


def _rule(overflow) -> str | None:
    if isinstance(overflow, (list, tuple)):
        return "steps:" + ",".join(str(step) for step, yes in enumerate(overflow) if yes)
    rule = "every:1" if overflow == "always" else overflow
    if rule and not re.fullmatch(r"first:\d+|every:[1-9]\d*|steps:\d+(,\d+)*", rule):
        raise ValueError(f"unknown rule of overflows: {rule}")
    return rule
