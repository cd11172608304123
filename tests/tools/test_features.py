"""Which GPU each process of tools/features.py gets."""

from __future__ import annotations

import argparse

import pytest

from libai_ext import device
from libai_ext.errors import ConfigError
from tools import features


@pytest.fixture
def two_gpus(monkeypatch, tmp_path):
    for name in ("0000:01:00.0", "0000:02:00.0"):
        (tmp_path / "proc/driver/nvidia/gpus" / name).mkdir(parents=True)
    monkeypatch.setattr(device, "ROOT", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_one_gpu_each(two_gpus, monkeypatch):
    assert features.visible_gpus(None) == features.visible_gpus("cuda") == ["0", "1"]
    assert features.visible_gpus("cpu") == []
    for named, expected in (("3,GPU-ab", ["3", "GPU-ab"]), ("", []), ("-1", [])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
        assert features.visible_gpus(None) == expected


def test_processes_start_with_their_own_gpu(two_gpus, monkeypatch):
    started = []

    class Started:
        def __init__(self, command, env):
            started.append((command[-2:], env["CUDA_VISIBLE_DEVICES"]))

        def kill(self):
            pass

        wait = kill

    monkeypatch.setattr(features.subprocess, "Popen", Started)
    args = argparse.Namespace(processes=2, share=0, device=None)
    with features.other_processes(args):
        assert started == [(["--share", "1"], "1")]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")  # as the one that was started has it
    args.share = 1
    with features.other_processes(args) as others:
        assert others == []
    args.share = 0
    with pytest.raises(ConfigError, match="--processes 2, but 1 GPUs: one for each"):
        with features.other_processes(args):
            pass


def test_no_gpu(monkeypatch, tmp_path):
    monkeypatch.setattr(device, "ROOT", tmp_path)
    assert features.visible_gpus(None) == []
