"""List the parallel layouts of a model on given devices, fastest first, from a cost model.

    .venv/bin/python tools/plan.py --arch mae_vit_large_patch16 --devices 64 --memory 40

Memory is that of the fullest GPU, for training in a graph. For the cost model see
projects/MAE/parallel/planner.py and projects/MAE/parallel/memory.py.
"""

from __future__ import annotations

import argparse

from libai_ext.engine import cli as entry
from libai_ext.errors import ConfigError
from libai_ext.startup import start
from projects.MAE.option_types import above_zero, mask_ratio, whole

GIB = 2**30


def main() -> None:
    args = parse()
    start()
    from omegaconf import OmegaConf

    from projects.MAE.modeling.archs import ARCHS
    from projects.MAE.parallel.costs import layers_of
    from projects.MAE.parallel.planner import Machine, Training, plans

    if args.arch not in ARCHS:
        raise ConfigError(f"unknown --arch {args.arch}; known are {', '.join(ARCHS)}")
    model = OmegaConf.create(dict(ARCHS[args.arch], in_chans=3, mask_ratio=args.mask_ratio))
    if args.img_size:
        model.img_size = args.img_size
    if args.classes:
        model = OmegaConf.create(
            dict(
                {str(k): v for k, v in model.items() if "decoder" not in str(k)},
                num_classes=args.classes,
            )
        )
    machine = Machine(
        args.devices,
        args.memory * GIB,
        args.node_size,
        args.link_in_node * 1e9,
        args.link_between_nodes * 1e9,
        args.tflops * 1e12,
    )
    training = Training(args.batch, args.accumulation, args.zero, args.amp, args.checkpointing)
    found = plans(layers_of(model), machine, training)
    if not found:
        raise ConfigError(
            f"no layout of {args.devices} devices divides batch {args.batch} and the "
            f"model's sizes and fits into {args.memory:g} GiB: try a larger --accumulation, "
            "--checkpointing or more devices"
            + (", or no --zero, which needs 2 data-parallel ranks" if args.zero else "")
        )
    show(found, args)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--arch", default="mae_vit_base_patch16")
    add(
        "--img-size", type=whole(1), nargs=2, metavar=("H", "W"), help="pixels; default: the arch's"
    )
    add("--mask-ratio", type=mask_ratio, default=0.75)
    add("--classes", type=whole(1), help="plan fine-tuning to so many classes, not pre-training")
    add("--devices", type=whole(1), required=True)
    add("--memory", type=above_zero, default=16, help="of a device, GiB")
    add("--node-size", type=whole(1), default=8, help="devices of a node")
    add("--link-in-node", type=above_zero, default=100, help="GB/s of a device within its node")
    add("--link-between-nodes", type=above_zero, default=10, help="GB/s of a device to other nodes")
    add("--tflops", type=above_zero, default=30, help="what a device reaches, not its peak")
    add("--batch", type=whole(1), default=4096, help="samples of an optimizer step, all devices")
    add("--accumulation", type=whole(1), default=1, help="micro-batches of a step")
    add("--zero", type=int, choices=range(4), default=0, help="stage; 0: none")
    add("--amp", action="store_true", help="mixed precision")
    add("--checkpointing", action="store_true", help="of activations")
    add("--top", type=whole(1), default=8, help="how many to show")
    return parser.parse_args()


def show(found, args) -> None:
    print(
        "| data x tensor x pipeline | memory, GiB: parameters | gradients | optimizer "
        "| activations | outside | all | sent, MB: data | tensor | pipeline | bubble | step, s |"
    )
    print("|" + "---|" * 12)
    for plan in found[: args.top]:
        memory = [f"{part / GIB:.2f}" for part in (*plan.memory, sum(plan.memory))]
        sent = [f"{plan.sent[kind] / 1e6:.0f}" for kind in ("data", "tensor", "pipeline")]
        cells = [f"{plan.data} x {plan.tensor} x {plan.pipeline}", *memory, *sent]
        print("| " + " | ".join([*cells, f"{plan.bubble:.0%}", f"{plan.seconds:.3g}"]) + " |")
    best = found[0]
    print(f"\nThe first one, on {args.devices} processes:")
    print(f"train.global_batch_size={args.batch} train.num_accumulation_steps={args.accumulation}")
    sizes = dict(data=best.data, tensor=best.tensor, pipeline=best.pipeline)
    print(" ".join(f"train.dist.{name}_parallel_size={size}" for name, size in sizes.items()))
    if best.by_hand:
        stages = ",".join(map(str, best.stages))
        print(f"train.dist.custom_pipeline_stage_id=[{stages}]")
    for key, on in (
        (
            f"train.zero_optimization.enabled=True train.zero_optimization.stage={args.zero}",
            args.zero,
        ),
        ("train.amp.enabled=True", args.amp),
        ("train.activation_checkpoint.enabled=True", args.checkpointing),
    ):
        if on:
            print(key)


if __name__ == "__main__":
    entry.run(main)
