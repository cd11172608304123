"""OneFlow sees the device, and CUDA's errors are those of a real one."""

from __future__ import annotations

import signal

import pytest
from fakecuda import gpus as fake
from fakecuda.build import build

COPIES = """
import numpy as np
import oneflow as flow
properties = flow.cuda.get_device_properties(1)
print(flow.cuda.device_count(), properties.name, properties.major, properties.minor)
print(properties.total_memory)
array = np.arange(1000, dtype=np.float32)
print((flow.tensor(array, device="cuda:1").numpy() == array).all())
print(flow.ones(3, device="cuda:1").half().dtype)
"""
DOWN = """
import sys
import oneflow as flow
for _ in range(int(sys.argv[1])):
    flow.ones(1000, device="cuda").numpy()
"""
FILL = """
import oneflow as flow
parts = []
for number in range(1, 9):
    parts.append(flow.empty(2**30, dtype=flow.int8, device="cuda"))
    flow.cuda.synchronize()
    print(number, "GiB", flush=True)
"""
FORK = """
import os
import oneflow as flow
flow.cuda.device_count()
child = os.fork()
if child == 0:
    flow.cuda.device_count()
    os._exit(0)
print(os.WTERMSIG(os.waitpid(child, 0)[1]))
"""
ALL_REDUCE = """
import oneflow as flow
ranks = flow.placement("cuda", [0, 1])
partial = flow.ones(1000, placement=ranks, sbp=flow.sbp.partial_sum)
partial.to_global(sbp=flow.sbp.broadcast).to_local().numpy()
"""


def test_no_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("LIBAI_EXT_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(RuntimeError, match=r"install one \(`apt-get install g\+\+`\)"):
        build()
    assert list(tmp_path.iterdir()) == []


def test_properties_and_copies(fake_gpus):
    gpus = fake_gpus(count=3, memory_gib=10, capability=(7, 5), name="Paper GPU")
    lines = gpus.python("-c", COPIES).splitlines()[-4:]
    assert lines == ["3 Paper GPU 7 5", str(10 * 2**30), "True", "oneflow.float16"]
    report = gpus.report()
    # Besides OneFlow's own 2^20 zeros and ones: two of 4 bytes, two of 2.
    assert report.copies["h2d"] == (1 + 4, 4000 + 12 * 2**20)
    assert report.h2d["pageable"].bytes == 4000 + 12 * 2**20
    assert report.copies["d2h"] == (1, 4000)
    assert report.waits["cudaMemcpy"] == 4
    assert report.launches("CastFunctor", "half") == 1
    assert list(report.peak) == [1]
    assert report.peak[1] >= 12 * 2**20


def test_difference_of_two_runs(fake_gpus):
    gpus = fake_gpus()
    reports = []
    for steps in (1, 3):
        gpus.python("-c", DOWN, steps)
        reports.append(gpus.report())
    step = reports[1] - reports[0]
    assert step.copies["d2h"] == (2, 8000)
    assert step.copies["h2d"] == (0, 0)
    assert step.launches("FillGpu", "float") == 2
    assert step.waits["cudaMemcpy"] == 0


def test_memory_ends(fake_gpus):
    gpus = fake_gpus(memory_gib=6, used_gib=2)
    out = gpus.python("-c", FILL, status=-signal.SIGABRT)
    assert "3 GiB" in out
    assert "4 GiB" not in out
    assert "out of memory" in out
    report = gpus.report()
    assert 3 * 2**30 < report.peak[0] <= 4 * 2**30


@pytest.mark.parametrize("error", [fake.NO_DRIVER_NEW_ENOUGH, fake.NO_DEVICE])
def test_no_device(fake_gpus, error):
    gpus = fake_gpus(error=error)
    out = gpus.python("-c", "import oneflow as flow; print(flow.cuda.is_available())")
    assert out.splitlines()[-1] == "False"
    assert set(gpus.report().calls) == {"cudaGetDeviceCount"}


def test_no_machine_code_for_newer_devices(fake_gpus):
    code = "import oneflow as flow; print(flow.ones(2, device='cuda').numpy())"
    out = fake_gpus(capability=(9, 0)).python("-c", code, status=-signal.SIGABRT)
    assert "no kernel image is available" in out


def test_no_kernel_for_an_element_type(fake_gpus):
    code = "import oneflow as flow; x = flow.ones(4, 4, dtype=flow.int8, device='cuda'); x @ x"
    out = fake_gpus().python("-c", code, status=1)
    assert "Cannot find the kernel" in out


def test_a_forked_process_may_not_use_it(fake_gpus):
    gpus = fake_gpus()
    assert gpus.python("-c", FORK).splitlines()[-1] == str(int(signal.SIGABRT))
    assert gpus.report().forked == {"cudaGetDeviceCount": 1}


def test_what_is_not_there_is_reported(fake_gpus):
    code = "import oneflow as flow; flow.nn.Conv2d(1, 1, 3).cuda()(flow.ones(1, 1, 5, 5).cuda())"
    gpus = fake_gpus()
    out = gpus.python("-c", code, status=-signal.SIGABRT)
    assert "cudnnCreateFilterDescriptor is not implemented" in out
    assert gpus.report().unimplemented == {"cudnnCreateFilterDescriptor": 1}


def test_collective(fake_gpus, tmp_path):
    gpus = fake_gpus(count=2)
    path = tmp_path / "script.py"
    path.write_text(ALL_REDUCE)
    gpus.python("-m", "libai_ext.launch", "--nproc-per-node", 2, path)
    for rank in (0, 1):
        report = gpus.report(rank)
        assert report.collectives == {"ncclAllReduce": (1, 4000)}
        assert report.calls["ncclAllReduce float"] == 1
        assert list(report.peak) == [rank]


@pytest.mark.slow
def test_overflows_are_per_step(fake_gpus):
    gpus = fake_gpus(count=2, overflow=[0, 1, 0, 1])
    worker = "tests/fakecuda/overflow_worker.py"
    out = gpus.python("-m", "libai_ext.launch", "--nproc-per-node", 2, worker)
    assert "scale [256.]" in out  # 1024, halved twice
    for rank in (0, 1):
        report = gpus.report(rank)
        assert report.finite_checks == {"finite": 4, "overflow": 2}
        assert report.launches("MultiCountNotFiniteGpu") == 6 * (2 + 1)
