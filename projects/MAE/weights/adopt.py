"""Fill unset sizes of a config from the weights that the run starts from, and compare the rest."""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple, Sequence

from omegaconf import DictConfig, OmegaConf

from libai_ext.checkpoint.checkpointer import checkpoint_folders, from_rank_0
from libai_ext.checkpoint.errors import CheckpointError
from libai_ext.errors import ConfigError
from projects.MAE.modeling.sizes import ARCHS
from projects.MAE.weights import compare
from projects.MAE.weights.compare import shown
from projects.MAE.weights.describe import Source, describe
from projects.MAE.weights.match import unknown_grid
from projects.MAE.weights.record import differ, named_target

DEFAULT_MLP_RATIO = 4.0


class Start(NamedTuple):
    """Where weights come from.

    Attributes:
        path: a file, a folder or a run.
        own: it is the run's own checkpoint; other code compares its config key by key.
        whole: the class head is used as well.
        evaluate: the run is only an evaluation.
    """

    path: str
    own: bool = False
    whole: bool = True
    evaluate: bool = False


def starting_point(cfg: DictConfig, go_on: bool = False, evaluate: bool = False) -> Start | None:
    """The weights that a run starts from, None for none. All ranks must call it together.

    Args:
        go_on: resume the last checkpoint of the output directory, if there is one.
        evaluate: evaluate ``train.load_weight``, or that checkpoint.
    """
    train, finetune = cfg.train, cfg.get("finetune")
    if go_on and evaluate and train.load_weight:
        raise ConfigError(
            "--resume --eval-only evaluates the checkpoint of train.output_dir, train.load_weight "
            "other weights: leave one out"
        )
    if go_on or (evaluate and not train.load_weight):
        if from_rank_0(lambda: bool(checkpoint_folders(train.output_dir))):
            return Start(train.output_dir, own=True, evaluate=evaluate)
    if train.extend_from and not evaluate:
        if train.load_weight:
            raise ConfigError("set train.extend_from or train.load_weight, not both")
        return Start(train.extend_from)
    if train.load_weight:
        return Start(train.load_weight, evaluate=evaluate)
    if finetune is not None and finetune.enable and finetune.path and not evaluate:
        return Start(finetune.path, whole=False)
    return None


def refuse_two_starts(opts: Sequence[str]) -> None:
    """
    Args:
        opts: the command line's ``key=value`` overrides of a training run.

    Raises:
        ConfigError: ``finetune.path`` is among them, and a key that takes precedence.
    """
    given = {key for key, _, value in (option.partition("=") for option in opts) if value != "null"}
    for key in ("train.load_weight", "train.extend_from"):
        if {key, "finetune.path"} <= given:
            raise ConfigError(
                f"set finetune.path (an encoder, for a new head) or {key} (the whole model), not "
                "both"
            )


def adopt(cfg: DictConfig, opts: Sequence[str], start: Start) -> list[str]:
    """Fill the unset sizes of ``cfg.model`` from the weights. All ranks must call it together.

    A size that is set, or ``model.arch`` in ``opts``, must equal that of the weights. A recipe's
    ``model.arch`` counts only without weights. The image size may differ.

    Args:
        opts: the command line's ``key=value`` overrides.

    Returns:
        A sentence for each value that was taken from the weights, and for each that differs from
        their training.

    Raises:
        CheckpointError: the weights cannot be read.
        ConfigError: the config contradicts them; names both values of each key.
    """
    source = from_rank_0(lambda: _source(cfg, start))
    if source is None:
        return []
    model, known = cfg.model, source.record.model
    sizes = [key for key in (*compare.ENCODER, *compare.DECODER) if key in model]
    if source.contents != "pretraining":
        sizes = [key for key in sizes if key not in compare.DECODER]
    wanted = {key: model[key] for key in sizes if model[key] is not None}
    arch = ARCHS.get(model.arch, {})
    if not start.own:
        arch_is_set = any(option.partition("=")[0] == "model.arch" for option in opts)
        if arch_is_set:
            wanted = {**{key: arch[key] for key in sizes if key in arch}, **wanted}
        said = f" (model.arch {model.arch})" if arch_is_set else ""
        _refuse(cfg, wanted, source, sizes, start, said)
    notes = _fill(model, known, sizes, source, arch)
    _check_heads(model, source, sizes, arch)
    _check_grid(model, source, arch)
    if start.own and not start.evaluate:
        return notes
    return notes + _differences(cfg, source, start)


def _source(cfg: DictConfig, start: Start) -> Source | None:
    """A description of the weights. If they are the run's own: of any checkpoint that can be read,
    None for none. All are of one model, and resuming names the damaged ones."""
    if not start.own:
        grid = cfg.train.load_grid
        return describe(start.path, grid=tuple(grid) if grid else None)[1]
    for path in (start.path, *map(str, sorted(checkpoint_folders(start.path)))):
        with contextlib.suppress(CheckpointError):
            return describe(path)[1]
    return None


def _refuse(
    cfg: DictConfig,
    wanted: dict[str, Any],
    source: Source,
    sizes: Sequence[str],
    start: Start,
    said: str,
) -> None:
    """
    Args:
        said: where the wanted sizes come from, for the message.

    Raises:
        ConfigError: a size of the config differs from that of the weights.
    """
    known = source.record.model
    if not start.whole and compare.grey_of_colours(wanted, known):
        wanted = {key: value for key, value in wanted.items() if key != "in_chans"}
    found = compare.contradictions(wanted, known, sizes, "model.")
    if start.whole and source.contents == "classifier" and "num_classes" in cfg.model:
        found += compare.contradictions(cfg.model, known, compare.HEAD, "model.")
    if not found:
        return
    advice = "set these keys as the file has them; sizes that are unset (null) are taken from it"
    if differ(cfg.model.get("in_chans"), known.get("in_chans")):
        data = source.record.data
        keys = [f"data.{key}={shown(data[key])}" for key in ("mode", "mean", "std") if key in data]
        advice = " ".join(["set", f"model.in_chans={known['in_chans']}", *keys])
    raise ConfigError(f"{source.path} is of another model: {'; '.join(found)}{said}: {advice}")


def _fill(
    model: DictConfig, known: dict[str, Any], sizes: Sequence[str], source: Source, arch: dict
) -> list[str]:
    filled = [key for key in (*sizes, "img_size") if model[key] is None and key in known]
    for key in filled:
        model[key] = known[key]
    taken = [f"{key} {shown(known[key])}" for key in filled]
    ratio = known.get("mlp_ratio", DEFAULT_MLP_RATIO)
    if "mlp_ratio" not in model and differ(ratio, DEFAULT_MLP_RATIO):
        model.mlp_ratio = ratio
        taken.append(f"mlp_ratio {shown(ratio)}")
    notes = []
    if taken:
        notes.append(f"model, as {source.record.origin or source.path} has it: {', '.join(taken)}")
    others = [key for key in filled if differ(arch.get(key), known[key])]
    if others:
        notes.append(f"model.arch {model.arch} gives way to the weights in {', '.join(others)}")
    return notes


def _check_heads(model: DictConfig, source: Source, sizes: Sequence[str], arch: dict) -> None:
    """
    Raises:
        ConfigError: neither file nor config gives the number of heads.
    """
    for prefix in ("", "decoder_"):
        key = f"{prefix}num_heads"
        if key not in sizes or model[key] is not None:
            continue
        same = all(not differ(arch.get(size), model[size])
                   for size in (f"{prefix}embed_dim", f"{prefix}depth"))  # fmt: skip
        if not same:
            raise ConfigError(
                f"{source.path} does not say how many attention heads it has: set model.{key}"
            )


def _check_grid(model: DictConfig, source: Source, arch: dict) -> None:
    """
    Raises:
        ConfigError: the position tables must be interpolated, and their grid is not known.
    """
    if source.grid is not None or source.patches is None:
        return
    size = model.img_size if model.img_size is not None else arch.get("img_size")
    patch = model.patch_size
    if size is None or patch is None:
        return
    height, width = (size, size) if isinstance(size, int) else size
    if height // patch * (width // patch) != source.patches:
        raise ConfigError(f"{source.path}: {unknown_grid(source.patches)}")


def _differences(cfg: DictConfig, source: Source, start: Start) -> list[str]:
    """A sentence for each difference between the config and the training of the weights.

    Raises:
        ConfigError: the run is an evaluation, and a difference would change its result.
    """
    known, found = source.record, []
    loss = ("norm_pix_loss", "target")
    for node, keys in (("model", loss), ("data", compare.DATA)):
        own: Any = OmegaConf.to_container(cfg[node], resolve=True) if node in cfg else {}
        if node == "model":
            own = named_target(own)
        values = known.model if node == "model" else known.data
        found += compare.contradictions(own, values, keys, f"{node}.")
    if found and start.evaluate:
        raise ConfigError(
            f"{source.path} was trained otherwise: {'; '.join(found)}: set these keys as the file "
            "has them"
        )
    if differ(cfg.model.get("mask_ratio"), known.model.get("mask_ratio")):
        found += compare.contradictions(cfg.model, known.model, ("mask_ratio",), "model.")
    return [f"{source.path} was trained otherwise: {line}" for line in found]
