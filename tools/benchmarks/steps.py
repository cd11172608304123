"""Time training steps against PyTorch, in pairs of alternating runs on this machine's CPU.

    .venv/bin/python tools/benchmarks/steps.py --oracle PYTHON_WITH_TORCH_AND_TRANSFORMERS [options]

The peers are Hugging Face's ViTMAE (pre-training) and ViT (fine-tuning; it has no stochastic
depth, ours runs with 0.1), and with `--official` the official code, with the same sizes, batch and
AdamW (fused). PyTorch runs in float32, in float32 with bfloat16 products, and under autocast with
bfloat16. Each side has its own process, which is stopped while another one runs; its first step
after that is slower and is not timed. Prints medians, the ratio within pairs, peak memory, and the
share of the best matrix-product rate of the same run.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import statistics
import subprocess
import sys
import time
from typing import Any

SIZES = {  # image, patch, encoder dim / depth / heads, decoder dim / depth / heads, batch
    "tiny": ((32, 32), 4, (192, 4, 3), (128, 2, 4), 64),
    "base": ((224, 224), 16, (768, 12, 12), (512, 8, 16), 8),
}
SIDES = {  # name: environment of the process
    "graph": {},
    "eager": {},
    "graph-bf16": {},  # products of bfloat16
    "eager-bf16": {},
    "graph-plain": {"LIBAI_EXT_NATIVE": "0"},
    "eager-plain": {"LIBAI_EXT_NATIVE": "0"},
}
# PyTorch's ways to compute; all ratios are to the first.
TORCH = ("PyTorch float32", "PyTorch bf16 products", "PyTorch autocast bf16")
TASKS = ("pretrain", "finetune")
CLASSES = 1000
GEMM, PRODUCTS = 2048, 5  # rows = columns = inner size of the product for the best rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--oracle", help="interpreter with torch and transformers")
    parser.add_argument(
        "--official", metavar="DIR", help="clone of facebookresearch/mae, to time it too"
    )
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=["graph", "eager"])
    parser.add_argument("--pairs", type=int, default=7, help="measurements of each side")
    parser.add_argument(
        "--serve", nargs=3, metavar=("SIDE", "TASK", "SIZE"), help=argparse.SUPPRESS
    )
    args = parser.parse_args()
    if args.serve:
        serve(*args.serve)
        return
    if args.oracle is None:
        parser.error("--oracle is needed, for example --oracle $(bash tools/dev/oracle.sh)")
    print(f"On {cpu_name()}, {os.cpu_count()} CPUs:\n")
    print(
        "| task | size | side | step, s | x PyTorch | x autocast | memory, GiB | of best product |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for task in args.tasks:
        for size in args.sizes:
            compare(task, size, args)


def compare(task: str, size: str, args: argparse.Namespace) -> None:
    """Alternate steps of PyTorch and each side; print a row of the table for each."""
    peers = {side: Peer(args.oracle, side, task, size) for side in TORCH}
    if args.official:
        path = {"PYTHONPATH": args.official}
        peers["official"] = Peer(args.oracle, "official", task, size, path)
    peers.update({side: Peer(sys.executable, side, task, size, SIDES[side]) for side in args.sides})
    times: dict[str, list[float]] = {name: [] for name in peers}
    rates = []
    for _ in range(args.pairs):
        for name, peer in peers.items():
            times[name].append(peer.ask("step"))
        rates += [peer.ask("gemm") for peer in peers.values()]
    best = max(rates)
    for name, peer in peers.items():
        ratios = [
            statistics.median(a / b for a, b in zip(times[name], times[peer]))
            for peer in (TORCH[0], TORCH[-1])
        ]
        seconds = statistics.median(times[name])
        share = flops(task, size) / seconds / best
        print(
            f"| {task} | {size} | {name} | {seconds:.3f} | {ratios[0]:.2f} | {ratios[1]:.2f} "
            f"| {peer.ask('memory'):.1f} | {100 * share:.0f} % |",
            flush=True,
        )
        peer.close()


def cpu_name() -> str:
    with open("/proc/cpuinfo") as info:
        return next(line for line in info if line.startswith("model name")).split(":")[1].strip()


class Peer:
    """A process that runs one command at a time."""

    def __init__(self, python: str, side: str, task: str, size: str, env=None):
        env = dict(os.environ, **(env or {}))
        if side in SIDES:  # as the launcher does
            from libai_ext.kernels.threads import configure_environment

            configure_environment(environ=env)
        self.process: Any = subprocess.Popen(
            [python, os.path.abspath(__file__), "--serve", side, task, size],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.process.stdout.readline()  # built and warmed up
        self.process.send_signal(signal.SIGSTOP)

    def ask(self, command: str) -> float:
        self.process.send_signal(signal.SIGCONT)
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        answer = float(self.process.stdout.readline())
        self.process.send_signal(signal.SIGSTOP)  # threads of some libraries spin when idle
        return answer

    def close(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.process.stdin.close()
        self.process.wait()


def serve(side: str, task: str, size: str) -> None:
    """Answer "step" with seconds, "gemm" with FLOP/s, "memory" with peak GiB."""
    make = our_side if side in SIDES else torch_side
    step, product = make(side, task, size)
    answers = {
        "step": lambda: seconds_when_warm(step),
        "gemm": lambda: 2 * PRODUCTS * GEMM**3 / seconds(product),
        "memory": lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }
    for _ in range(3):
        step()
    product()
    print("ready", flush=True)
    for line in sys.stdin:
        print(answers[line.strip()](), flush=True)
    sys.stdout.flush()
    os._exit(0)


def seconds(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def seconds_when_warm(step) -> float:
    """Mean seconds of steps over at least one second, after one that is not counted."""
    step()
    count, start = 0, time.perf_counter()
    while time.perf_counter() < start + 1:
        step()
        count += 1
    return (time.perf_counter() - start) / count


def inputs(task: str, size: str) -> dict:
    """Arguments of the model as arrays."""
    import numpy as np

    (height, width), patch, _, _, batch = SIZES[size]
    rng = np.random.default_rng(0)
    images = rng.normal(size=(batch, 3, height, width)).astype(np.float32)
    if task == "pretrain":
        noise = rng.random((batch, height * width // patch**2), dtype=np.float32)
        return {"images": images, "noise": noise}
    depth = SIZES[size][2][1]
    path_noise = rng.random((batch, depth, 2), dtype=np.float32)
    return {"images": images, "labels": rng.integers(0, CLASSES, batch), "path_noise": path_noise}


def torch_side(side: str, task: str, size: str):
    import torch

    model, loss_of = (official if side == "official" else hugging_face)(task, size)
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05, fused=True
    )
    if side == TORCH[1]:
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=side == TORCH[2])
    batch = {name: torch.from_numpy(array) for name, array in inputs(task, size).items()}
    batch.pop("path_noise", None)

    def step():
        with autocast:
            loss = loss_of(**batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    a = torch.ones(GEMM, GEMM, dtype=torch.bfloat16 if side == TORCH[2] else torch.float32)
    return step, lambda: [a @ a for _ in range(PRODUCTS)]


def hugging_face(task: str, size: str):
    """The model, and the loss of a batch."""
    import transformers

    image, patch, encoder, decoder, _ = SIZES[size]
    common = dict(
        image_size=image,
        patch_size=patch,
        hidden_size=encoder[0],
        num_hidden_layers=encoder[1],
        num_attention_heads=encoder[2],
        intermediate_size=4 * encoder[0],
        layer_norm_eps=1e-6,
    )
    if task == "finetune":
        config = transformers.ViTConfig(num_labels=CLASSES, **common)
        model = transformers.ViTForImageClassification(config)
    else:
        config = transformers.ViTMAEConfig(
            decoder_hidden_size=decoder[0],
            decoder_num_hidden_layers=decoder[1],
            decoder_num_attention_heads=decoder[2],
            decoder_intermediate_size=4 * decoder[0],
            **common,
        )
        model = transformers.ViTMAEForPreTraining(config)
    return model, lambda images, **rest: model(pixel_values=images, **rest).loss


def official(task: str, size: str):
    """The model, and the loss of a batch; it draws its own masks."""
    from functools import partial

    from torch import nn

    image, patch, encoder, decoder, _ = SIZES[size]
    common = dict(
        img_size=image[0],
        patch_size=patch,
        embed_dim=encoder[0],
        depth=encoder[1],
        num_heads=encoder[2],
        mlp_ratio=4,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )
    if task == "finetune":
        import models_vit

        more = dict(num_classes=CLASSES, drop_path_rate=0.1, global_pool=True, qkv_bias=True)
        model = models_vit.VisionTransformer(**common, **more)
        return model, lambda images, labels: nn.functional.cross_entropy(model(images), labels)
    import models_mae

    model = models_mae.MaskedAutoencoderViT(
        decoder_embed_dim=decoder[0],
        decoder_depth=decoder[1],
        decoder_num_heads=decoder[2],
        **common,
    )
    return model, lambda images, noise: model(images)[0]


def our_side(side: str, task: str, size: str):
    from libai_ext.startup import start

    start()
    import oneflow as flow
    from omegaconf import DictConfig

    from libai_ext import kernels
    from libai_ext.engine.graph import Graph
    from libai_ext.optim.param_groups import decay_matrices_only
    from libai_ext.optim.schedule import warmup_cosine
    from libai_ext.placement import batch_sbp, set_layout, to_global
    from projects.MAE.modeling.mae import MaskedAutoencoder
    from projects.MAE.modeling.vit import ViTClassifier

    kernels.use_bfloat16_products(side.endswith("bf16"))
    image, patch, encoder, decoder, _ = SIZES[size]
    sizes = dict(data_parallel_size=1, tensor_parallel_size=1, pipeline_parallel_size=1)
    set_layout(DictConfig(sizes))
    if task == "pretrain":
        model = MaskedAutoencoder(image, patch, 3, *encoder, *decoder).train()
    else:
        model = ViTClassifier(image, patch, 3, CLASSES, *encoder, drop_path=0.1).train()
    groups = decay_matrices_only(model, weight_decay=0.05)
    optimizer = flow.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95))
    batch = {name: to_global(array, batch_sbp()) for name, array in inputs(task, size).items()}

    def eager():
        loss = model(**batch)["losses"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.numpy(), last.numpy()

    # The loss is available before the backward pass, so a step ends when the parameter that is
    # updated last can be read.
    last = model.patch_embed.proj.bias
    a = flow.ones(GEMM, GEMM)

    def product():
        for _ in range(PRODUCTS):
            c = flow.matmul(a, a)
        c.numpy()

    if side.startswith("eager"):
        return eager, product
    schedule = warmup_cosine(optimizer, 1000, 0)
    graph = Graph(model=model, optimizer=optimizer, lr_scheduler=schedule)
    return lambda: (graph(**batch)["losses"].numpy(), last.numpy()), product


def flops(task: str, size: str) -> float:
    """FLOP of the matrix products of one step, forward and backward."""
    (height, width), patch, encoder, decoder, batch = SIZES[size]
    patches = height * width // patch**2
    kept = patches // 4 + 1
    pixels = 3 * patch**2

    def layers(tokens, dim, depth, _):
        return depth * (2 * 12 * tokens * dim**2 + 4 * tokens**2 * dim)

    forward = 2 * patches * pixels * encoder[0]
    if task == "finetune":
        return 3 * batch * (forward + layers(patches + 1, *encoder))
    forward += layers(kept, *encoder) + layers(patches + 1, *decoder)
    forward += 2 * decoder[0] * (kept * encoder[0] + patches * pixels)
    return 3 * batch * forward


if __name__ == "__main__":
    main()
