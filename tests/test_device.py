"""Which device a run gets, and why, without any hardware."""

from __future__ import annotations

from types import SimpleNamespace

import oneflow as flow
import pytest

from libai_ext import device
from libai_ext.errors import ConfigError
from libai_ext.placement import device_type, layer_placement

INSUFFICIENT = "CUDA driver version is insufficient for CUDA runtime version"
ENGINE_LINE = f"W20250101 00:00:00.000001 77 cuda_device_descriptor_class.cpp:48] {INSUFFICIENT}\n"


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    """A machine without a GPU; nothing is chosen yet."""
    monkeypatch.setattr(device, "ROOT", tmp_path)
    monkeypatch.setattr(device, "_chosen", None)
    monkeypatch.setattr(device, "_engine_reason", "")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path


def put(root, path, text=""):
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def put_pci(root, vendor="0x10de", kind="0x030200"):
    put(root, "sys/bus/pci/devices/0000:01:00.0/vendor", f"{vendor}\n")
    put(root, "sys/bus/pci/devices/0000:01:00.0/class", f"{kind}\n")


def refusal(wanted=None):
    with pytest.raises(ConfigError) as caught:
        device.choose(wanted)
    return str(caught.value)


@pytest.fixture
def gpus(monkeypatch):
    """Makes the engine see GPUs, the second of which is this process's."""

    def make(capability=(8, 0), count=2, used_gib=0.5):
        facts = SimpleNamespace(
            name="Test GPU", major=capability[0], minor=capability[1], total_memory=16 * 2**30
        )
        engine = flow._oneflow_internal
        monkeypatch.setattr(flow.cuda, "device_count", lambda: count)
        monkeypatch.setattr(engine, "GetCudaDeviceIndex", lambda: 1)
        monkeypatch.setattr(engine, "_get_device_properties", {1: facts}.__getitem__)
        monkeypatch.setattr(device, "used_gib", lambda: used_gib)

    return make


def test_without_a_gpu_the_cpu_is_the_default():
    assert device.choose().describe() == "cpu (no GPU in this machine)"
    assert device_type() == "cpu"


def test_cpu_is_insisted_on_where_there_is_a_gpu(gpus):
    gpus()
    assert device.choose("cpu").describe() == "cpu (train.device=cpu)"
    assert (device_type(), layer_placement(0).type) == ("cpu", "cpu")


@pytest.mark.parametrize(
    "wanted, why", [(None, "the default if there is a GPU"), ("cuda", "train.device=cuda")]
)
def test_a_gpu_and_why(gpus, wanted, why):
    gpus()
    text = device.choose(wanted).describe()
    assert text.startswith(f"cuda ({why}): GPU 1 of ")
    assert text.endswith(" (Test GPU), capability 8.0, 15.50 of 16.00 GiB free")
    assert device_type() == "cuda"


def test_a_program_without_a_config_gets_the_default(gpus):
    gpus()
    assert device_type() == "cuda"


@pytest.mark.parametrize("capability", [(6, 0), (6, 2), (7, 2), (8, 6), (8, 7), (8, 9)])
def test_capabilities_that_run(gpus, capability):
    gpus(capability)
    assert device.choose().capability == capability


@pytest.mark.parametrize("capability", [(3, 7), (5, 2), (9, 0), (10, 0), (12, 0)])
def test_capabilities_without_code(gpus, capability):
    gpus(capability)
    text = refusal()
    assert "GPU 1 of " in text and "(Test GPU) has compute capability " in text
    assert "{}.{}; OneFlow 0.9.0 runs on 6.0 to 8.9".format(*capability) in text


def test_more_processes_than_gpus(gpus, monkeypatch):
    gpus()
    monkeypatch.setattr(flow.env, "get_world_size", lambda: 6)
    monkeypatch.setattr(flow.env, "get_node_size", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,3")
    text = refusal()
    assert text.startswith("3 processes on ") and "but 2 GPUs (CUDA_VISIBLE_DEVICES=0,3)" in text
    assert "start at most 2 (N of tools/train.sh)" in text


@pytest.mark.parametrize("used, warned", [(1.5, False), (1.7, True)])
def test_a_gpu_in_use(gpus, used, warned):
    gpus(used_gib=used)
    warning = device.choose().in_use()
    assert bool(warning) == warned
    assert not warned or "14.30 of 16.00 GiB free" in warning


@pytest.mark.parametrize(
    "sign",
    [
        "proc/driver/nvidia/gpus/0000:01:00.0/information",
        "dev/nvidia0",
        "usr/lib/wsl/lib/libcuda.so.1",
    ],
)
def test_signs_of_a_gpu(machine, sign):
    put(machine, sign)
    assert device.hardware() in str(machine / sign)
    assert device.hardware()


@pytest.mark.parametrize(
    "vendor, kind, found",
    [
        ("0x10de", "0x030000", True),
        ("0x10de", "0x030200", True),
        ("0x10de", "0x040300", False),  # the sound of a display cable
        ("0x8086", "0x030000", False),
    ],
)
def test_display_controllers_of_nvidia_count(machine, vendor, kind, found):
    put_pci(machine, vendor, kind)
    assert bool(device.hardware()) == found


@pytest.mark.parametrize("wanted", [None, "cuda"])
def test_a_driver_that_is_too_old_is_an_error(machine, wanted, gpus):
    put_pci(machine)
    put(
        machine,
        "proc/driver/nvidia/version",
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  418.87.00  Thu Aug  8 15:35:46 CDT 2019\n",
    )
    gpus()  # not asked: the engine aborts for many errors of the driver
    device.read_engine_log(f"libibverbs not available\n{ENGINE_LINE}")
    text = refusal(wanted)
    assert f"has an NVIDIA GPU ({machine}/sys/bus/pci/devices/0000:01:00.0)" in text
    assert f"OneFlow cannot use: {INSUFFICIENT}\n" in text
    assert "driver found: 418.87.00\n" in text
    assert "driver needed: 450.80.02 or newer, for OneFlow 0.9.0 with CUDA 11.7\n" in text
    assert "train.device=cpu" in text
    assert device.choose("cpu").type == "cpu"


def test_no_driver(machine):
    put_pci(machine)
    text = refusal()
    assert "driver found: none\n" in text and "CUDA finds no device" in text


def test_a_driver_with_open_modules(machine):
    put(
        machine,
        "proc/driver/nvidia/version",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  525.85.12  Release Build\n",
    )
    assert device.driver_version() == "525.85.12"


def test_cuda_without_any_gpu():
    assert "has no NVIDIA GPU" in refusal("cuda")


@pytest.mark.parametrize("visible", ["", "-1", "NoDevFiles"])
def test_gpus_that_are_hidden_are_no_fault(machine, monkeypatch, visible):
    put_pci(machine)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert device.choose().describe() == "cpu (CUDA_VISIBLE_DEVICES hides all GPUs)"
    assert "hides all GPUs: unset it" in refusal("cuda")


def test_a_gpu_that_is_named_and_not_there_is_a_fault(machine, monkeypatch):
    put_pci(machine)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    assert "CUDA_VISIBLE_DEVICES: 7\n" in refusal()
