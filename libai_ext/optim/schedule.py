"""Learning-rate schedules that run in ``nn.Graph`` and in eager mode alike."""

from __future__ import annotations

import oneflow as flow
from oneflow.optim.lr_scheduler import CosineAnnealingLR, WarmupLR


def warmup_cosine(
    optimizer: flow.optim.Optimizer, max_iter: int, warmup_iter: int, min_lr: float = 0.0
):
    """Linear warm-up from 0, then half a cosine over what remains, to ``min_lr``.

    At iteration t, counted from 0 (the official MAE's ``lr_sched.py``, step by step)::

        t < w:  lr * t / w
        else:   min_lr + (lr - min_lr) * (1 + cos(pi * (t - w) / (max_iter - w))) / 2

    A warm-up that is no shorter than the run climbs to the end and never decays.
    """
    cosine = CosineAnnealingLR(optimizer, T_max=max(1, max_iter - warmup_iter), eta_min=min_lr)
    if warmup_iter == 0:
        return cosine
    # Without warmup_prefix OneFlow joins the two pieces at the cosine's value at warmup_iter.
    return WarmupLR(cosine, warmup_factor=0.0, warmup_iters=warmup_iter, warmup_prefix=True)
