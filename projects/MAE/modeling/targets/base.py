"""The base class of targets. B batch, C channels, H x W pixels, p patch, L patches, P width."""

from __future__ import annotations

from typing import Any, Callable, Mapping

import numpy as np
import oneflow as flow
from oneflow import nn

from projects.MAE.modeling.loss import squared_error


class Target(nn.Module):
    """What is predicted for each patch, and the loss of a prediction.

    ``model.target`` of a config names a subclass, which may be from another package. A target is
    neither trained nor saved: it has no parameters, and its weights, if any, are buffers outside
    the state dict (:func:`frozen`).

    Attributes:
        width: P, the number of predicted values per patch; known after :meth:`prepare`.
        as_pixels: (prediction [B, L, P], original patches [B, L, p*p*C]) -> pixels [B, L, p*p*C]
            in the order and the normalisation of the patches; all are NumPy arrays. None if the
            prediction cannot be shown as a picture.
        data: ``mode``, ``mean`` and ``std`` of the images that the target was made for, if known;
            the data of a run must have the same.
        identity: besides the config's keys, this must be the same when a run is resumed.
    """

    width: int
    as_pixels: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None
    data: Mapping[str, Any] = {}
    identity: str | None = None

    def prepare(self, img_size: tuple[int, int], patch_size: int, in_chans: int) -> None:
        """Called once, on all ranks, before anything else.

        Args:
            img_size: (H, W) in pixels.
            patch_size, in_chans: p and C.

        Raises:
            ConfigError: the target does not fit these images.
        """
        raise NotImplementedError

    def forward(self, images: flow.Tensor) -> flow.Tensor:
        """The target [B, L, P] of images [B, C, H, W], with their placement and layout.

        It may run in a graph: no branch may depend on a value.
        """
        raise NotImplementedError

    def loss(self, prediction: flow.Tensor, target: flow.Tensor) -> flow.Tensor:
        """The loss of each patch, float32 [B, L], from two [B, L, P]; by default the mean squared
        error. The model averages it over the removed patches."""
        return squared_error(prediction, target)


def frozen(module: nn.Module) -> nn.Module:
    """Make all tensors of ``module`` buffers that are neither trained nor saved: optimizer, moving
    average and checkpoint ignore them. Returns ``module``."""
    for part in module.modules():
        tensors = {**part._parameters, **part._buffers}
        part._parameters.clear()
        for name, tensor in tensors.items():
            part._buffers.pop(name, None)
            fixed = None if tensor is None else tensor.detach()
            part.register_buffer(name, fixed, persistent=False)
    return module
