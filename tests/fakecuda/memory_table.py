"""What the planner says a device needs, beside what OneFlow's compiler says, for many layouts.

    PYTHONPATH=tests:. python -m fakecuda.memory_table [WORD ...]

prints the table of projects/MAE/PARALLEL.md, or its rows that contain all words. A row takes from
ten seconds to some minutes on one core.
"""

from __future__ import annotations

import sys
from typing import NamedTuple

MODELS = {
    "ViT-B": "mae_vit_base_patch16",
    "ViT-L": "mae_vit_large_patch16",
    "ViT-H": "mae_vit_huge_patch14",
}
FINE_TUNING = {
    "ViT-B": "projects/MAE/configs/mae_finetune.py",
    "ViT-L": "projects/MAE/configs/mae_finetune_large.py",
    "ViT-H": "projects/MAE/configs/mae_finetune_huge.py",
}
HEADER = (
    "| model | data x tensor x pipeline | batch | accumulation "
    "| | compiled, GiB | planned | error |"
)
GIB = 2**30


class Case(NamedTuple):
    """A training step that a user could choose; ``words``: what is set beside the sizes."""

    model: str
    layout: tuple[int, int, int]
    batch: int
    accumulation: int = 1
    words: str = ""

    @property
    def devices(self) -> int:
        data, tensor, pipeline = self.layout
        return data * tensor * pipeline

    def command(self) -> tuple[str, list[str]]:
        """Recipe and options."""
        options = [
            f"train.global_batch_size={self.batch}",
            f"train.num_accumulation_steps={self.accumulation}",
        ]
        for name, size in zip(("data", "tensor", "pipeline"), self.layout):
            options.append(f"train.dist.{name}_parallel_size={size}")
        for word, key in (("AMP", "amp"), ("checkpointing", "activation_checkpoint")):
            if word in self.words:
                options.append(f"train.{key}.enabled=True")
        if "ZeRO" in self.words:
            options.append("train.zero_optimization.enabled=True")
        if "fine-tuning" in self.words:
            return FINE_TUNING[self.model], [*options, "finetune.enable=False"]
        return (
            "projects/MAE/configs/mae_pretraining.py",
            [*options, f"model.arch={MODELS[self.model]}"],
        )

    def planned(self) -> float:
        """Bytes."""
        from omegaconf import OmegaConf

        from projects.MAE.costs import layers_of
        from projects.MAE.modeling.archs import ARCHS, ENCODER_SIZES
        from projects.MAE.planner import Machine, Training, evaluate

        model = dict(ARCHS[MODELS[self.model]], in_chans=3, mask_ratio=0.75)
        if "fine-tuning" in self.words:
            model = {name: model[name] for name in ("img_size", "in_chans", *ENCODER_SIZES)}
            model["num_classes"] = 1000
        training = Training(
            self.batch,
            self.accumulation,
            int("ZeRO" in self.words),
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

    def row(self, compiled: float) -> str:
        planned = self.planned()
        cells = [
            self.model,
            " x ".join(map(str, self.layout)),
            self.batch,
            self.accumulation,
            self.words,
            f"{compiled / GIB:.2f}",
            f"{planned / GIB:.2f}",
            f"{planned / compiled - 1:+.0%}",
        ]
        return "| " + " | ".join(map(str, cells)) + " |"


CASES: list[Case] = []


def main() -> None:
    print(HEADER)
    print("|---" * HEADER.count(" |") + "|")
    for case in CASES:
        if all(word in case.row(1.0) for word in sys.argv[1:]):
            print(case.row(case.compiled()), flush=True)


if __name__ == "__main__":
    from libai_ext.startup import start

    start()
    main()
