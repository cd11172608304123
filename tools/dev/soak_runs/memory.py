"""Memory, open files and processes of one long job."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import psutil
from soak_runs.job import Job, make_images

MAX_GROWTH = 0.02  # of memory after warm-up


def monitor(folder: Path, iterations: int) -> bool:
    """Print memory, file descriptors and processes of one long job; returns whether they stay."""
    make_images(folder / "images")
    job = Job(folder / "images", folder / "job", 1, False, iterations)
    process = job.start()
    samples = []
    while process.poll() is None:
        time.sleep(0.5)
        metrics = job.folder / "metrics.jsonl"
        if not metrics.exists():
            continue
        try:
            family = psutil.Process(process.pid).children(recursive=True)
            trainer = max(family, key=lambda child: child.memory_info().rss)
            samples.append(
                (
                    metrics.read_bytes().count(b"\n"),
                    trainer.memory_info().rss,
                    trainer.num_fds(),
                    len(family),
                )
            )
        except (psutil.Error, ValueError):  # the job has just ended
            pass
    if process.returncode:
        raise RuntimeError(f"exit status {process.returncode}")
    first = [sample for sample in samples if 0.1 <= sample[0] / iterations < 0.2]
    last = [sample for sample in samples if 0.9 <= sample[0] / iterations < 1]
    print("              iterations 10-20 %    90-100 %")
    medians = [
        [float(np.median([s[k] for s in part])) for k in (1, 2, 3)] for part in (first, last)
    ]
    for name, before, after in zip(("memory, MiB", "open files", "processes"), *medians):
        scale = 2**20 if "MiB" in name else 1
        print(f"{name:12s} {before / scale:19.1f} {after / scale:11.1f}")
    growth = medians[1][0] / medians[0][0] - 1
    print(f"growth of memory: {100 * growth:.2f} %")
    return growth < MAX_GROWTH and medians[0][1:] == medians[1][1:]
