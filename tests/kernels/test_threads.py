import os
import subprocess
import sys

import pytest

from libai_ext.kernels import threads


@pytest.mark.parametrize(("cpus", "processes", "expected"), [(8, 1, 8), (8, 3, 2), (2, 4, 1)])
def test_processes_share_the_cpus(cpus, processes, expected, monkeypatch):
    monkeypatch.setattr(threads, "available_cpus", lambda: cpus)
    environ = {}
    shown = threads.configure_environment(processes, environ)
    assert shown == environ
    assert shown == {
        "ONEFLOW_VM_COMPUTE_ON_WORKER_THREAD": "0",
        "OMP_WAIT_POLICY": "passive",
        "GOMP_SPINCOUNT": "10000",
        "ONEFLOW_EAGER_TENSOR_INFER_CACHE_SIZE": "512",
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
        "OMP_NUM_THREADS": str(expected),
    }


def test_what_is_set_stays():
    environ = {"OMP_NUM_THREADS": "5", "OMP_WAIT_POLICY": "active"}
    shown = threads.configure_environment(1, environ)
    assert (shown["OMP_NUM_THREADS"], shown["OMP_WAIT_POLICY"]) == ("5", "active")
    assert "GOMP_SPINCOUNT" not in environ


def test_no_process_is_an_error():
    with pytest.raises(ValueError, match="local_processes"):
        threads.configure_environment(0, {})


def test_affinity_counts():
    cpu = min(os.sched_getaffinity(0))
    script = (
        f"import os; os.sched_setaffinity(0, [{cpu}])\n"
        "from libai_ext.kernels.threads import available_cpus; assert available_cpus() == 1"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize(
    ("cpu_max", "expected"),
    [("150000 100000", 2), ("50000 100000", 1), ("max 100000", 16), ("9900000 100000", 16)],
)
def test_control_group_counts(cpu_max, expected, tmp_path, monkeypatch):
    (tmp_path / "cpu.max").write_text(cpu_max + "\n")
    monkeypatch.setattr(threads, "_CGROUP_ROOT", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    assert threads.available_cpus() == expected
