"""Pre-train a small masked autoencoder on handwritten digits and evaluate it.

Run by tools/quickstart.sh, which sets everything up first.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

from libai_ext.startup import start

ROOT = Path(__file__).resolve().parents[1]
CONFIG = "projects/MAE/configs/mae_digits.py"
OWN = "projects/MAE/configs/mae_pretraining.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="output/digits", help="folder of the run")
    parser.add_argument("opts", nargs="*", metavar="key=value", help="config overrides")
    args = parser.parse_intermixed_args()
    opts = [f"train.output_dir={args.output}", *args.opts]

    step("1 of 3: the data, scikit-learn's 1,797 digits as data/digits/{train,test}/<digit>/*.png")
    run(sys.executable, "tools/digits.py", "data/digits")

    step("2 of 3: pre-training without labels")
    run("bash", "tools/train.sh", "projects/MAE/train_net.py", CONFIG, "1", "--start-over", *opts)

    step("3 of 3: the encoder before and after")
    start()
    report(args.output, opts)


def step(text: str) -> None:
    print(f"\n== {text}", flush=True)


def run(*command: str) -> None:
    result = subprocess.run(command, cwd=ROOT)
    if result.returncode:
        sys.exit(result.returncode)


def report(output: str, opts) -> None:
    """Draw reconstructions, probe the encoder, and print the paths of the results."""
    # OneFlow must be initialised before anything that imports it.
    from projects.MAE.evaluation.probe import accuracies, load_run, reconstruction_picture

    trained = load_run(CONFIG, opts)
    untrained = load_run(CONFIG, opts, weights=False)
    picture = Path(output) / "reconstructions.png"
    reconstruction_picture(trained, samples=16, scale=4).save(ROOT / picture)

    before, after = accuracies(untrained), accuracies(trained)
    print("\nAccuracy on unseen digits with frozen features of the encoder:")
    print(f"{'':24s}untrained   pre-trained")
    for name in after:
        print(f"  {name:22s}{before[name]:7.1f} %{after[name]:12.1f} %")
    print(f"""
{picture}   reconstructions of unseen digits
{output}/model_final           checkpoint
{output}/metrics.jsonl         loss, learning rate and speed, a line per logging step
{output}/tensorboard           the same, for .venv/bin/tensorboard --logdir

Next:""")
    for heading, command in next_steps(output).items():
        print(f"  {heading}\n    {command}")


def next_steps(output: str) -> dict[str, str]:
    """What to try after a quickstart in ``output``: heading -> command. Each command has its own
    output folder."""
    train = "bash tools/train.sh projects/MAE/train_net.py"
    beside = [shlex.quote(f"train.output_dir={output}_{name}") for name in ("2", "half", "own")]
    return {
        "the same on two processes:": f"{train} {CONFIG} 2 {beside[0]}",
        "another setting, as any key=value:": f"{train} {CONFIG} 1 model.mask_ratio=0.5 "
        f"train.train_epoch=200 {beside[1]}",
        "your own images, a folder of them in colour, at 96 x 96:": f"{train} {OWN} 1 "
        f"data.train='[/my/images]' model.arch=mae_vit_small_patch8 train.train_epoch=100 "
        f"train.warmup_epoch=5 {beside[2]}",
        "the run as a page, with curves and pictures:": ".venv/bin/python tools/report.py "
        f"{shlex.quote(output)}",
    }


if __name__ == "__main__":
    main()
