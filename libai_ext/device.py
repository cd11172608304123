"""Chooses and checks the device of this process.

A GPU that cannot be used is an error; training never falls back to the CPU in silence.
"""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path
from typing import NamedTuple

from libai_ext.errors import ConfigError

# Root of the system's files about its hardware; tests replace it.
ROOT = Path("/")
# OneFlow 0.9.0 has machine code for 6.0, 6.1, 7.0, 7.5, 8.0 and 8.6, and no PTX. Code also runs on
# later minor versions of its major version (CUDA C++ Programming Guide, "Binary Compatibility"):
# 8.7 and 8.9 run the code of 8.6, 9.0 has none.
MIN_CAPABILITY, MAX_CAPABILITY = (6, 0), (8, 9)
# Of every program built with CUDA 11 (NVIDIA, CUDA Compatibility, "Minor Version Compatibility").
MIN_DRIVER = "450.80.02"
# Memory in use at the start of a run that needs no warning: this process has its kernels there.
_OWN_SHARE, _OWN_GIB = 0.1, 1.0
_HOST = socket.gethostname()
_GPU_FILES = ("proc/driver/nvidia/gpus/*", "dev/nvidia[0-9]*", "usr/lib/wsl/lib/libcuda.so.1")


class Device(NamedTuple):
    """The device of this process, in its state at the time of the choice."""

    type: str  # "cpu" or "cuda"
    why: str
    index: int = 0  # type: ignore[assignment]  # a tuple has a method of this name
    name: str = ""
    capability: tuple[int, int] = (0, 0)
    total_gib: float = 0.0
    used_gib: float = 0.0  # by all processes

    def describe(self) -> str:
        if self.type == "cpu":
            return f"cpu ({self.why})"
        capability = "{}.{}".format(*self.capability)
        return f"cuda ({self.why}): {self.label()}, capability {capability}, {self.free()}"

    def label(self) -> str:
        return f"GPU {self.index} of {_HOST} ({self.name})"

    def free(self) -> str:
        """Free memory at the start of the run."""
        return f"{self.total_gib - self.used_gib:.2f} of {self.total_gib:.2f} GiB free"

    def in_use(self) -> str:
        """A warning if another process uses memory of this GPU, else empty."""
        if self.used_gib <= max(_OWN_GIB, _OWN_SHARE * self.total_gib):
            return ""
        return (
            f"another process uses {self.label()}, {self.free()} at the start: nvidia-smi lists "
            "the processes"
        )


_chosen: tuple[str | None, Device] | None = None
_engine_reason = ""


def read_engine_log(text: str) -> None:
    """Keep the reason why the engine has no GPU, from its output at the start."""
    global _engine_reason
    found = re.search(r"cuda_device_descriptor_class\.cpp:\d+\] (.+)", text)
    _engine_reason = found[1].strip() if found else ""


def choose(wanted: str | None = None) -> Device:
    """Choose the device, once for each ``wanted``. OneFlow must be started.

    Args:
        wanted: ``"cpu"``, ``"cuda"``, or None: a GPU if there is one.

    Raises:
        ConfigError: there is no such device, or it cannot be used.
    """
    global _chosen
    if _chosen is None or _chosen[0] != wanted:
        _chosen = wanted, _decide(wanted)
    return _chosen[1]


def current() -> Device:
    """The device chosen last; in programs without a config, the default."""
    return _chosen[1] if _chosen else choose()


def _decide(wanted: str | None) -> Device:
    if wanted == "cpu":
        return Device("cpu", "train.device=cpu")
    count = _count()
    if count:
        _check_processes(count)
        return _gpu(f"train.device={wanted}" if wanted else "the default if there is a GPU")
    hidden = _hides_all(os.environ.get("CUDA_VISIBLE_DEVICES"))
    found = hardware()
    if wanted is None and hidden:
        return Device("cpu", "CUDA_VISIBLE_DEVICES hides all GPUs")
    if wanted is None and not found:
        return Device("cpu", "no GPU in this machine")
    if hidden:
        raise ConfigError("train.device=cuda, but CUDA_VISIBLE_DEVICES hides all GPUs: unset it")
    raise ConfigError(_why_unusable(found))


def _count() -> int:
    import oneflow as flow

    # After most driver errors, the engine aborts when it is asked.
    return 0 if _engine_reason else flow.cuda.device_count()


def _hides_all(visible: str | None) -> bool:
    """CUDA stops at the first entry that is neither a number nor a name of a device."""
    return visible is not None and not re.match(r"\s*(\d|GPU-|MIG-)", visible)


def hardware() -> str:
    """A file that shows that there is an NVIDIA GPU, usable or not, or empty."""
    for folder in sorted(ROOT.glob("sys/bus/pci/devices/*")):
        # Class 03: display controllers, including those without a display (0302).
        if _read(folder / "vendor") == "0x10de" and _read(folder / "class").startswith("0x03"):
            return str(folder)
    files = [str(path) for pattern in _GPU_FILES for path in sorted(ROOT.glob(pattern))]
    return files[0] if files else ""


def driver_version() -> str:
    """Version of the loaded NVIDIA driver, or empty."""
    found = re.search(r"Module\D.*?(\d+\.\d[\d.]*)", _read(ROOT / "proc/driver/nvidia/version"))
    return found[1] if found else ""


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _why_unusable(found: str) -> str:
    import oneflow as flow
    from oneflow import sysconfig

    if not found:
        return (
            f"train.device=cuda, but {_HOST} has no NVIDIA GPU: set train.device=cpu or null to "
            "run on the CPU"
        )
    cuda = sysconfig.get_cuda_version()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return (
        f"{_HOST} has an NVIDIA GPU ({found}) that OneFlow cannot use: "
        f"{_engine_reason or 'CUDA finds no device'}\n"
        f"  driver found: {driver_version() or 'none'}\n"
        f"  driver needed: {MIN_DRIVER} or newer, for OneFlow {flow.__version__} with CUDA "
        f"{cuda // 1000}.{cuda % 1000 // 10}\n"
        + (f"  CUDA_VISIBLE_DEVICES: {visible}\n" if visible is not None else "")
        + "Install or load the driver; in a container or a job, request the GPU. To use the CPU, "
        "set train.device=cpu (for a tool, CUDA_VISIBLE_DEVICES= in the environment)."
    )


def _check_processes(count: int) -> None:
    import oneflow as flow

    processes = flow.env.get_world_size() // flow.env.get_node_size()
    if processes > count:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        seen = "" if visible is None else f" (CUDA_VISIBLE_DEVICES={visible})"
        raise ConfigError(
            f"{processes} processes on {_HOST}, but {count} GPU{'s' * (count > 1)}{seen}; each "
            f"process needs its own: start at most {count} (N of tools/train.sh), or list more in "
            "CUDA_VISIBLE_DEVICES"
        )


def _gpu(why: str) -> Device:
    import oneflow as flow

    index = flow._oneflow_internal.GetCudaDeviceIndex()
    facts = flow._oneflow_internal._get_device_properties(index)
    capability = facts.major, facts.minor
    if not MIN_CAPABILITY <= capability <= MAX_CAPABILITY:
        raise ConfigError(
            f"GPU {index} of {_HOST} ({facts.name}) has compute capability "
            f"{facts.major}.{facts.minor}; OneFlow {flow.__version__} runs on "
            "{}.{} to {}.{}".format(*MIN_CAPABILITY, *MAX_CAPABILITY)
            + ": choose such a GPU by CUDA_VISIBLE_DEVICES, or set train.device=cpu"
        )
    total = facts.total_memory / 2**30
    return Device("cuda", why, index, facts.name, capability, total, used_gib())


def used_gib() -> float:
    """Memory of this process's GPU in use by all processes. Waits for the GPU."""
    import oneflow as flow

    engine = flow._oneflow_internal
    # The engine measures the current device of the calling thread, which is 0 at first.
    engine.SetCudaDeviceIndex(engine.GetCudaDeviceIndex())
    return engine.GetCUDAMemoryUsed() / 1024
