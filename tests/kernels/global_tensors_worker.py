"""Run by test_two_processes.py, in one process and in two: saves loss and gradients of a block
whose tensors are global. Usage: global_tensors_worker.py OUTPUT LAYOUT
"""

import sys

import numpy as np

from libai_ext import kernels
from libai_ext.engine import cli as entry
from libai_ext.startup import start


def main():
    start()
    import oneflow as flow

    from libai_ext.compat.attention import self_attention
    from libai_ext.compat.linear import linear

    assert kernels.is_loaded()
    output, layout = sys.argv[1:]
    placement = flow.placement("cpu", list(range(flow.env.get_world_size())))
    split, broadcast = flow.sbp.split, flow.sbp.broadcast
    data = layout == "data"
    rng = np.random.default_rng(0)

    def leaf(shape, sbp):
        array = rng.standard_normal(shape).astype(np.float32)
        tensor = flow.tensor(array, placement=placement, sbp=broadcast).to_global(sbp=sbp)
        return tensor.detach().requires_grad_()

    x = leaf((6, 10, 16), split(0) if data else broadcast)
    gamma, beta = leaf((16,), broadcast), leaf((16,), broadcast)
    up = leaf((48, 16), broadcast if data else split(0))
    bias = leaf((48,), broadcast if data else split(0))
    down = leaf((16, 48), broadcast if data else split(1))
    packed = leaf((6, 10, 24), split(0 if data else 2))
    three = leaf((6, 10, 36), split(0 if data else 2))
    column = leaf((16, 24), broadcast if data else split(1))
    column_bias = leaf((24,), broadcast if data else split(0))

    h = flow._C.layer_norm_affine(
        x, gamma, beta, begin_norm_axis=2, begin_params_axis=2, epsilon=1e-6
    )
    h = flow.nn.functional.gelu(flow.matmul(h, up, transpose_b=True) + bias)
    y = x + flow.matmul(h, down, transpose_b=True)
    context = self_attention(packed, 4, 0.5)  # two heads
    assert context.sbp == (split(0 if data else 2),)
    undivided = self_attention(three, 4, 0.5)  # three heads: whole ones on each rank
    whole = sum(packed.narrow(axis, 0, size) for axis, size in enumerate(packed.shape))
    assert whole.sbp == packed.sbp
    z = linear(y, column, column_bias)
    assert z.sbp == (split(0 if data else 2),)
    loss = (z * z).sum() + (context * context).sum() + (whole * whole).sum()
    loss = loss + (undivided * undivided).sum()
    loss.backward()
    results = dict(loss=loss, context=context, undivided=undivided, whole=whole, z=z)
    names = "x", "gamma", "beta", "up", "bias", "down", "packed", "three", "column", "column_bias"
    for name in names:
        results[name] = locals()[name].grad
    arrays = {name: tensor.to_global(sbp=broadcast).numpy() for name, tensor in results.items()}
    if flow.env.get_rank() == 0:
        np.savez(output, **arrays)


if __name__ == "__main__":
    entry.run(main)
