"""Convert MAE and ViT checkpoints between this project, the official MAE, timm and Hugging Face.

    .venv/bin/python tools/convert.py SRC DST --to fb|timm|hf|oneflow
    .venv/bin/python tools/convert.py --inspect FILE

SRC is a `.pth`, `.bin` or `.safetensors` file, a Hugging Face folder, a checkpoint, or the output
folder of a run for its last checkpoint; its style is recognised by tensor names. DST is a `.pth`
(`.bin` for hf) or `.safetensors` file, a new folder for `from_pretrained` (hf), or a new checkpoint
(oneflow). What SRC says about its model (heads, image size, loss, mean and deviation, classes) is
kept if DST's format has a place for it. Neither PyTorch nor OneFlow is needed. No code in SRC is
executed.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import os
import sys
import time
from typing import Any, Sequence

import numpy as np

from libai_ext.checkpoint import formats
from libai_ext.checkpoint.errors import CheckpointError
from libai_ext.checkpoint.plain import Placeholder
from libai_ext.checkpoint.tensors import TensorInfo
from libai_ext.text import printable, printable_lines
from projects.MAE.option_types import pair, whole
from projects.MAE.weights import files
from projects.MAE.weights.mapping import find_state_dict, from_ours, recognise, some
from projects.MAE.weights.names import ROWS_BY_OURS, split_number, without_alias
from projects.MAE.weights.packing import Heads

TARGETS = {"fb": "fb", "timm": "fb", "hf": "hf", "oneflow": "ours"}  # target -> style of names

MAX_LINES = 20_000  # a hostile file can contain one dictionary many times


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, or 2 for an error in the command or the file."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        if options.inspect:
            inspect(options.inspect)
        elif not options.source or not options.target:
            parser.error("SRC and DST are needed, or --inspect FILE")
        else:
            convert(options)
    except CheckpointError as error:
        print(f"convert: error: {printable_lines(str(error))}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", nargs="?", metavar="SRC")
    parser.add_argument("target", nargs="?", metavar="DST")
    parser.add_argument("--to", choices=TARGETS, default="oneflow", help="style of DST (oneflow)")
    parser.add_argument("--inspect", metavar="FILE", help="show what FILE holds; reads no tensor")
    parser.add_argument("--encoder-heads", type=whole(1), metavar="N", help="if SRC does not say")
    parser.add_argument("--decoder-heads", type=whole(1), metavar="N", help="if SRC does not say")
    parser.add_argument(
        "--grid",
        type=pair,
        metavar="ROWSxCOLUMNS",
        help="patches of the position tables, if SRC does not say",
    )
    return parser


def convert(options: argparse.Namespace) -> None:
    """Read, write, read again and compare every bit.

    Raises:
        CheckpointError: SRC cannot be read, DST cannot be written, or the round trip is not exact.
    """
    source_path, target_path = options.source, options.target
    located = formats.locate(source_path)
    if os.path.exists(target_path) and os.path.samefile(source_path, target_path):
        raise CheckpointError(f"{target_path}: SRC and DST are the same")
    started = time.monotonic()
    _say(f"reading  {located}")
    given = Heads(options.encoder_heads, options.decoder_heads)
    weights, source = files.read_weights(source_path, given, options.grid)
    _say(f"         {_summary(weights, source)}")
    _say(f"         {source.summary()}")
    for note in source.notes:
        _say(f"note:    {note}")
    folded = "head_norm.running_mean" in weights and options.to in ("timm", "hf")
    if folded:
        weights = files.fold_probe(weights)
        source = dataclasses.replace(source, record=source.record.having(batch_norm=False))
        print("note:    the batch norm before the head becomes part of the head")
    _say(f"writing  {target_path} ({options.to})")
    dropped = _write(weights, options, source)
    _print_table(weights, source.style, TARGETS[options.to], dropped)
    for name in source.left_out:
        _say(f"left out: {name}: no model of this project has it")
    _say_what_is_lost(source, options)
    print("checking the round trip")
    changed = [name for name in weights if folded and name.startswith("head.")]
    kept = len(weights) - len(dropped) - len(changed)
    unmatched = from_ours({name: weights[name] for name in dropped}, source.style, source.heads)
    del weights  # the check needs the memory
    _check_round_trip(source, target_path, list(unmatched), changed)
    _say(f"{kept} tensors equal bit for bit, {time.monotonic() - started:.1f} s")


def _say_what_is_lost(source: files.Source, options: argparse.Namespace) -> None:
    """Print what is known but has no place in DST, and what DST needs but is not known."""
    known = source.record
    bare = os.path.splitext(options.target)[1] in files.TORCH_SUFFIXES and options.to != "fb"
    if bare:
        _say(f"note:    {options.target} has no room for: {source.summary()}")
    elif options.to == "hf":
        wanted = ("norm_pix_loss", "mask_ratio") if source.contents == "pretraining" else ()
        absent = [key for key in wanted if key not in known.model]
        absent += [key for key in ("mean", "std") if key not in known.data]
        if "target" in known.model:
            _say(f"note:    SRC predicts {known.model['target']}, transformers' decoder pixels")
        if absent:
            _say(f"note:    SRC does not say {', '.join(absent)}: transformers' defaults hold")
        patches = source.patches or 0
        if source.contents == "pretraining" and math.isqrt(patches) ** 2 != patches:
            _say(
                f"note:    transformers builds no ViTMAEForPreTraining of {patches} patches, no "
                "square number; a ViTMAEModel it does"
            )


def _summary(weights: dict[str, np.ndarray], source: files.Source) -> str:
    size = sum(array.nbytes for array in weights.values())
    types = ", ".join(source.dtypes)
    widened = " (widened to float32)" if "bfloat16" in source.dtypes else ""
    return (
        f"style {source.style}, {source.contents}, {len(weights)} tensors, "
        f"{size / 1e6:.1f} MB, {types}{widened}"
    )


def _write(
    weights: dict[str, np.ndarray], options: argparse.Namespace, source: files.Source
) -> list[str]:
    """Write DST; returns our names that its style has no place for."""
    path, heads, known = options.target, source.heads, source.record
    if options.to == "timm":
        return files.write_timm(weights, path, heads, known)
    if options.to == "hf":
        files.write_hf(weights, path, heads, source.grid, known)
    elif options.to == "fb":
        files.write_fb(weights, path, heads, known)
    elif os.path.splitext(path)[1] in (*files.TORCH_SUFFIXES, files.SAFETENSORS):
        raise CheckpointError(f"{path}: --to oneflow writes a folder; for a file give another --to")
    else:
        files.write_oneflow(weights, path, known)
    return []


def _say(line: str) -> None:
    """Print a line, made printable: names come from files."""
    print(printable(line))


def _print_table(
    weights: dict[str, np.ndarray], source: str, target: str, dropped: Sequence[str]
) -> None:
    """Print a line for each kind of tensor, with its new name; all blocks count as one."""
    counts: dict[str, int] = {}
    for name in weights:
        template = split_number(name)[0]
        counts[template] = counts.get(template, 0) + 1
    dropped_templates = {split_number(name)[0] for name in dropped}
    rows = []
    for template, count in counts.items():
        here = _joined(ROWS_BY_OURS[source][template].theirs)
        if template in dropped_templates:
            rows.append((f"{count:4d}", here, "left out"))
        else:
            rows.append((f"{count:4d}", here, _joined(ROWS_BY_OURS[target][template].theirs)))
    width = max(len(row[1]) for row in rows)
    for number, here, there in rows:
        _say(f"{number} x {here:{width}} -> {there}")


def _joined(names: tuple[str, ...]) -> str:
    """Several names as one: "a.{query,key,value}.bias"."""
    if len(names) == 1:
        return names[0]
    start = os.path.commonprefix(names)
    end = os.path.commonprefix([name[::-1] for name in names])[::-1]
    start, end = start[: start.rfind(".") + 1], end[end.find(".") :]
    middles = (name[len(start) : len(name) - len(end)] for name in names)
    return f"{start}{{{','.join(middles)}}}{end}"


def _check_round_trip(
    source: files.Source, target_path: str, dropped: Sequence[str], changed: Sequence[str]
) -> None:
    """Translate DST back into the style of SRC and compare with what SRC holds, bit for bit.

    One tensor at a time, so that it needs no more memory than the conversion.

    Args:
        dropped: names in SRC that DST has no place for.
        changed: our names of tensors with new values.
    """
    state, _ = find_state_dict(formats.inspect(source.located))
    remaining = {without_alias(name): tensor for name, tensor in state.items()}
    for name in (*source.left_out, *dropped):
        del remaining[name]
    if changed:
        remaining = {name: t for name, t in remaining.items() if not name.startswith("head")}
    different = []
    written, _ = files.read_weights(target_path, source.heads)
    for ours, array in written.items():
        if ours in changed:
            continue
        for name, back in from_ours({ours: array}, source.style, source.heads).items():
            tensor = remaining.pop(name, None)
            if tensor is None or not _same_bits(tensor.array(), back):
                different.append(name)
    different += remaining
    if different:
        raise CheckpointError(f"{target_path}: the round trip changed {some(different)}")


def _same_bits(left: np.ndarray, right: np.ndarray) -> bool:
    same_kind = left.dtype == right.dtype and left.shape == right.shape
    return same_kind and left.tobytes() == right.tobytes()


def inspect(path: str) -> None:
    """Print names, shapes, types, style and size of a checkpoint without reading its tensors.

    Raises:
        CheckpointError: the file cannot be read.
    """
    tree = formats.inspect(path)
    leaves = _leaves(tree)
    for name, what in itertools.islice(leaves, MAX_LINES):
        _say(f"{name:60}  {what}")
    if next(leaves, None):
        _say(f"... only the first {MAX_LINES} are shown")
    try:
        state, wrapper = find_state_dict(tree)
    except CheckpointError as error:
        _say(f"style: none: {error}")
        return
    where = f"under {wrapper!r}" if wrapper else "at the top"
    parameters = sum(tensor.numel for tensor in state.values())
    size = sum(tensor.nbytes for tensor in state.values())
    _say(f"{len(state)} tensors {where}, {parameters:,} elements, {size / 1e6:.1f} MB")
    try:
        _say(f"style: {recognise(state)}")
    except CheckpointError as error:
        _say(f"style: not recognised: {error}")


def _leaves(tree: Any, prefix: str = "", depth: int = 0) -> Any:
    """(name, description) of each value in a checkpoint; opens dictionaries three levels deep."""
    if not isinstance(tree, dict) or depth > 2:
        yield prefix, _description(tree)
        return
    for key, value in tree.items():
        name = f"{prefix}{key!s:.200}"
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{name}/", depth + 1)
        else:
            yield name, _description(value)


def _description(value: Any) -> str:
    if isinstance(value, TensorInfo):
        return f"{value.dtype:8} {list(value.shape)}"
    if isinstance(value, Placeholder):
        return f"{value.module}.{value.name}, not read"[:200]
    if isinstance(value, (int, float, str, bool, type(None))):
        return f"{value!r:.80}"
    return f"{type(value).__name__} of {len(value)}"


if __name__ == "__main__":
    sys.exit(main())
