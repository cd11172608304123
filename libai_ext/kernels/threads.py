"""The environment variables that decide how fast OneFlow runs on CPU.

Libraries read them once, when they load: call `configure_environment` before `import oneflow`.
"""

from __future__ import annotations

import math
import os
from collections.abc import MutableMapping
from pathlib import Path

_CGROUP_ROOT = Path("/sys/fs/cgroup")


def _read_quota(directory: Path) -> float | None:
    """CPUs that the control group of this directory may use; None: no limit."""
    try:
        if (directory / "cpu.max").exists():  # version 2
            quota, period = (directory / "cpu.max").read_text().split()
        else:
            quota = (directory / "cpu.cfs_quota_us").read_text()
            period = (directory / "cpu.cfs_period_us").read_text()
        return float(quota) / float(period) if float(quota) > 0 else None
    except (OSError, ValueError):  # no such file, or "max"
        return None


def _cgroup_quota() -> float | None:
    """The lowest CPU limit of this process's control group and its parents."""
    directories = {_CGROUP_ROOT, _CGROUP_ROOT / "cpu"}
    try:
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                root = _CGROUP_ROOT
            elif "cpu" in controllers.split(","):
                root = _CGROUP_ROOT / "cpu"
            else:
                continue
            group = root / path.lstrip("/")
            directories.update([group, *group.parents])
    except (OSError, ValueError):
        pass
    quotas = [quota for quota in map(_read_quota, directories) if quota is not None]
    return min(quotas, default=None)


def available_cpus() -> int:
    """CPUs this process may use: its affinity mask, limited by its control group's quota."""
    cpus = len(os.sched_getaffinity(0))
    quota = _cgroup_quota()
    return cpus if quota is None else max(1, min(cpus, math.ceil(quota)))


def configure_environment(
    local_processes: int = 1, environ: MutableMapping[str, str] = os.environ
) -> dict[str, str]:
    """Set the variables that are not set, and return the values in use.

    Args:
        local_processes: processes of this job on this machine; they share its CPUs evenly.
        environ: the environment to complete; a launcher passes that of its children.
    """
    if local_processes < 1:
        raise ValueError(f"local_processes must be at least 1, not {local_processes}")
    defaults = {
        # Without a worker thread, no scheduler thread keeps a core busy that the kernels need.
        "ONEFLOW_VM_COMPUTE_ON_WORKER_THREAD": "0",
        # Threads that wait for the next kernel spin for about 0.1 ms, then sleep: the next kernel
        # usually comes soon, else the other processes and OneFlow's own threads need the cores.
        "OMP_WAIT_POLICY": "passive",
        "GOMP_SPINCOUNT": "10000",
        "OMP_NUM_THREADS": str(max(1, available_cpus() // local_processes)),
        # How many combinations of shapes and attributes each eager op remembers before it forgets
        # all. A learning rate that changes at each step adds an entry: with OneFlow's default of
        # 131,072, a run leaks 40 KB per step and more.
        "ONEFLOW_EAGER_TENSOR_INFER_CACHE_SIZE": "512",
        # Large tensors in pages of 2 MB, where Linux gives them to programs that ask ("madvise").
        # The C library reads it when a process starts: it is for the ranks of a launcher.
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    }
    if "OMP_WAIT_POLICY" in environ:
        del defaults["GOMP_SPINCOUNT"]  # it would override the policy
    for name, value in defaults.items():
        environ.setdefault(name, value)
    return {name: environ[name] for name in defaults}
