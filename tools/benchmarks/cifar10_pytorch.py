"""The CIFAR-10 recipe for two CPU cores in PyTorch, with Hugging Face's models, to compare with.

    PYTHONPATH=. $(bash tools/dev/oracle.sh) tools/benchmarks/cifar10_pytorch.py OUTPUT [options]

Sizes, initialisation, optimizer, schedule, and the order and crops of the images are those of
mae_cifar10_small.py and mae_cifar10_small_finetune.py; random weights and masks are others. This
project's code reads the images, and Pillow resizes them. Stages: pre-training, then the linear
probe and the fine-tuning of everything, from the pre-trained weights and from scratch.

Each epoch gives a line of JSON, which results.jsonl in OUTPUT keeps: loss, seconds of training,
top-1 on the test images in per cent. A run that was stopped continues after its last whole epoch.
OUTPUT/pretrained has the pre-trained weights as Hugging Face saves them. At the end, --write copies
results.jsonl to docs/logs and puts a table into projects/MAE/README.md: the last epoch of stages
beside that of protocols.py's runs.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import NamedTuple

import protocols
from markers import Place

MODEL = dict(
    image_size=32, patch_size=4, hidden_size=192, num_hidden_layers=6, num_attention_heads=3
)
DECODER = dict(
    decoder_hidden_size=128, decoder_num_hidden_layers=2, decoder_num_attention_heads=4
)  # fmt: skip
BATCH, WEIGHT_DECAY = 256, 0.05
MEAN, STD = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]


class Recipe(NamedTuple):
    """How a stage trains. Epochs count the labelled or unlabelled training images."""

    epochs: int
    warmup: int
    base_lr: float
    min_lr: float
    betas: tuple[float, float]
    crop: tuple[float, float]  # shares of an image's area
    layer_decay: float = 1.0


PRETRAINING = Recipe(20, 2, 1.5e-3, 0.0, (0.9, 0.95), (0.2, 1.0))
LABELS = Recipe(10, 1, 1e-3, 1e-6, (0.9, 0.999), (0.5, 1.0), 0.75)
# Whether each starts from the pre-trained weights, and trains only the head.
STAGES = {
    "probe": (True, True),
    "finetune": (True, False),
    "scratch_probe": (False, True),
    "scratch": (False, False),
}
LOG = protocols.LOGS / "cifar10_pytorch.jsonl"
# Of the table: stage and metric here, and the run of protocols.py.
ROWS = {
    "loss of pre-training": ("pretrain", "loss", "pretraining"),
    "the head (linear probe), top-1": ("probe", "top1", "head_pretrained_0"),
    "everything, top-1": ("finetune", "top1", "everything_pretrained_0"),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path, help="folder of the results")
    parser.add_argument("--train", default="cifar10:train:data/cifar10", help="as data.train")
    parser.add_argument("--test", default="cifar10:test:data/cifar10", help="as data.test")
    parser.add_argument("--stages", nargs="*", choices=STAGES, default=list(STAGES))
    parser.add_argument("--epochs", type=int, default=PRETRAINING.epochs, help="of pre-training")
    parser.add_argument("--label-epochs", type=int, default=LABELS.epochs, help="of the others")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="processes that read the images")
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    parser.add_argument("--write", action="store_true", help="update the log and the page")
    args = parser.parse_args()

    import pytorch_training as training  # this module has no PyTorch, so that tests can read it

    if args.write:
        place = Place(protocols.ROOT / protocols.PAGE, "tools/benchmarks/cifar10_pytorch.py")
    args.output.mkdir(parents=True, exist_ok=True)
    kept = ("train", "test", "epochs", "label_epochs", "seed", "bf16")
    protocols.check_options(args.output, {key: getattr(args, key) for key in kept})
    run = training.Run(args)
    run.pretrain(PRETRAINING._replace(epochs=args.epochs))
    for stage in args.stages:
        run.learn_labels(stage, LABELS._replace(epochs=args.label_epochs), *STAGES[stage])
    if args.write:
        shutil.copyfile(args.output / "results.jsonl", LOG)
        place.write(comparison(LOG, protocols.LOGS / "cifar10"))


def comparison(log: Path, ours: Path) -> str:
    """The last epoch of each stage, as Markdown; the loss is the mean over it."""
    epochs = [json.loads(line) for line in log.read_text().splitlines()]
    lines = ["| last epoch | here | PyTorch |\n|---|---|---|\n"]
    for name, (stage, metric, folder) in ROWS.items():
        theirs = [epoch[metric] for epoch in epochs if epoch.get("stage") == stage]
        run = protocols.read(ours / folder)
        if metric == "top1":
            here, digits = run[-1][metric], 1
        else:
            here, digits = last_loss(run, len(theirs)), 3
        lines.append(f"| {name} | {here:.{digits}f} | {theirs[-1]:.{digits}f} |\n")
    return "".join(lines)


def last_loss(run: list[dict], epochs: int) -> float:
    """The mean over the last epoch, of the lines that begin in it."""
    begins = [0, *(line["iteration"] for line in run)]
    first = begins[-1] * (epochs - 1) / epochs
    means = [
        (end - begin, line["total_loss"])
        for line, begin, end in zip(run, begins, begins[1:])
        if begin >= first
    ]
    return sum(n * mean for n, mean in means) / sum(n for n, _ in means)


if __name__ == "__main__":
    main()
