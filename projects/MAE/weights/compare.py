"""Which sizes of a model and of a file of weights contradict each other."""

from __future__ import annotations

from typing import Any, Iterable, Mapping

from projects.MAE.weights.record import differ

ENCODER = ("in_chans", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio")
DECODER = ("decoder_embed_dim", "decoder_depth", "decoder_num_heads")
DATA = ("mode", "mean", "std", "as_torchvision")
HEAD = ("num_classes", "pooling", "batch_norm")


def grey_of_colours(own: Mapping[str, Any], known: Mapping[str, Any]) -> bool:
    """Whether an encoder with one channel starts from weights with three. It gets their sum: a grey
    value gives what the same value in all three channels gave. A decoder has no such rule, since
    it would have to predict other pixels."""
    return (
        own.get("in_chans") == 1
        and known.get("in_chans") == 3
        and own.get("decoder_embed_dim") is None
    )


def contradictions(
    wanted: Mapping[str, Any], known: Mapping[str, Any], keys: Iterable[str], prefix: str = ""
) -> list[str]:
    """A text for each key whose values differ, with both values. Unknown values never differ."""
    return [
        f"{prefix}{key} {shown(wanted[key])}, the file has {shown(known[key])}"
        for key in keys
        if differ(wanted.get(key), known.get(key))
    ]


def shown(value: Any) -> str:
    """The value as it is written on the command line."""
    if isinstance(value, (str, bool, int)):
        return str(value)
    if isinstance(value, float):
        return f"{value:g}"
    return "[" + ",".join(map(shown, value)) + "]"
