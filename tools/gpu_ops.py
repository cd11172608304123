"""Compare each op of the models on GPU and CPU, forward and backward: a line of JSON each.

    .venv/bin/python tools/gpu_ops.py

tools/check_gpu.py runs it. The first line describes the GPU. An error is the largest difference
divided by the largest value of the CPU's float32 result.
"""

from __future__ import annotations

import json
import os
from typing import Callable, NamedTuple

import numpy as np

from libai_ext.engine import cli as entry
from libai_ext.startup import start

# Other order of sums; rounding of inputs and results to eleven bits.
LIMITS = {"float32": 1e-5, "float16": 1e-2}
B, L, D, HEADS = 8, 49, 96, 3


class Case(NamedTuple):
    name: str
    function: Callable
    # Shapes of the inputs, which have a normal distribution.
    shapes: tuple
    # False if mixed precision keeps the op in float32.
    half: bool = True


def main() -> None:
    # Tensor cores round the inputs of float32 products to eleven bits. Training may do so, a
    # comparison must not.
    os.environ.setdefault("ONEFLOW_EP_CUDA_ENABLE_TF32_EXECUTION", "0")
    start()
    import oneflow as flow

    from libai_ext import device

    gpu = device.choose("cuda")
    facts = dict(gpu._asdict(), text=gpu.describe(), count=flow.cuda.device_count())
    facts.update(driver=device.driver_version(), oneflow=flow.__version__)
    print(json.dumps({"device": facts}), flush=True)
    for case in cases():
        for precision in ("float32", "float16") if case.half else ("float32",):
            print(json.dumps(check(case, precision)), flush=True)
    for name, build in optimizers().items():
        print(json.dumps(check_optimizer(name, build)), flush=True)


def cases() -> list[Case]:
    import oneflow as flow

    from libai_ext.compat.layer_norm import layer_norm
    from libai_ext.layers.patch_embedding import patchify
    from projects.MAE.modeling.loss import masked_mean, normalize_patches, squared_error
    from projects.MAE.modeling.masking import gather_tokens, random_masking
    from projects.MAE.modeling.vit import cross_entropy

    tokens, noise = (B, L, D), (B, L)

    def order(values):
        return flow.cat([part.float().flatten() for part in random_masking(values, L // 4)])

    def gathered(x, values):
        return gather_tokens(x, flow.argsort(values, dim=1)[:, : L // 4])

    def attention(x):
        query, key, value = (
            x.reshape(B, L, HEADS, 3, D // HEADS).permute(3, 0, 2, 1, 4)[part] for part in range(3)
        )
        scores = flow.matmul(query, key, transpose_b=True, alpha=0.2)
        return flow.matmul(flow.softmax(scores, dim=-1), value)

    def pixel_loss(prediction, target, values):
        error = squared_error(prediction, normalize_patches(target))
        return masked_mean(error, (values > 0).to(flow.float32))

    return [
        Case("matmul", lambda x, w: flow.matmul(x, w), (tokens, (D, 4 * D))),
        Case(
            "matmul, transposed", lambda x, w: flow.matmul(x, w, transpose_b=True), (tokens, (D, D))
        ),
        Case("attention", attention, ((B, L, 3 * D),)),
        Case("softmax", lambda x: flow.softmax(x, dim=-1), (tokens,)),
        Case("log_softmax", lambda x: flow.log_softmax(x, dim=-1), ((B, 100),)),
        Case("layer_norm", lambda x, w, b: layer_norm(x, w, b, 1e-6), (tokens, (D,), (D,))),
        Case("gelu", flow.nn.functional.gelu, (tokens,)),
        Case("add, a bias", lambda x, b: x + b, (tokens, (D,))),
        Case("add, position table", lambda x, t: x + t, (tokens, (1, L, D))),
        Case(
            "expand and concatenate",
            lambda x, t: flow.cat([t.expand(B, 1, D), x], dim=1),
            (tokens, (1, 1, D)),
        ),
        Case("slice and mean", lambda x: x[:, 1:].mean(dim=1), (tokens,)),
        Case("patches of an image", lambda x: patchify(x, 4, True), ((B, 3, 28, 28),)),
        Case("order of the noise", order, (noise,), half=False),
        Case("gather tokens", gathered, (tokens, noise), half=False),
        Case("pixel loss", pixel_loss, (tokens, tokens, noise), half=False),
        Case(
            "cross-entropy",
            lambda x, y: cross_entropy(x, flow.softmax(y, dim=-1)),
            ((B, 100), (B, 100)),
            half=False,
        ),
        Case("square root", lambda x: (x * x + 1).rsqrt(), (tokens,)),
    ]


def check(case: Case, precision: str) -> dict:
    """Compare the forward result, and the inputs' gradients from a weighted sum of the result."""
    import oneflow as flow

    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in case.shapes]

    def run(device: str, dtype) -> list[np.ndarray]:
        inputs = [flow.tensor(array, device=device).to(dtype).requires_grad_() for array in arrays]
        out = case.function(*inputs)
        weights = np.linspace(-1, 1, out.numel()).reshape(out.shape).astype(np.float32)
        if out.requires_grad:
            (out.float() * flow.tensor(weights, device=device)).sum().backward()
        parts = [out, *(x.grad for x in inputs if x.grad is not None)]
        return [part.float().numpy() for part in parts]

    return compare(
        case.name, precision, run("cpu", flow.float32), run("cuda", getattr(flow, precision))
    )


def compare(name: str, precision: str, expected, found) -> dict:
    error = max(
        float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-6)) for a, b in zip(expected, found)
    )
    # NaN counts as a difference.
    error = error if np.isfinite(error) else float("inf")
    return {"op": name, "precision": precision, "error": error, "limit": LIMITS[precision]}


def optimizers() -> dict[str, Callable]:
    import oneflow as flow

    from libai_ext.optim.lars import LARS

    return {
        "AdamW, three steps": lambda p: flow.optim.AdamW(p, lr=1e-2, weight_decay=0.05),
        "SGD, three steps": lambda p: flow.optim.SGD(p, lr=1e-2, momentum=0.9),
        "LARS, three steps": lambda p: LARS(p, lr=0.1),
    }


def check_optimizer(name: str, build: Callable) -> dict:
    import oneflow as flow

    rng = np.random.default_rng(0)
    weight, *gradients = rng.standard_normal((4, D, D)).astype(np.float32)

    def run(device: str) -> np.ndarray:
        parameter = flow.nn.Parameter(flow.tensor(weight, device=device))
        optimizer = build([parameter])
        for gradient in gradients:
            parameter.grad = flow.tensor(gradient, device=device)
            optimizer.step()
        return parameter.detach().numpy()

    return compare(name, "float32", [run("cpu")], [run("cuda")])


if __name__ == "__main__":
    entry.run(main)
