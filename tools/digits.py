"""Write scikit-learn's handwritten digits (1,797 images of 8 x 8) as an image folder.

    .venv/bin/python tools/digits.py data/digits

Every third image goes to ``test``, the others to ``train``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    write(parser.parse_args().folder)


def write(folder: Path) -> None:
    """``folder/{train,test}/<digit>/<number>.png``, 8-bit grey."""
    digits = load_digits()
    for number, (image, label) in enumerate(zip(digits.images, digits.target)):
        split = "test" if number % 3 == 2 else "train"
        target = folder / split / str(label) / f"{number:04d}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        # The source has grey levels from 0 to 16.
        Image.fromarray(np.uint8(np.clip(image * 16, 0, 255))).save(target)


if __name__ == "__main__":
    main()
