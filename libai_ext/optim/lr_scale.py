"""``lr_scale`` of parameter groups in eager mode, where OneFlow 0.9.0 ignores it."""

from __future__ import annotations

import contextlib

import oneflow as flow


@contextlib.contextmanager
def scaled(optimizer: flow.optim.Optimizer):
    """Inside the block each group's rate is the scheduled one times its ``lr_scale``.

    The schedule works on the unscaled rate, so its minimum is scaled too, as in nn.Graph and in the
    official code.
    """
    groups = [group for group in optimizer.param_groups if "lr_scale" in group]
    scheduled = [group["lr"] for group in groups]
    for group in groups:
        group["lr"] *= group["lr_scale"]
    try:
        yield
    finally:
        for group, lr in zip(groups, scheduled):
            group["lr"] = lr
