"""Mixed precision, ``train.amp.enabled``: a loss scale on GPUs, bfloat16 products on CPU.

On CPU the kernels round the factors of each product to bfloat16; weights, activations, sums and the
optimizer stay float32. bfloat16 has the range of float32, so it needs no loss scale.
"""

from __future__ import annotations

from omegaconf import DictConfig

from libai_ext import kernels
from libai_ext.placement import device_type


def scales_loss(train: DictConfig) -> bool:
    """Whether a run with the config node ``train`` has a loss scale."""
    return train.amp.enabled and device_type() == "cuda"


def cpu_problem() -> str | None:
    """Why this CPU has no mixed precision, as the end of a sentence; None if it has it."""
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
    """Set the precision of this process's products. Call it before the first product."""
    kernels.use_bfloat16_products(train.amp.enabled and device_type() == "cpu")


def describe(train: DictConfig) -> str:
    """The precision, for the summary of a run."""
    if not train.amp.enabled:
        return "float32"
    if device_type() == "cpu":
        return f"bfloat16 products ({kernels.bfloat16_instructions()}), float32 for all else"
    return "float16 products, float32 weights and optimizer, the loss scaled"
