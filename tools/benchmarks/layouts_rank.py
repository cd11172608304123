"""One rank of tools/benchmarks/layouts.py: a few training steps on random images, then its memory.

Writes ``rank<r>.json`` into the given folder: bytes of the parameters and of AdamW's two moments in
this process, and the rise of its resident memory above that of an idle engine.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from libai_ext.engine import cli as entry
from libai_ext.startup import start

STEPS = 3


def resident(field: str) -> int:
    """``VmRSS`` (now) or ``VmHWM`` (peak), in bytes."""
    text = Path("/proc/self/status").read_text()
    return 1024 * int(text.split(field + ":")[1].split()[0])


def program() -> None:
    start()
    import oneflow as flow
    from libai.models import build_model
    from libai.utils import distributed as dist

    from libai_ext.config.lazy_config import fresh
    from libai_ext.engine.graph import Graph
    from libai_ext.optim.schedule import warmup_cosine
    from libai_ext.placement import batch_sbp, set_layout, to_global
    from projects.MAE.run import resolve

    folder, config_file, *options = sys.argv[1:]
    cfg = resolve(config_file, options)
    train = cfg.train
    set_layout(train.dist)
    flow.manual_seed(0)
    idle = resident("VmRSS")

    model = build_model(fresh(cfg.model)).train()
    optimizer = flow.optim.AdamW(model.parameters(), lr=1e-4)
    rng = np.random.default_rng(0)
    batch = train.global_batch_size
    images = rng.normal(size=(batch, cfg.model.in_chans, *cfg.model.img_size)).astype(np.float32)
    inputs = dict(
        images=to_global(images, batch_sbp()),
        noise=to_global(rng.random((batch, model.num_patches), dtype=np.float32), batch_sbp()),
    )
    graph = None
    if cfg.graph.enabled:
        graph = Graph(model, optimizer, warmup_cosine(optimizer, STEPS, 0))
    for _ in range(STEPS):
        if graph is not None:
            loss = graph(**inputs)["losses"]
        else:
            loss = model(**inputs)["losses"]
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        dist.tton(loss)
    flow.comm.barrier()

    rank = flow.env.get_rank()
    if graph is not None:
        moments = [t for name, t in graph.state_dict().items() if name.endswith(("-m", "-v"))]
    else:
        states = (optimizer._state[parameter] for parameter in model.parameters())
        moments = [state[name] for state in states for name in ("exp_avg", "exp_avg_sq")]
    held = sum(
        tensor.to_local().numel() * tensor.element_size()
        for tensor in [*model.parameters(), *moments]
        if rank in np.ravel(tensor.placement.ranks)
    )
    Path(folder, f"rank{rank}.json").write_text(
        json.dumps(dict(states=held, rise=resident("VmHWM") - idle))
    )


if __name__ == "__main__":
    entry.run(program)
