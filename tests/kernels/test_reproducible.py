"""The number of threads does not change a bit of any result."""

import os
import subprocess
import sys

import numpy as np
import pytest

SCRIPT = """
import sys
import numpy as np
import oneflow as flow
from libai_ext import kernels

assert kernels.load().loaded
from libai_ext.compat.attention import self_attention
from libai_ext.compat.linear import linear

rng = np.random.default_rng(0)
def leaf(*shape):
    return flow.tensor(rng.standard_normal(shape).astype(np.float32), requires_grad=True)

x, w, gamma, beta = leaf(5, 101, 770), leaf(517, 770), leaf(770), leaf(770)
h = flow._C.layer_norm_affine(
    x, gamma, beta, begin_norm_axis=2, begin_params_axis=2, epsilon=1e-6
)
scores = flow.matmul(h, h, transpose_b=True)
out = flow.nn.functional.gelu(flow.matmul(scores, flow.matmul(h, w, transpose_b=True)))
loss = (out * out).mean()
loss.backward()
packed = leaf(3, 301, 3 * 2 * 32)
context = self_attention(packed, 32, 0.2)
(context * context).mean().backward()
arrays = [t.numpy() for t in (out, loss, x.grad, w.grad, gamma.grad, beta.grad)]
arrays += [context.numpy(), packed.grad.numpy()]
for bfloat16 in (False, bool(kernels.bfloat16_instructions())):
    kernels.use_bfloat16_products(bfloat16)
    layer = leaf(1100, 600), leaf(600, 517), leaf(517)
    y = linear(*layer)
    (y * y).mean().backward()
    arrays += [y.numpy(), *(t.grad.numpy() for t in layer)]
np.savez(sys.argv[1], *arrays)
"""


def _run(threads, output):
    subprocess.run(
        [sys.executable, "-c", SCRIPT, str(output)],
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        check=True,
        timeout=120,
    )
    results = np.load(output)
    return [results[name] for name in results.files]


@pytest.mark.parametrize("threads", [2, 3, 4])  # 4: products are cut in both directions
def test_threads_do_not_matter(threads, tmp_path):
    one = _run(1, tmp_path / "one.npz")
    many = _run(threads, tmp_path / "many.npz")
    assert len(one) == 16
    for a, b in zip(one, many):
        np.testing.assert_array_equal(a, b)
