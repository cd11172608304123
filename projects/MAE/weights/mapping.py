"""Convert state dicts of other frameworks to ours and back, by the table in `names`."""

from __future__ import annotations

from typing import Any, Iterable, Mapping, Sequence

import numpy as np

from libai_ext.checkpoint.errors import CheckpointError
from libai_ext.checkpoint.plain import Placeholder
from libai_ext.checkpoint.tensors import TensorInfo
from libai_ext.config.names import nearest
from projects.MAE.weights.names import (
    COPY,
    LEFT_OUT,
    LEFT_OUT_PREFIXES,
    LINEAR,
    ROWS_BY_OURS,
    ROWS_BY_THEIRS,
    STYLES,
    split_number,
    without_alias,
)
from projects.MAE.weights.packing import PUBLISHED, Heads, pack_qkv, unpack_qkv

# Keys of the state dict in training scripts: official MAE; Lightning and mmpretrain; DINO.
WRAPPERS = ("model", "state_dict", "teacher")
# Prefixes added to all names by torch.compile, DistributedDataParallel, Lightning.
MODULE_PREFIXES = ("_orig_mod.", "module.", "model.")
SHOWN = 12


def some(names: Iterable[str]) -> str:
    """A list of names, short enough for a message."""
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(f"{name!s:.120}" for name in names[:SHOWN]) + more


def with_nearest(name: str, known: Iterable[str]) -> str:
    """The name, and the known name that is most like it."""
    close = nearest(name, known)
    return f"{name:.120} (nearest known: {close})" if close else name


def _nearest_in_table(name: str, rows: Iterable[str]) -> str:
    number = split_number(name)[1]
    return with_nearest(name, [row.replace("#", number) for row in rows])


def _is_tensor(value: Any) -> bool:
    return isinstance(value, (np.ndarray, TensorInfo))


def find_state_dict(tree: Any) -> tuple[dict[str, Any], str]:
    """The state dict in a checkpoint, without the prefixes of wrapper modules.

    Returns:
        The tensors by name, and the key in `WRAPPERS` that held them, "" for none.

    Raises:
        CheckpointError: there is none, or more than one.
    """
    if isinstance(tree, Placeholder):
        raise CheckpointError(f"holds {tree.module:.80}.{tree.name:.80}, not a state dict")
    if not isinstance(tree, dict):
        raise CheckpointError(f"holds a {type(tree).__name__}, not a state dict")
    found = {
        key: tree[key]
        for key in WRAPPERS
        if isinstance(tree.get(key), dict) and any(map(_is_tensor, tree[key].values()))
    }
    if any(map(_is_tensor, tree.values())):
        found[""] = tree
    if len(found) != 1:
        what = "no state dict" if not found else "more than one state dict"
        raise CheckpointError(f"holds {what}; its keys: {some(tree)}")
    ((wrapper, state),) = found.items()
    if not all(isinstance(key, str) for key in state):
        raise CheckpointError("its state dict has a name that is not text")
    others = [name for name, value in state.items() if not _is_tensor(value)]
    if others:
        raise CheckpointError(f"its state dict holds what is not a tensor: {some(others)}")
    return _unwrapped(state), wrapper


def _unwrapped(state: dict[str, Any]) -> dict[str, Any]:
    """Remove the prefixes that all names have: each once or twice, in any order."""
    for prefix in MODULE_PREFIXES * 2 * len(MODULE_PREFIXES):
        if all(name.startswith(prefix) for name in state):
            state = {name[len(prefix) :]: tensor for name, tensor in state.items()}
    return state


def others_in(tree: Any, wrapper: str) -> list[str]:
    """Other keys of a checkpoint, besides ``wrapper``, that hold weights as well."""
    return [
        key
        for key, value in tree.items()
        if wrapper
        and key != wrapper
        and isinstance(value, dict)
        and any(map(_is_tensor, value.values()))
    ]


def recognise(names: Iterable[str]) -> str:
    """The style, a member of `STYLES`, whose names these are.

    Raises:
        CheckpointError: no style fits, or several do; says what was found.
    """
    names = list(names)
    templates = {split_number(without_alias(name))[0] for name in names}
    votes: dict[str, list[str]] = {}
    for template in sorted(templates):
        styles = [style for style in STYLES if template in ROWS_BY_THEIRS[style]]
        if len(styles) == 1:
            votes.setdefault(styles[0], []).append(template)
    if len(votes) == 1:
        return next(iter(votes))
    if votes:
        seen = "; ".join(f"{style}: {some(matched)}" for style, matched in votes.items())
        raise CheckpointError(f"its names are of several styles. {seen}")
    raise CheckpointError(f"no blocks with names of a known style. Its names: {some(names)}")


def shapes_in(state: Mapping[str, Any], style: str) -> dict[str, tuple[int, ...]]:
    """Our name -> shape, for tensors whose shape is the same in every style; see `COPY`."""
    rows = ROWS_BY_THEIRS[style]
    shapes = {}
    for name, tensor in state.items():
        template, number = split_number(without_alias(name))
        row = rows.get(template)
        if row is not None and row.kind == COPY:
            shapes[row.ours.replace("#", number)] = tuple(tensor.shape)
    return shapes


def names_in(state: Iterable[str], style: str) -> list[str]:
    """Our names of those tensors in a state dict that are in our table."""
    rows = ROWS_BY_THEIRS[style]
    found: dict[str, None] = {}
    for name in state:
        template, number = split_number(without_alias(name))
        if template in rows:
            found[rows[template].ours.replace("#", number)] = None
    return list(found)


def to_ours(
    state: Mapping[str, Any], style: str, heads: Heads = PUBLISHED, skip: Sequence[str] = ()
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Translate a state dict of `style` into our names and layouts, bit by bit.

    Args:
        state: name -> array or `TensorInfo`, read one at a time.
        style: a member of `STYLES`.
        heads: see `Heads`.
        skip: prefixes of our names that are not wanted.

    Returns:
        Our weights, and the names that no model of ours has a place for (see `LEFT_OUT`).

    Raises:
        CheckpointError: a name is unknown in the style, or a part of a projection is missing.
    """
    rows = ROWS_BY_THEIRS[style]
    canonical = {without_alias(name): tensor for name, tensor in state.items()}
    if len(canonical) != len(state):
        raise CheckpointError("has names that differ in a prefix only")
    left_out = [
        name for name in canonical if name in LEFT_OUT or name.startswith(LEFT_OUT_PREFIXES)
    ]
    unknown = [
        name for name in canonical if split_number(name)[0] not in rows and name not in left_out
    ]
    if unknown:
        shown = [_nearest_in_table(name, rows) for name in unknown[:SHOWN]] + unknown[SHOWN:]
        raise CheckpointError(f"has names that the style {style} does not: {some(shown)}")
    weights = {}
    for name in canonical:
        if name in left_out:
            continue
        template, number = split_number(name)
        row = rows[template]
        ours = row.ours.replace("#", number)
        if ours in weights or ours.startswith(tuple(skip)):
            continue  # the key or value of a projection whose query came before
        parts = [part.replace("#", number) for part in row.theirs]
        absent = [part for part in parts if part not in canonical]
        if absent:
            raise CheckpointError(f"{name} is there, but {some(absent)} is not")
        arrays = [_array(canonical[part]) for part in parts]
        weights[ours] = _from_theirs(ours, arrays, row.kind, style, heads)
    return weights, left_out


def from_ours(
    weights: Mapping[str, np.ndarray], style: str, heads: Heads = PUBLISHED
) -> dict[str, np.ndarray]:
    """Translate our weights into the names and layouts of `style`: the inverse of `to_ours`.

    Raises:
        CheckpointError: a name is not ours, or the style has no such layer.
    """
    rows = ROWS_BY_OURS[style]
    state = {}
    for ours, array in weights.items():
        template, number = split_number(ours)
        row = rows.get(template)
        if row is None:
            hint = " (it has no mean-pooled classifier)" if ours.startswith("fc_norm.") else ""
            raise CheckpointError(f"the style {style} has no place for {ours}{hint}")
        theirs = _to_theirs(ours, array, row.kind, style, heads)
        pieces = [theirs] if len(row.theirs) == 1 else np.split(theirs, len(row.theirs))
        for part, piece in zip(row.theirs, pieces):
            state[part.replace("#", number)] = piece
    return state


def _array(tensor: Any) -> np.ndarray:
    return tensor.array() if isinstance(tensor, TensorInfo) else tensor


def _from_theirs(
    name: str, parts: list[np.ndarray], kind: str, style: str, heads: Heads
) -> np.ndarray:
    if kind == COPY or style == "ours":
        return parts[0]
    if kind == LINEAR:
        _check_dimensions(name, parts[0], 2)
        return np.ascontiguousarray(parts[0].T)
    for part in parts:
        _check_dimensions(name, part, 1 if name.endswith(".bias") else 2)
    joined = parts[0] if len(parts) == 1 else np.concatenate(parts)
    width = joined.shape[0] // 3
    if joined.shape[0] != 3 * width:
        raise CheckpointError(f"{name}: {joined.shape} is not a query, a key and a value")
    return pack_qkv(joined, heads.of(name, width))


def _to_theirs(name: str, array: np.ndarray, kind: str, style: str, heads: Heads) -> np.ndarray:
    if kind == COPY or style == "ours":
        return array
    if kind == LINEAR:
        _check_dimensions(name, array, 2)
        return np.ascontiguousarray(array.T)
    _check_dimensions(name, array, 1 if name.endswith(".bias") else 2)
    return unpack_qkv(array, heads.of(name, array.shape[-1] // 3))


def _check_dimensions(name: str, array: np.ndarray, expected: int) -> None:
    if array.ndim != expected:
        raise CheckpointError(f"{name}: has the shape {array.shape}, not {expected} dimensions")
