"""Two ranks take six steps under a loss scaler that starts at 1024; prints its last scale.

One layer's weight is split over the ranks, 129 are not: the finite check works on two groups, by
two launches and by one.
"""

from __future__ import annotations

import oneflow as flow
from oneflow import nn

RANKS = flow.placement("cuda", [0, 1])
WHOLE = [f"whole{number}" for number in range(129)]
STEPS = 6


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        whole = dict(placement=RANKS, sbp=flow.sbp.broadcast)
        self.split = nn.Parameter(flow.ones(8, 4, placement=RANKS, sbp=flow.sbp.split(0)))
        for name in WHOLE:
            self.register_parameter(name, nn.Parameter(flow.ones(4, **whole)))

    def forward(self, x):
        whole = flow.cat([getattr(self, name) for name in WHOLE])
        return (x @ self.split.t()).sum() + whole.sum()


class Training(nn.Graph):
    def __init__(self, model):
        super().__init__()
        self.model = model
        self.add_optimizer(flow.optim.SGD(model.parameters(), lr=0.1))
        self.set_grad_scaler(flow.amp.GradScaler(1024.0, 2.0, 0.5, growth_interval=1000))

    def build(self, x):
        loss = self.model(x)
        loss.backward()
        return loss


def main() -> None:
    graph = Training(Scaled())
    x = flow.ones(2, 4, placement=RANKS, sbp=flow.sbp.broadcast)
    for _ in range(STEPS):
        graph(x).to_local().numpy()
    flow.cuda.synchronize()
    names = graph._c_nn_graph.additional_var_names
    state = dict(zip(names, graph._c_nn_graph.additional_var_tensors))
    (scale,) = (tensor for name, tensor in state.items() if name.endswith("-LossScale"))
    if flow.env.get_rank() == 0:
        print("scale", scale.to_local().numpy())


if __name__ == "__main__":
    main()
