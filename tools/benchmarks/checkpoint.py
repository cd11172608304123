"""Time reading and writing a ViT-L-sized checkpoint against real PyTorch, in pairs.

    .venv/bin/python tools/benchmarks/checkpoint.py --oracle PYTHON_WITH_TORCH [options]

Both sides start with the file in the page cache. Both read into NumPy arrays: torch copies the
file, we map it and verify its checksums. Only our writing includes an fsync. Prints the median of
each side and of the ratios within pairs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import OrderedDict
from typing import Any

import numpy as np

WIDTH, DEPTH, DECODER_WIDTH, DECODER_DEPTH, PATCH, TOKENS = 1024, 24, 512, 8, 16, 197


def vit_large() -> OrderedDict[str, np.ndarray]:
    """The official pre-training state dict of ViT-L/16: names, shapes, random values; 1.3 GB."""
    pixels = 3 * PATCH**2
    shapes: dict[str, tuple[int, ...]] = {"cls_token": (1, 1, WIDTH)}
    shapes["pos_embed"] = (1, TOKENS, WIDTH)
    shapes["patch_embed.proj.weight"] = (WIDTH, 3, PATCH, PATCH)
    for blocks, depth, width in (
        ("blocks", DEPTH, WIDTH),
        ("decoder_blocks", DECODER_DEPTH, DECODER_WIDTH),
    ):
        for number in range(depth):
            for layer, outputs in (("attn.qkv", 3), ("attn.proj", 1), ("mlp.fc1", 4)):
                shapes[f"{blocks}.{number}.{layer}.weight"] = (outputs * width, width)
                shapes[f"{blocks}.{number}.{layer}.bias"] = (outputs * width,)
            shapes[f"{blocks}.{number}.mlp.fc2.weight"] = (width, 4 * width)
            for layer in ("mlp.fc2", "norm1", "norm2"):
                shapes[f"{blocks}.{number}.{layer}.bias"] = (width,)
    shapes["decoder_embed.weight"] = (DECODER_WIDTH, WIDTH)
    shapes["decoder_pred.weight"] = (pixels, DECODER_WIDTH)
    rng = np.random.default_rng(0)
    return OrderedDict(
        (name, rng.standard_normal(shape, np.float32)) for name, shape in shapes.items()
    )


def serve(side: str) -> None:
    """Answer lines "read PATH" and "write PATH" with seconds; for the side "torch" or "ours"."""
    if side == "torch":
        import torch

        def read(path):
            state = torch.load(path, weights_only=True)["model"]
            return {name: tensor.numpy() for name, tensor in state.items()}

        def write(state, path):
            torch.save({"model": state}, path)

        def prepare(state):
            return OrderedDict((name, torch.from_numpy(array)) for name, array in state.items())
    else:
        from libai_ext.checkpoint import torch_file, torch_writer

        def read(path):
            return torch_file.load(path)["model"]

        def write(state, path):
            torch_writer.save({"model": state}, path)

        def prepare(state):
            return state

    state = None
    for line in sys.stdin:
        action, path = line.split()
        if action == "write" and state is None:
            state = prepare(vit_large())
        started = time.perf_counter()
        arrays = read(path) if action == "read" else write(state, path) or {}
        seconds = time.perf_counter() - started
        checksum = sum(float(array.sum(dtype=np.float64)) for array in arrays.values())
        print(seconds, checksum, flush=True)


def main() -> None:
    """Run the pairs and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--oracle", help="a Python with PyTorch")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--folder", default=None, help="for 2.6 GB of temporary files")
    parser.add_argument("--serve", choices=("torch", "ours"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
        return
    interpreters = {"torch": options.oracle, "ours": sys.executable}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        servers: dict[str, Any] = {
            side: subprocess.Popen(
                [interpreter, __file__, "--serve", side],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for side, interpreter in interpreters.items()
        }

        def ask(side: str, action: str, path: str) -> tuple[float, float]:
            servers[side].stdin.write(f"{action} {path}\n")
            servers[side].stdin.flush()
            seconds, checksum = map(float, servers[side].stdout.readline().split())
            return seconds, checksum

        paths = {side: os.path.join(folder, f"{side}.pth") for side in servers}
        for action in ("write", "read"):
            _measure(ask, action, paths, options.pairs)
        for server in servers.values():
            server.stdin.close()
            server.wait()


def _measure(ask, action: str, paths: dict[str, str], pairs: int) -> None:
    """One uncounted pair, then `pairs` in alternating order; both read the file of torch."""
    times: dict[str, list[float]] = {side: [] for side in paths}
    for number in range(pairs + 1):
        checksums = set()
        for side in sorted(paths, reverse=number % 2 == 1):
            path = paths["torch"] if action == "read" else paths[side]
            seconds, checksum = ask(side, action, path)
            checksums.add(round(checksum, 3))
            if number:
                times[side].append(seconds)
        assert len(checksums) == 1, f"the two sides read different numbers: {checksums}"
    medians = {side: 1000 * statistics.median(values) for side, values in times.items()}
    ratio = statistics.median(ours / torch for ours, torch in zip(times["ours"], times["torch"]))
    print(f"{action}: ours {medians['ours']:.0f} ms, torch {medians['torch']:.0f} ms, "
          f"ratio {ratio:.2f} (median of {pairs} pairs)")  # fmt: skip


if __name__ == "__main__":
    main()
