from __future__ import annotations

import oneflow as flow
import psutil
import pytest

from libai_ext.placement import broadcast_sbp, layer_placement


@pytest.mark.slow
def test_a_changing_rate_costs_no_memory():
    """By OneFlow's default each op keeps an entry for each rate that it has seen: 42 MB here."""
    where = dict(placement=layer_placement(0), sbp=broadcast_sbp())
    parameters = [flow.nn.Parameter(flow.ones(8 + i, 16, **where)) for i in range(40)]
    optimizer = flow.optim.AdamW(parameters, lr=1e-3)

    def steps(count):
        for step in range(count):
            for parameter in parameters:
                parameter.grad = flow.ones_like(parameter)
            optimizer.param_groups[0]["lr"] = 1e-3 * (1 - step / 5000)
            optimizer.step()
        parameters[0].numpy()
        return psutil.Process().memory_info().rss / 1e6

    warm = steps(600)
    assert steps(1000) - warm < 10
