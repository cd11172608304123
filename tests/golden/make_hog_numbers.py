"""Write what scikit-image's `hog` computes of made images.

    python tests/golden/make_hog_numbers.py

Needs scikit-image, so it runs in an environment of its own. The committed file was written by
scikit-image 0.26.0 and NumPy 1.26.4.
"""

import pathlib

import numpy as np
from skimage.feature import hog

FILE = pathlib.Path(__file__).parent / "hog_numbers.npz"
# Case -> (channels, height, width, bins, cell).
CASES = {"rgb": (3, 32, 48, 9, 8), "grey": (1, 24, 16, 6, 4)}


def images(channels, height, width):
    """uint8 [2, C, H, W]: noise, and a disc with sharp edges and flat parts."""
    noise = np.random.default_rng(0).integers(0, 256, (channels, height, width))
    rows, columns = np.mgrid[:height, :width]
    disc = 200 * ((rows - 11) ** 2 + (columns - 9) ** 2 < 60)
    slopes = [disc + (number + 1) * (columns // 4) for number in range(channels)]
    return np.uint8([noise, slopes])


def main():
    numbers = {}
    for name, (*size, bins, cell) in CASES.items():
        numbers[f"{name}/images"] = images(*size)
        numbers[f"{name}/hog"] = np.stack(
            [
                [
                    hog(
                        channel,
                        orientations=bins,
                        pixels_per_cell=(cell, cell),
                        cells_per_block=(1, 1),
                        block_norm="L2",
                        feature_vector=False,
                    )[:, :, 0, 0]
                    for channel in image
                ]
                for image in images(*size) / 255
            ]
        )  # [2, C, rows, columns, bins]
    np.savez_compressed(FILE, **numbers)


if __name__ == "__main__":
    main()
