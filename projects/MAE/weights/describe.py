"""Describe a weights file: where it is, whose names it uses, which model it belongs to."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any, Mapping

import numpy as np

from libai_ext.checkpoint import formats, manifest, oneflow_folder, record, safetensors_file
from libai_ext.checkpoint.errors import CheckpointError
from libai_ext.checkpoint.tensors import TensorInfo
from projects.MAE.weights import foreign
from projects.MAE.weights.mapping import find_state_dict, others_in, recognise, shapes_in, some
from projects.MAE.weights.names import without_alias
from projects.MAE.weights.packing import DECODER_HEADS, ENCODER_HEADS, PUBLISHED, Heads
from projects.MAE.weights.record import EMPTY, Record, check, of_run_config, parse
from projects.MAE.weights.shapes import grid_of_table, patches_of, sizes_of

# Files with room for a record keep it under this key: in a `.pth`, or in safetensors' metadata.
KEY = "record"
RUN_CONFIG = "config.yaml"
DECODER = ("mask_token", "decoder_")


@dataclass(frozen=True)
class Source:
    """What was found in a file.

    Attributes:
        path: as the caller gave it.
        located: the file or folder itself; for a run, its checkpoint.
        style: a member of `names.STYLES`.
        contents: "pretraining" (encoder and decoder), "encoder" or "classifier".
        record: everything known about the model, from the record and the tensors.
        dtypes: the types of its tensors; bfloat16 is read as float32.
        patches: number of patches in its position table.
        notes: a sentence for each value that the file does not give and that was derived.
        left_out: names that no model of ours has a place for.
    """

    path: str
    located: str
    style: str
    contents: str
    record: Record
    dtypes: tuple[str, ...]
    patches: int | None
    notes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def heads(self) -> Heads:
        """None for what is not known."""
        model = self.record.model
        return Heads(model.get("num_heads"), model.get("decoder_num_heads"))

    @property
    def grid(self) -> tuple[int, int] | None:
        """(rows, columns) of patches; None if not known."""
        size, patch = (self.record.model.get(key) for key in ("img_size", "patch_size"))
        return (size[0] // patch, size[1] // patch) if size and patch else None

    def summary(self) -> str:
        """The model in one line, for the log."""
        model = self.record.model
        size = model.get("img_size")
        parts = [f"{size[0]} x {size[1]} pixels"] if size else []
        for key, words in (
            ("patch_size", "patch {}"), ("embed_dim", "width {}"), ("depth", "depth {}"),
            ("num_heads", "{} heads"), ("decoder_embed_dim", "decoder width {}"),
            ("decoder_depth", "depth {}"), ("decoder_num_heads", "{} heads"),
            ("norm_pix_loss", "norm_pix_loss {}"), ("target", "target {}"),
            ("num_classes", "{} classes"),
        ):  # fmt: skip
            if key in model and (self.contents == "pretraining" or "decoder" not in key):
                parts.append(words.format(model[key]))
        return ", ".join(parts)


def contents_of(names: Any) -> str:
    """`Source.contents` of a set of our names."""
    if any(name.startswith(DECODER) for name in names):
        return "pretraining"
    return "classifier" if any(name.startswith("head.") for name in names) else "encoder"


def describe(
    path: str | os.PathLike[str], heads: Heads = PUBLISHED, grid: tuple[int, int] | None = None
) -> tuple[dict[str, Any], Source]:
    """The state dict in a checkpoint, its tensors not yet read, and what is known about it.

    Args:
        path: a file of weights, a Hugging Face folder, a LiBai checkpoint, or a run's folder.
        heads, grid: given by the user, for a file that does not give them.

    Raises:
        CheckpointError: names the file and what is wrong, or which values contradict each other.
    """
    path = os.fspath(path)
    located = formats.locate(path)
    whole = os.path.dirname(located) if located.endswith(f"/{oneflow_folder.MODEL}") else located
    manifest.verify_part(whole, oneflow_folder.MODEL)
    tree = formats.inspect(located)
    try:
        state, wrapper = find_state_dict(tree)
        style = recognise(state)
        found, notes = _recorded(located, tree, style)
        shapes = shapes_in(state, style)
        sizes = sizes_of(shapes)
        found, dropped = _usable(found, sizes, patches_of(shapes))
        check(found, sizes)
        model = {**found.model, **sizes}
        others = others_in(tree, wrapper)
        if others:
            notes = [*notes, f"the weights under {wrapper} are used, not those of {some(others)}"]
        notes = [*notes, *dropped, *_add_heads(model, found.origin, heads, style)]
        notes += _add_grid(model, found.origin, grid, patches_of(shapes), state)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    dtypes = tuple(sorted({str(tensor.dtype) for tensor in state.values()}))
    contents = contents_of(shapes)
    classes = found.classes if contents == "classifier" else None
    if classes is not None and len(classes) != sizes["num_classes"]:
        raise CheckpointError(
            f"{path}: {found.origin} names {len(classes)} classes, the head has "
            f"{sizes['num_classes']}"
        )
    complete = replace(found, model=model, classes=classes)
    source = Source(
        path, located, style, contents, complete, dtypes, patches_of(shapes), tuple(notes)
    )
    return state, source


def _recorded(located: str, tree: Any, style: str) -> tuple[Record, list[str]]:
    """The record stored with the tensors, and a sentence for each part that is not used."""
    if os.path.isdir(located):
        return _of_checkpoint(located)
    if isinstance(tree, dict) and isinstance(tree.get(KEY), str):
        return parse(record.loads(tree[KEY], f"{located}, {KEY}"), located), []
    if formats.is_safetensors(located):
        text = safetensors_file.metadata(located).get(KEY)
        if text is not None:
            return parse(record.loads(text, f"{located}, {KEY}"), located), []
    folder = os.path.dirname(located)
    if style in ("hf", "hf5"):
        return foreign.huggingface(folder), []
    if os.path.basename(located) in formats.PRETRAINED_FILES:
        return foreign.timm(folder), []
    return foreign.official(tree.get("args"), located)


def _of_checkpoint(folder: str) -> tuple[Record, list[str]]:
    """A checkpoint's ``record.json``; without one, the ``config.yaml`` of its run."""
    folder = os.path.abspath(folder)
    if os.path.basename(folder) == oneflow_folder.MODEL:
        folder = os.path.dirname(folder)
    own = record.read(folder)
    if own is not None:
        return parse(own, os.path.join(folder, record.RECORD)), []
    beside = os.path.join(os.path.dirname(folder), RUN_CONFIG)
    if os.path.isfile(beside):
        return of_run_config(beside), []
    missing = f"{folder} has no {record.RECORD} and no {RUN_CONFIG} beside it"
    return EMPTY, [f"{missing}: heads, image size, loss and preprocessing are not known"]


def _usable(
    found: Record, sizes: Mapping[str, Any], patches: int | None
) -> tuple[Record, list[str]]:
    """Drop the image size of official args if the table has another number of patches: forks for
    rectangles leave ``input_size`` unchanged."""
    size, patch = found.model.get("img_size"), sizes.get("patch_size")
    if not found.origin.endswith("(args)") or not size or not patch or not patches:
        return found, []
    if size[0] // patch * (size[1] // patch) == patches:
        return found, []
    model = {key: value for key, value in found.model.items() if key != "img_size"}
    note = f"{found.origin}: input_size {size[0]} is not that of {patches} patches, and not used"
    return replace(found, model=model), [note]


def _add_heads(model: dict[str, Any], origin: str, given: Heads, style: str) -> list[str]:
    """Fill in the heads, as given or by a published width; returns what was derived.

    Heads of our own models are never derived: they have other numbers at those widths, and their
    checkpoints give them.
    """
    notes = []
    for part, prefix, known in (
        ("encoder", "", ENCODER_HEADS),
        ("decoder", "decoder_", DECODER_HEADS),
    ):
        key, width = f"{prefix}num_heads", model.get(f"{prefix}embed_dim")
        own, said = model.get(key), getattr(given, part)
        if own and said and own != said:
            raise CheckpointError(f"{said} heads of the {part} are given, {origin} says {own}")
        if own or said:
            model[key] = own or said
        elif width in known and style != "ours":
            model[key] = known[width]
            notes.append(
                f"the file does not say how many heads the {part} has: {known[width]}, as the "
                f"published models of width {width}"
            )
    return notes


def _add_grid(
    model: dict[str, Any],
    origin: str,
    given: tuple[int, int] | None,
    patches: int | None,
    state: Mapping[str, Any],
) -> list[str]:
    """Fill in the image size, as given or from the position table; returns what was derived."""
    patch, size = model.get("patch_size"), model.get("img_size")
    if not patch or not patches:
        return []
    if size:
        grid = (size[0] // patch, size[1] // patch)
        if given and tuple(given) != grid:
            raise CheckpointError(f"a grid of {_x(given)} is given, {origin} says {_x(grid)}")
        if grid[0] * grid[1] != patches:
            raise CheckpointError(
                f"{origin} says {_x(size)} pixels, {_x(grid)} patches; the position table has "
                f"{patches}"
            )
        return []
    if given:
        if given[0] * given[1] != patches:
            raise CheckpointError(f"{patches} patches are not a {_x(given)} grid")
        model["img_size"] = [given[0] * patch, given[1] * patch]
        return []
    table = next(t for name, t in state.items() if _is_table(name))
    found = grid_of_table(_array(table), model, patches)
    if found is None:
        return []
    grid, how = found
    model["img_size"] = [grid[0] * patch, grid[1] * patch]
    return [f"the file does not say its image size: {_x(model['img_size'])}, {how}"]


def _is_table(name: str) -> bool:
    return without_alias(name) in ("pos_embed", "embeddings.position_embeddings")


def _array(tensor: Any) -> np.ndarray:
    return tensor.array() if isinstance(tensor, TensorInfo) else tensor


def _x(pair: Any) -> str:
    return f"{pair[0]} x {pair[1]}"
