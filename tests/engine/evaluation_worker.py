"""Run by test_evaluation.py on N processes: evaluates data sets of 1 to 40 samples.
Usage: evaluation_worker.py OUTPUT
"""

import json
import sys

import numpy as np

from libai_ext.engine import cli as entry
from libai_ext.startup import start

CLASSES, MICRO_BATCH = 7, 3


def table():
    """Logits [40, K], with ties, and labels [40]."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(40, CLASSES)).astype(np.float32)
    logits[::5] = np.round(logits[::5])
    return logits, rng.integers(CLASSES, size=40)


def main():
    start()
    import oneflow as flow
    from libai.engine.default import DefaultTrainer
    from libai.utils import distributed as dist
    from omegaconf import OmegaConf

    from libai_ext.data.dataset import stack
    from libai_ext.data.loader import build_eval_loader
    from libai_ext.engine.evaluation import evaluate
    from libai_ext.engine.metrics import Classification
    from libai_ext.placement import set_layout

    class Table:
        def __init__(self, size):
            self.size = size

        def __len__(self):
            return self.size

        def __getitem__(self, key):
            logits, labels = table()
            return {"images": logits[key.index], "labels": labels[key.index]}

        def collate(self, samples):
            return stack(samples)

    class Identity(flow.nn.Module):
        def forward(self, images, labels):
            return {"prediction_scores": images}

    ranks = dist.get_world_size()
    sizes = dict(data_parallel_size=ranks, tensor_parallel_size=1, pipeline_parallel_size=1)
    set_layout(OmegaConf.create(sizes))
    results = {}
    for size in range(1, 41):
        loader = build_eval_loader(Table(size), MICRO_BATCH, ranks, num_workers=0)
        evaluator = Classification(CLASSES, logits="prediction_scores")
        results[size] = evaluate(Identity(), loader, DefaultTrainer.get_batch, evaluator)
    if dist.is_main_process():
        with open(sys.argv[1], "w") as file:
            json.dump(results, file)


if __name__ == "__main__":
    entry.run(main)
