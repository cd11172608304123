"""Check a layout against the model."""

from __future__ import annotations

from omegaconf import DictConfig

from libai_ext.engine import layout
from projects.MAE.parallel.costs import layers_of


def fit_layout(cfg: DictConfig) -> None:
    """Check the layout of a config with a resolved ``model``, and cut its pipeline into stages.

    Raises:
        ConfigError: lists everything that does not fit, with the numbers.
    """
    layers = layers_of(cfg.model)
    layout.fit_layout(cfg, [layer.operations for layer in layers], lambda: _problems(cfg))


def _problems(cfg: DictConfig) -> list[str]:
    tensor, model = cfg.train.dist.tensor_parallel_size, cfg.model
    problems = []
    for prefix in ("", "decoder_") if "decoder_depth" in model else ("",):
        width, heads = model[f"{prefix}embed_dim"], model[f"{prefix}num_heads"]
        hidden = int(width * (model.get("mlp_ratio") or 4.0))
        problems += [
            f"{name} {size} is not divisible by tensor_parallel_size {tensor}"
            for name, size in (
                (f"model.{prefix}num_heads", heads),
                (f"model.{prefix}embed_dim", width),
                (f"the MLP width (model.{prefix}embed_dim x mlp_ratio)", hidden),
            )
            if size % tensor
        ]
    return problems
