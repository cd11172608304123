"""Which parameters are decayed, and how fast each learns."""

from __future__ import annotations

from oneflow import nn


def decay_matrices_only(
    model: nn.Module, weight_decay: float, clip_grad_max_norm: float | None = None
) -> list[dict]:
    """Two groups, as in timm and the official MAE: parameters of one dimension (biases,
    normalisation scales) without decay, all others, also tokens, with decay.

    Args:
        clip_grad_max_norm: largest L2 norm of a group's gradients; OneFlow clips each group
            separately, in graph and in eager mode.
    """
    groups = [
        {"params": [], "weight_decay": 0.0},
        {"params": [], "weight_decay": weight_decay},
    ]
    for _, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[parameter.ndim > 1]["params"].append(parameter)
    return _clipped([group for group in groups if group["params"]], clip_grad_max_norm)


def layer_decay(
    model: nn.Module, weight_decay: float, decay: float, clip_grad_max_norm: float | None = None
) -> list[dict]:
    """Groups by layer and decay: layer i of n learns at ``decay ** (n - i)`` times the rate, as
    in the official MAE's fine-tuning (``util/lr_decay.py``; BEiT, arXiv:2106.08254).

    The factor is the group's ``lr_scale``, which graphs apply by themselves; in eager mode see
    :func:`libai_ext.optim.lr_scale.scaled`.

    Args:
        model: has ``layer_number(name)``, 0 for embeddings; ``num_layers``, the layer number n of
            what follows the last block; ``undecayed``, names that get no decay, in addition to
            parameters of one dimension.
    """
    groups: dict[tuple[int, bool], dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decayed = parameter.ndim > 1 and name not in model.undecayed
        layer = model.layer_number(name)
        group = groups.setdefault(
            (layer, decayed),
            {
                "params": [],
                "weight_decay": weight_decay if decayed else 0.0,
                "lr_scale": decay ** (model.num_layers - layer),
            },
        )
        group["params"].append(parameter)
    return _clipped(list(groups.values()), clip_grad_max_norm)


def _clipped(groups: list[dict], max_norm: float | None) -> list[dict]:
    """Make OneFlow clip each group's gradients to an L2 norm of ``max_norm``."""
    if max_norm is not None:
        for group in groups:
            group.update(clip_grad_max_norm=max_norm, clip_grad_norm_type=2.0)
    return groups
