"""Learning-rate schedules that run in ``nn.Graph`` and in eager mode."""

from __future__ import annotations

import oneflow as flow
from oneflow.optim.lr_scheduler import CosineAnnealingLR, WarmupLR


def warmup_cosine(
    optimizer: flow.optim.Optimizer, max_iter: int, warmup_iter: int, min_lr: float = 0.0
):
    """Linear warm-up from 0, then half a cosine over the other iterations, down to ``min_lr``.

    At iteration t, counted from 0 (w is ``warmup_iter``; as the official MAE's ``lr_sched.py``)::

        t < w:  lr * t / w
        else:   min_lr + (lr - min_lr) * (1 + cos(pi * (t - w) / (max_iter - w))) / 2

    If the warm-up is as long as the run or longer, the rate rises to the end and never decays.
    """
    cosine = CosineAnnealingLR(optimizer, T_max=max(1, max_iter - warmup_iter), eta_min=min_lr)
    if warmup_iter == 0:
        return cosine
    # Without warmup_prefix OneFlow joins the two pieces at the cosine's value at warmup_iter.
    return WarmupLR(cosine, warmup_factor=0.0, warmup_iters=warmup_iter, warmup_prefix=True)
