"""What a run sets up for its device."""

from __future__ import annotations

import pytest

from libai_ext import device
from libai_ext.engine import setup


@pytest.mark.parametrize("allowed", [True, False])
@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_the_scheduler_sleeps_in_runs_on_cpu(kind, allowed, monkeypatch, caplog):
    """On a GPU it would start kernels later."""
    calls = []
    monkeypatch.setattr(setup.kernels, "sleep_in_waits", lambda: calls.append(1) or allowed)
    monkeypatch.setattr(setup, "out_of_memory", lambda cfg: "")
    monkeypatch.setattr(setup, "set_out_of_memory_advice", lambda advice: None)
    monkeypatch.setattr(device, "current", lambda: device.Device(kind, "for the test"))
    setup._set_up_device({})
    assert len(calls) == (kind == "cpu")
    assert ("keep cores busy" in caplog.text) == (kind == "cpu" and not allowed)
