"""Runs short steps of graphs and prints the seconds that they took."""

from __future__ import annotations

import time

from libai_ext.startup import start

start()

import oneflow as flow  # noqa: E402

from libai_ext.engine.cli import run  # noqa: E402


class Double(flow.nn.Graph):
    def build(self, x):
        return x + x


def main() -> None:
    begin = time.monotonic()
    for number in range(3):
        graph = Double()
        for _ in range(3):
            assert graph(flow.tensor([number])).numpy().tolist() == [2 * number]
        del graph
    print(time.monotonic() - begin)


run(main)
