"""Time that a save of a ViT-B pre-training state blocks training, against a direct write.

    .venv/bin/python tools/benchmarks/save.py [--pairs N] [--folder FOLDER]

The state is that of AdamW after a step: weights and two moments, 1.3 GB. Prints medians of four
times: `save` blocks training; the checkpoint is complete on disk, with fsync and checksums;
`flow.save` of the same state without these; verifying the checkpoint.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from libai_ext.startup import start

start()

import oneflow as flow  # noqa: E402

from libai_ext.checkpoint import manifest  # noqa: E402
from libai_ext.checkpoint.checkpointer import Checkpointer  # noqa: E402


class Model(flow.nn.Module):
    """Tensors of the sizes of a masked autoencoder with a ViT-B encoder, 12 + 8 layers."""

    def __init__(self):
        super().__init__()
        place = dict(placement=flow.placement("cpu", [0]), sbp=flow.sbp.broadcast)
        shapes = [(768, 768), (1, 197, 768), (512, 768), (768, 512)]
        for width, depth in ((768, 12), (512, 8)):
            for outputs, inputs in ((3, 1), (1, 1), (4, 1), (1, 4)):
                shapes += depth * [(outputs * width, inputs * width), (outputs * width,)]
            shapes += 4 * depth * [(width,)]
        for number, shape in enumerate(shapes):
            setattr(self, f"p{number}", flow.nn.Parameter(flow.randn(*shape, **place)))


def timed(function) -> float:
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--folder", default=None, help="for 4 GB of temporary files")
    args = parser.parse_args()
    model = Model()
    optimizer = flow.optim.AdamW(model.parameters(), lr=1e-3)
    sum(parameter.sum() for parameter in model.parameters()).backward()
    optimizer.step()
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        checkpointer = Checkpointer(model, folder, optimizer=optimizer)
        plain = Path(folder) / "plain"
        for number in range(args.pairs + 1):
            begin = time.perf_counter()
            stopped = timed(lambda: checkpointer.save("model_final", 0))
            checkpointer.finish()
            row = {"loop stopped": stopped, "whole on disk": time.perf_counter() - begin}
            path = Path(folder) / "model_final"
            row["verified"] = timed(lambda path=path: manifest.verify(path))
            plain.mkdir()
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            row["flow.save"] = timed(
                lambda state=state: [
                    flow.save(value, plain / key, global_dst_rank=0) for key, value in state.items()
                ]
            )
            shutil.rmtree(plain)
            if number:  # the first is a warm-up
                for name, value in row.items():
                    seconds.setdefault(name, []).append(value)
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    for name, values in seconds.items():
        print(f"{name:14s} {statistics.median(values):6.2f} s")
    pairs = zip(seconds["loop stopped"], seconds["flow.save"])
    ratio = statistics.median(stopped / save for stopped, save in pairs)
    print(f"{size / 1e9:.2f} GB; loop stopped / flow.save: {ratio:.2f}")


if __name__ == "__main__":
    main()
