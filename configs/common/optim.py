"""AdamW without decay on biases and 1-D parameters. lr follows from train.base_lr when unset."""

import oneflow as flow
from libai.config import LazyCall

from libai_ext.optim.param_groups import decay_matrices_only

optim = LazyCall(flow.optim.AdamW)(
    # clip_grad_max_norm: the largest gradient norm of a parameter group; unset, none is clipped.
    params=LazyCall(decay_matrices_only)(weight_decay=0.05, clip_grad_max_norm=None),
    lr=None,
    betas=(0.9, 0.999),
    eps=1e-8,
)
