"""Which files, columns and classes of a table of images are used.

A root is ``parquet:PATH`` or ``arrow:PATH``:

| PATH | files |
|---|---|
| a file, or a pattern such as ``data/train-*.parquet`` | these, sorted by name |
| a folder that ``datasets.save_to_disk`` wrote | those in its ``state.json`` |
| another folder | those in it and its sub-folders, if their names differ only in numbers |

Behind it, ``?image=COLUMN&label=COLUMN`` can name columns, ``label=`` none. Else they are

- the image: that of Hugging Face's type ``Image``, else one of :data:`IMAGES`; bytes, or a struct
  with a member ``bytes``;
- the class: that of type ``ClassLabel``, else one of :data:`LABELS`; none of these: no classes.

Class numbers are those in the file, with the names of ``ClassLabel``, or the numbers as names.
Classes that are texts are numbered in sorted order. A sample without a class has -1 or null.
"""

from __future__ import annotations

import glob
import json
import os
import re
from typing import Any, NamedTuple, Sequence
from urllib.parse import parse_qsl

import numpy as np

from libai_ext.data.tar_scan import MOST_DIGITS
from libai_ext.data.walk import is_hidden, some
from libai_ext.errors import DataError
from libai_ext.files.regular import read_regular

IMAGES = ("image", "images", "img", "jpg", "jpeg", "png", "webp", "tif", "tiff", "npy")
LABELS = ("label", "labels", "cls", "class")
NO_CLASS = -1

_STATE, _SPLITS = "state.json", "dataset_dict.json"
_MAX_JSON = 64 << 20  # bytes


class Columns(NamedTuple):
    """The columns of a table; ``classes`` are the names of ``ClassLabel``, None without them."""

    image: str
    label: str | None
    classes: tuple[str, ...] | None


def pyarrow(root: str) -> Any:
    """
    Raises:
        DataError: it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.compute
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(
            f"{root} needs the package pyarrow, which is not installed: uv pip install '.[parquet]'"
        ) from error
    return pyarrow


def split_options(root: str) -> tuple[str, dict[str, str]]:
    """The path and the options of a root.

    Raises:
        DataError: there is no such option.
    """
    path, _, query = root.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    wrong = [name for name in options if name not in ("image", "label")]
    if wrong or bool(query) != bool(options):
        raise DataError(f"{root}: expected {path}?image=COLUMN&label=COLUMN, either one, or none")
    return path, options


def table_files(path: str, extension: str) -> list[str]:
    """The files of a root; see the head of this module.

    Raises:
        DataError: there are none, or they may be several data sets.
    """
    if not os.path.isdir(path):
        found = sorted(glob.glob(path)) if glob.has_magic(path) else [path]
        if not found:
            raise DataError(f"no file is {path}")
        return found
    if os.path.isfile(os.path.join(path, _SPLITS)):
        splits = _json(os.path.join(path, _SPLITS)).get("splits")
        shown = some(list(map(str, splits))) if isinstance(splits, list) else "several"
        raise DataError(f"{path} holds the splits {shown}: name one, as {path}/train")
    state = os.path.join(path, _STATE)
    if os.path.isfile(state):
        return _saved_files(path, state, extension)
    found = []
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        chosen = sorted(name for name in names if name.endswith(extension) and not is_hidden(name))
        found += [os.path.join(folder, name) for name in chosen]
    if not found:
        raise DataError(f"{path} holds no {extension} file")
    kinds = {re.sub(r"\d+", "#", os.path.relpath(file, path)): file for file in found}
    if len(kinds) > 1:
        raise DataError(
            f"{path} holds files that may be several data sets: {some(list(kinds.values()))}. Name "
            f"a file, a sub-folder, or a pattern such as {path}/train-*{extension}"
        )
    return found


def _saved_files(folder: str, state: str, extension: str) -> list[str]:
    rows = _json(state).get("_data_files")
    names = [row.get("filename") for row in rows if isinstance(row, dict)] if rows else []
    plain = [name for name in names if isinstance(name, str) and os.path.basename(name) == name]
    if not isinstance(rows, list) or not plain or len(plain) != len(rows):
        raise DataError(f"{state} names no files: expected _data_files, as datasets writes it")
    wrong = [name for name in plain if not name.endswith(extension)]
    if wrong:
        raise DataError(f"{state} names {some(wrong)}, no {extension} files: use arrow:{folder}")
    return [os.path.join(folder, name) for name in plain]


def _json(path: str) -> dict[str, Any]:
    try:
        content = json.loads(read_regular(path, _MAX_JSON))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} is not a JSON object")
    return content


def columns_of(schema: Any, options: dict[str, str], where: str) -> Columns:
    """The columns of a file.

    Args:
        schema: of pyarrow.
        where: the file, for messages.

    Raises:
        DataError: a column is missing or of a type that cannot be used, or there are several.
    """
    features = _features(schema, where)
    image = _chosen("image", schema.names, options, _typed(features, "Image"), IMAGES, where)
    if image is None:
        raise DataError(
            f"{where} has no column of images among {some(schema.names, 20)}: name it, "
            "as parquet:PATH?image=COLUMN"
        )
    label = _chosen("label", schema.names, options, _typed(features, "ClassLabel"), LABELS, where)
    kind = schema.field(image).type
    members = {"bytes": kind}
    if str(kind).startswith("struct<"):
        members = {kind.field(k).name: kind.field(k).type for k in range(kind.num_fields)}
    if str(members.get("bytes")) not in ("binary", "large_binary"):
        raise DataError(
            f"{where}: column {image} is {str(kind):.200}; expected the bytes of image files, or a "
            "struct with a member bytes"
        )
    if label is not None:
        text = str(schema.field(label).type)
        if not re.fullmatch(r"u?int\d+|(large_)?string", text):
            raise DataError(f"{where}: column {label} is {text:.200}; expected numbers or texts")
    classes = None if label is None else _names(features.get(label), label, where)
    return Columns(image, label, classes)


def _features(schema: Any, where: str) -> dict[str, Any]:
    """Hugging Face's types of the columns, by column."""
    text = (schema.metadata or {}).get(b"huggingface")
    if text is None:
        return {}
    try:
        features = json.loads(text)["info"]["features"]
        return {name: kind for name, kind in features.items() if isinstance(kind, dict)}
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{where}: its metadata huggingface cannot be read: {error!r}") from error


def _typed(features: dict[str, Any], kind: str) -> list[str]:
    return [name for name, feature in features.items() if feature.get("_type") == kind]


def _chosen(
    what: str,
    names: Sequence[str],
    options: dict[str, str],
    typed: Sequence[str],
    usual: Sequence[str],
    where: str,
) -> str | None:
    if what in options:
        name = options[what]
        if name and list(names).count(name) != 1:
            raise DataError(f"{where} has no column {name}: its columns are {some(names, 20)}")
        return name or None
    found = [name for name in typed if name in names] or [name for name in usual if name in names]
    if len(found) > 1:
        raise DataError(f"{where} has the columns {some(found)}: choose one by ?{what}=COLUMN")
    if found and list(names).count(found[0]) > 1:
        raise DataError(f"{where} has several columns {found[0]}")
    return found[0] if found else None


def _names(feature: Any, label: str, where: str) -> tuple[str, ...] | None:
    names = feature.get("names") if isinstance(feature, dict) else None
    if names is None:
        return None
    texts = isinstance(names, list) and all(isinstance(name, str) and name for name in names)
    if not texts or len(set(names)) < len(names):
        raise DataError(f"{where}: the names of the classes of column {label} are not a list of "
                        "different names")  # fmt: skip
    return tuple(names)


def number_labels(
    parts: Sequence[Any], columns: Columns, count: int, where: str
) -> tuple[np.ndarray, list[str]]:
    """Class numbers int64 [N], and names.

    Args:
        parts: arrays of pyarrow, in order; none without a column of labels.
        count: N, at least 1.

    Raises:
        DataError: a number is not that of a class.
    """
    if columns.label is None:
        return _without_class(np.full(count, NO_CLASS, np.int64), [])
    import pyarrow

    whole = pyarrow.concat_arrays(parts)
    names = columns.classes
    if re.fullmatch("(large_)?string", str(whole.type)):
        coded = whole.dictionary_encode()
        texts = coded.dictionary.to_pylist()
        names = tuple(sorted(texts))
        place = {name: number for number, name in enumerate(names)}
        order = np.array([place[text] for text in texts] + [NO_CLASS], np.int64)
        labels = order[coded.indices.fill_null(len(texts)).to_numpy(zero_copy_only=False)]
    else:
        whole = whole.cast(pyarrow.int64()).fill_null(NO_CLASS)
        labels = whole.to_numpy(zero_copy_only=False).astype(np.int64)
    most = 10**MOST_DIGITS if names is None else len(names)
    wrong = (labels < NO_CLASS) | (labels >= most)
    if wrong.any():
        raise DataError(
            f"{where}, column {columns.label}, row {int(wrong.argmax())}: class "
            f"{int(labels[wrong.argmax()])} is not one of {most:,}"
        )
    classes = list(map(str, range(labels.max() + 1))) if names is None else list(names)
    return _without_class(labels, classes)


def _without_class(labels: np.ndarray, classes: list[str]) -> tuple[np.ndarray, list[str]]:
    """Give the samples of :data:`NO_CLASS` a class without a name."""
    missing = labels == NO_CLASS
    if missing.all():
        return np.zeros_like(labels), [""]
    if not missing.any():
        return labels, classes
    return np.where(missing, len(classes), labels), [*classes, ""]
