"""What ``train.amp.enabled`` means: float16 and a loss scale on GPUs, bfloat16 products on CPU.

On CPU the kernels round the factors of each product, and nothing else changes: weights,
activations, sums and the optimizer are float32. bfloat16 has the range of float32, so that no loss
scale is needed.
"""

from __future__ import annotations

from omegaconf import DictConfig

from libai_ext import kernels
from libai_ext.placement import device_type


def scales_loss(train: DictConfig) -> bool:
    """Whether a run has a loss scale. ``train``: that node of its config."""
    return train.amp.enabled and device_type() == "cuda"


def cpu_problem() -> str | None:
    """Why mixed precision cannot be had on this CPU, as the end of a sentence; None if it can."""
    status = kernels.load()
    if not status.loaded:
        return f"need the native kernels; {status.message}"
    if not kernels.bfloat16_instructions():
        return (
            "need a CPU with avx512_bf16 (AMD from Zen 4 on, Intel Cooper Lake and from Sapphire "
            "Rapids on) and a compiler that knows it (g++ 10 or later)"
        )
    return None


def choose_products(train: DictConfig) -> None:
    """Set the kernels of this process up for a run, before its first product."""
    kernels.use_bfloat16_products(train.amp.enabled and device_type() == "cpu")


def describe(train: DictConfig) -> str:
    """A line for the summary of a run."""
    if not train.amp.enabled:
        return "float32"
    if device_type() == "cpu":
        return f"bfloat16 products ({kernels.bfloat16_instructions()}), float32 for all else"
    return "float16 products, float32 weights and optimizer, the loss scaled"
