"""Which parameters are decayed."""

from __future__ import annotations

from oneflow import nn


def decay_matrices_only(model: nn.Module, weight_decay: float) -> list[dict]:
    """Two groups, as timm's and the official MAE's optimizer: parameters of one dimension
    (biases, normalisation scales) undecayed, all others decayed, tokens included."""
    groups = [
        {"params": [], "weight_decay": 0.0},
        {"params": [], "weight_decay": weight_decay},
    ]
    for _, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[parameter.ndim > 1]["params"].append(parameter)
    return groups
