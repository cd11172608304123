"""A folder of images with a list of their classes, such as ImageNet's validation set."""

from __future__ import annotations

import csv
import os
import re
from collections import Counter

from libai_ext.data.image_folder import ImageFiles, check_folder
from libai_ext.data.walk import Walk, some, warn_once
from libai_ext.errors import DataError
from libai_ext.files.regular import read_regular

_MAX_BYTES = 1 << 30  # 10 million images
# Column of Kaggle's ImageNet list: a class, then boxes.
_KAGGLE = "PredictionString"


class ListedImages(ImageFiles):
    """The images in a text file, in its order.

    A line holds an image's path relative to the folder, with or without its extension, and its
    class. White space, a comma or a tab separates them::

        ILSVRC2012_val_00000001.JPEG n01751748

    A header such as ``image,label`` and other columns are skipped. Classes are the sorted names;
    if all are numbers, they are 0 to the largest, as in tar shards.

    Args:
        file: the list.
        folder: of the images; those that are not in the list are skipped.
        mode, decoding: arguments of :class:`Decoder`.

    Raises:
        DataError: the file or folder is missing, a line has no class, or an image is listed twice
            or is missing.
    """

    def __init__(self, file: str, folder: str, mode: str | int = "RGB", **decoding):
        rows = _read(file)
        check_folder(folder)
        walk = Walk(folder, mode)
        paths = _by_name(walk.images(walk.root), walk.root)
        rows = _without_header(rows, paths, walk.extensions)
        missing = [name for name, _ in rows if name not in paths]
        if missing:
            raise DataError(
                f"{file} lists {len(missing):,} images that are not in {folder}: {some(missing)}"
            )
        found = [paths[name] for name, _ in rows]
        twice = [path for path, count in Counter(found).items() if count > 1]
        if twice:
            raise DataError(f"{file} lists {len(twice):,} images more than once: {some(twice)}")
        unlisted = len(set(paths.values())) - len(found)
        if unlisted:
            walk.skipped.add("images that are not listed", f"in {file}", unlisted)
        if walk.skipped:
            warn_once(f"data folder {folder}: skipped {walk.skipped}")
        classes = _classes({label for _, label in rows})
        number = {name: i for i, name in enumerate(classes)}
        labels = [number[label] for _, label in rows]
        super().__init__(list(zip(found, labels)), classes, mode, **decoding)


def _by_name(paths: list[str], root: str) -> dict[str, str]:
    """Paths by their names in a list: relative to the root, with the extension, or without it if
    only one image has that name."""
    named = {os.path.relpath(path, root): path for path in paths}
    stems = Counter(os.path.splitext(name)[0] for name in named)
    short = {os.path.splitext(name)[0]: path for name, path in named.items()}
    return {**{stem: path for stem, path in short.items() if stems[stem] == 1}, **named}


def _read(file: str) -> list[tuple[str, str]]:
    """(image, class) of each line."""
    try:
        lines = read_regular(file, _MAX_BYTES).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"list of labels {file} is not UTF-8 text: {error}") from error
    except OSError as error:
        raise DataError(f"list of labels {file}: {error.strerror}") from error
    lines = [line for line in lines if line.strip()]
    if not lines:
        raise DataError(f"list of labels {file} is empty")
    separator = next((mark for mark in "\t," if mark in lines[0]), None)
    if separator:
        try:
            table = list(csv.reader(lines, delimiter=separator, skipinitialspace=True))
        except csv.Error as error:
            raise DataError(f"list of labels {file} is no table: {error}") from error
    else:
        table = [line.rsplit(maxsplit=1) for line in lines]
    rows = []
    for number, cells in enumerate(table, 1):
        cells = [cell.strip() for cell in cells[:2]]
        if len(cells) < 2 or not all(cells):
            raise DataError(
                f"list of labels {file}, line {number}: {' '.join(cells)!r:.60} is not an image "
                "and its class, as 'ILSVRC2012_val_00000001.JPEG n01751748'"
            )
        if table[0][1].strip() == _KAGGLE:
            cells[1] = cells[1].split()[0]
        rows.append((os.path.normpath(cells[0]), cells[1]))
    return rows


def _without_header(
    rows: list[tuple[str, str]], paths: dict, extensions: tuple[str, ...]
) -> list[tuple[str, str]]:
    """The first row is a header if it names neither an image nor a class of the other rows."""
    (name, label), others = rows[0], rows[1:]
    is_head = (
        name not in paths
        and not name.lower().endswith(extensions)
        and label not in {other for _, other in others}
    )
    return others if is_head and others else rows


def _classes(names: set[str]) -> list[str]:
    if all(re.fullmatch("0|[1-9][0-9]{0,5}", name) for name in names):
        return [str(number) for number in range(max(map(int, names)) + 1)]
    return sorted(names)
