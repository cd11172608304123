"""Each case in a process of its own: kernels are loaded once in a process."""

import os
import subprocess
import sys

import pytest

HEADER = "import oneflow as flow; from libai_ext import kernels\n"
PLAIN_OPS = """
assert not kernels.is_loaded()
assert flow.matmul(flow.ones(2, 3), flow.ones(3, 2)).tolist() == [[3, 3], [3, 3]]
assert abs(flow.nn.functional.gelu(flow.ones(1)).item() - 0.841345) < 1e-5
"""


def _run(script, **environment):
    result = subprocess.run(
        [sys.executable, "-c", HEADER + script],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_in_time():
    out = _run(
        "first = kernels.load(); x = flow.ones(3)\n"
        "assert first.loaded and kernels.is_loaded()\n"
        "assert kernels.load() is first\n"
        "print(first.message)"
    )
    assert "native kernels: " in out
    assert len(out.splitlines()) == 1


@pytest.mark.parametrize(
    "earlier", ["flow.ones(3)", "flow.empty(0)", "flow.default_generator.manual_seed(1)"]
)
def test_too_late(earlier):
    _run(f"""
{earlier}
try:
    kernels.load()
except RuntimeError as error:
    assert "too late" in str(error)
else:
    raise AssertionError("not refused")
assert not kernels.is_loaded()
{PLAIN_OPS}
""")


def test_importing_more_than_oneflow_is_not_too_late():
    _run("import libai.layers, flowvision; flow.device('cpu'); assert kernels.load().loaded")


def test_turned_off():
    out = _run("print(kernels.load().message)" + PLAIN_OPS, LIBAI_EXT_NATIVE="0")
    assert out == "native kernels: off (LIBAI_EXT_NATIVE=0)\n"


def test_no_compiler(tmp_path):
    out = _run(
        "print(kernels.load().message)" + PLAIN_OPS,
        PATH=str(tmp_path),
        LIBAI_EXT_CACHE=str(tmp_path),
    )
    assert "several times slower" in out
    assert "apt-get install g++" in out
    assert len(out.splitlines()) == 1


def test_importing_the_package_does_not_import_oneflow():
    """`threads` must be able to set the environment first."""
    script = "import sys, libai_ext.kernels.threads; assert 'oneflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)
