from __future__ import annotations

import re

import pytest
from omegaconf import OmegaConf

from libai_ext.engine import precision
from libai_ext.kernels import Status


def _train(amp: bool):
    return OmegaConf.create({"amp": {"enabled": amp}})


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("amp", [True, False])
def test_only_gpus_scale_the_loss(monkeypatch, amp, device):
    monkeypatch.setattr(precision, "device_type", lambda: device)
    assert precision.scales_loss(_train(amp)) == (amp and device == "cuda")


@pytest.mark.parametrize(
    "amp, device, chosen, text",
    [
        (True, "cpu", True, "bfloat16 products (AMX), float32 for all else"),
        (True, "cuda", False, "float16 products, float32 weights and optimizer, the loss scaled"),
        (False, "cpu", False, "float32"),
    ],
)
def test_the_products_of_a_run(monkeypatch, amp, device, chosen, text):
    calls = []
    monkeypatch.setattr(precision, "device_type", lambda: device)
    monkeypatch.setattr(precision.kernels, "bfloat16_instructions", lambda: "AMX")
    monkeypatch.setattr(precision.kernels, "use_bfloat16_products", calls.append)
    precision.choose_products(_train(amp))
    assert calls == [chosen]
    assert precision.describe(_train(amp)) == text


@pytest.mark.parametrize(
    "status, instructions, message",
    [
        (
            Status(False, "native kernels: off: no C++ compiler"),
            "",
            "need the native kernels; .*C[+]",
        ),
        (Status(True, ""), "", r"need a CPU with avx512_bf16 .* compiler .* \(g\+\+ 10 or later\)"),
        (Status(True, ""), "AVX-512", None),
    ],
)
def test_what_a_cpu_needs(monkeypatch, status, instructions, message):
    monkeypatch.setattr(precision.kernels, "load", lambda: status)
    monkeypatch.setattr(precision.kernels, "bfloat16_instructions", lambda: instructions)
    problem = precision.cpu_problem()
    if message is None:
        assert problem is None
    else:
        assert re.match(message, problem)
