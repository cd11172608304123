"""What the planner says a device needs, beside what OneFlow's compiler says, for many layouts.

    PYTHONPATH=tests:. python -m fakecuda.memory_table [WORD ...]

prints the table of projects/MAE/PARALLEL.md, or its rows that contain all words. A row takes from
ten seconds to some minutes on one core.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

MODELS = {
    "ViT-B": "mae_vit_base_patch16",
    "ViT-L": "mae_vit_large_patch16",
    "ViT-H": "mae_vit_huge_patch14",
}
PRETRAINING = "projects/MAE/configs/mae_pretraining.py"
FINE_TUNING = "projects/MAE/configs/mae_finetune.py"
HEADER = (
    "| model | data x tensor x pipeline | batch | accumulation "
    "| | compiled, GiB | planned | error |"
)
GIB = 2**30
PAGE = Path(__file__).resolve().parents[2] / "projects/MAE/PARALLEL.md"


class Case(NamedTuple):
    """A training step that a user could choose.

    ``words``: what is set beside the sizes; of them, ZeRO with its stage is last.
    """

    model: str
    layout: tuple[int, int, int]
    batch: int
    accumulation: int = 1
    words: str = ""

    @property
    def zero(self) -> int:
        """Stage, 0 without."""
        return int(self.words[-1]) if "ZeRO" in self.words else 0

    @property
    def devices(self) -> int:
        data, tensor, pipeline = self.layout
        return data * tensor * pipeline

    def command(self) -> tuple[str, list[str]]:
        """Recipe and options."""
        options = [
            f"train.global_batch_size={self.batch}",
            f"train.num_accumulation_steps={self.accumulation}",
            f"model.arch={MODELS[self.model]}",
        ]
        for name, size in zip(("data", "tensor", "pipeline"), self.layout):
            options.append(f"train.dist.{name}_parallel_size={size}")
        for word, key in (("AMP", "amp"), ("checkpointing", "activation_checkpoint")):
            if word in self.words:
                options.append(f"train.{key}.enabled=True")
        if self.zero:
            options.append("train.zero_optimization.enabled=True")
            options.append(f"train.zero_optimization.stage={self.zero}")
        if "fine-tuning" in self.words:
            return FINE_TUNING, [*options, "finetune.enable=False"]
        return PRETRAINING, options

    def planned(self) -> float:
        """Bytes."""
        from omegaconf import OmegaConf

        from projects.MAE.modeling.archs import ARCHS, ENCODER_SIZES
        from projects.MAE.parallel.costs import layers_of
        from projects.MAE.parallel.planner import Machine, Training, evaluate

        model = dict(ARCHS[MODELS[self.model]], in_chans=3, mask_ratio=0.75)
        if "fine-tuning" in self.words:
            model = {name: model[name] for name in ("img_size", "in_chans", *ENCODER_SIZES)}
            model["num_classes"] = 1000
        training = Training(
            self.batch,
            self.accumulation,
            self.zero,
            "AMP" in self.words,
            "checkpointing" in self.words,
        )
        machine = Machine(self.devices, float("inf"), self.devices, 1e11, 1e10, 3e13)
        layers = layers_of(OmegaConf.create(model))
        return evaluate(layers, machine, training, *self.layout).memory.graph

    def compiled(self) -> float:
        """Bytes of the fullest device."""
        from fakecuda.compile import compile_memory

        config, options = self.command()
        return max(x.total for x in compile_memory(config, options, self.devices, timeout=3600))

    def start(self) -> str:
        """First cells of its row."""
        sizes = " x ".join(map(str, self.layout))
        words = self.words or "float32"
        return f"| {self.model} | {sizes} | {self.batch} | {self.accumulation} | {words} |"

    def row(self, compiled: float) -> str:
        said, planned = f"{compiled / GIB:.2f}", self.planned() / GIB
        return f"{self.start()} {said} | {planned:.2f} | {planned / float(said) - 1:+.0%} |"


def on_page(case: Case) -> float:
    """The compiler's bytes in the page's table."""
    (row,) = (row for row in PAGE.read_text().splitlines() if row.startswith(case.start()))
    return float(row[len(case.start()) :].split("|")[0]) * GIB


CASES = [
    Case("ViT-B", (1, 1, 1), 64),
    Case("ViT-B", (1, 1, 1), 64, 1, "AMP"),
    Case("ViT-B", (1, 1, 1), 64, 1, "checkpointing"),
    Case("ViT-B", (1, 1, 1), 64, 4),
    Case("ViT-B", (1, 1, 1), 64, 4, "AMP"),
    Case("ViT-B", (8, 1, 1), 512),
    Case("ViT-B", (8, 1, 1), 512, 1, "AMP"),
    Case("ViT-B", (8, 1, 1), 512, 1, "ZeRO 1"),
    Case("ViT-B", (8, 1, 1), 512, 1, "ZeRO 3"),
    Case("ViT-B", (8, 1, 1), 4096, 8),
    Case("ViT-B", (8, 1, 1), 4096, 8, "AMP"),
    Case("ViT-B", (8, 1, 1), 4096, 8, "checkpointing"),
    Case("ViT-B", (8, 1, 1), 4096, 8, "ZeRO 1"),
    Case("ViT-B", (8, 1, 1), 4096, 8, "ZeRO 3"),
    Case("ViT-B", (2, 1, 1), 128, 2, "checkpointing"),
    Case("ViT-B", (4, 2, 1), 4096, 8),
    Case("ViT-B", (4, 2, 1), 4096, 8, "AMP"),
    Case("ViT-B", (4, 2, 1), 1024, 2, "AMP, ZeRO 1"),
    Case("ViT-B", (1, 1, 2), 256, 4),
    Case("ViT-B", (1, 1, 2), 256, 4, "AMP"),
    Case("ViT-B", (4, 1, 2), 4096, 8),
    Case("ViT-B", (2, 2, 2), 4096, 8),
    Case("ViT-B", (2, 2, 2), 4096, 8, "AMP"),
    Case("ViT-B", (2, 1, 4), 4096, 8),
    Case("ViT-B", (2, 1, 4), 4096, 8, "AMP"),
    Case("ViT-B", (2, 1, 4), 4096, 8, "checkpointing"),
    Case("ViT-B", (1, 1, 1), 64, 1, "fine-tuning"),
    Case("ViT-B", (2, 1, 1), 256, 2, "AMP, fine-tuning"),
    Case("ViT-L", (1, 1, 1), 64, 1, "AMP"),
    Case("ViT-L", (8, 1, 1), 512, 1, "ZeRO 3"),
    Case("ViT-L", (2, 1, 1), 128, 1, "AMP, ZeRO 1"),
    Case("ViT-L", (2, 1, 1), 128, 1, "AMP, ZeRO 3"),
    Case("ViT-L", (8, 1, 1), 4096, 8, "AMP"),
    Case("ViT-L", (64, 1, 1), 4096, 1, "AMP"),
    Case("ViT-H", (1, 1, 1), 16, 1, "AMP, checkpointing"),
    Case("ViT-H", (2, 2, 2), 4096, 32, "AMP"),
]


def main() -> None:
    print(HEADER)
    print("|---" * HEADER.count(" |") + "|")
    for case in CASES:
        if all(word in case.start() for word in sys.argv[1:]):
            print(case.row(case.compiled()), flush=True)


if __name__ == "__main__":
    from libai_ext.startup import start

    start()
    main()
