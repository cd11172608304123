"""Training with one batch or one gradient made NaN: arguments WHAT ITERATION, then the program's.

WHAT is ``loss`` (through the images) or ``gradient`` (of one parameter, with a finite loss); with
``-queued`` the steps of a graph are read at logging steps, as on a GPU.
"""

from __future__ import annotations

import sys

from libai_ext.engine import cli as entry
from libai_ext.startup import start


def main() -> None:
    what, _, queued = sys.argv[1].partition("-")
    iteration = int(sys.argv[2])
    del sys.argv[1:3]
    args = entry.parse_args(__doc__)
    start()
    from libai_ext.engine.steps import GraphSteps
    from projects.MAE.modeling.mae import MaskedAutoencoder
    from projects.MAE.run import TaskTrainer, run

    get_batch, forward = TaskTrainer.get_batch, MaskedAutoencoder.forward

    def poisoned_batch(self, data, *rest):
        batch = get_batch(data, *rest)
        if self.iter == iteration:
            batch["images"] = batch["images"] * (float("nan") if what == "loss" else 0.0)
        return batch

    def rooted_loss(self, images, noise=None):
        """Adds a zero whose derivative is not finite where all pixels are zero."""
        out = forward(self, images, noise)
        if self.training:
            root = (self.decoder_pred.weight.square().sum() * images.square().sum()).sqrt()
            out["losses"] = out["losses"] + 0.0 * root
        return out

    def queue(self, *args):
        create(self, *args)
        self.deferred = True

    TaskTrainer.get_batch = poisoned_batch
    if queued:
        create, GraphSteps.__init__ = GraphSteps.__init__, queue
    if what == "gradient":
        MaskedAutoencoder.forward = rooted_loss
    run(args)


if __name__ == "__main__":
    entry.run(main)
