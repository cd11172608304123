"""The contract of a target. B batch, C channels, H x W pixels, p patch, L patches, P width."""

from __future__ import annotations

from typing import Any, Callable, Mapping

import numpy as np
import oneflow as flow
from oneflow import nn

from projects.MAE.modeling.loss import squared_error


class Target(nn.Module):
    """What is predicted of each patch, and how far off a prediction is.

    ``model.target`` of a config names a class like this one; it may come from outside of this
    package. A target is neither trained nor saved: it has no parameters, and weights that it needs
    are buffers out of the state dict (:func:`frozen`).

    Attributes:
        width: P, the values that are predicted of a patch; known after :meth:`prepare`.
        as_pixels: (prediction [B, L, P], original patches [B, L, p*p*C]) -> pixels [B, L, p*p*C]
            in the order and the normalisation of the patches, all of them NumPy arrays; None for
            what cannot be shown as a picture.
        data: ``mode``, ``mean`` and ``std`` of the images that the target was made for, as far as
            they are known; the data of a run must not have others.
        identity: what must be the same when a run is resumed, beside the config's keys.
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
            ConfigError: there is no such target of these images.
        """
        raise NotImplementedError

    def forward(self, images: flow.Tensor) -> flow.Tensor:
        """The target [B, L, P] of images [B, C, H, W], on their ranks and split as they are.

        Within a graph as well: no branch may depend on a value.
        """
        raise NotImplementedError

    def loss(self, prediction: flow.Tensor, target: flow.Tensor) -> flow.Tensor:
        """The loss of each patch, float32 [B, L], both arguments [B, L, P]; the mean squared error
        where it is not said otherwise. The model averages it over the removed patches."""
        return squared_error(prediction, target)


def frozen(module: nn.Module) -> nn.Module:
    """``module`` with all of its tensors as buffers that are neither trained nor saved: optimizer,
    moving average and checkpoint take no notice of them."""
    for part in module.modules():
        tensors = {**part._parameters, **part._buffers}
        part._parameters.clear()
        for name, tensor in tensors.items():
            part._buffers.pop(name, None)
            fixed = None if tensor is None else tensor.detach()
            part.register_buffer(name, fixed, persistent=False)
    return module
