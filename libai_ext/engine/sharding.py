"""Weights that ZeRO has cut, whole again where a layer uses them.

Compiling a training graph with ZeRO splits the model's own tensors in place: each data-parallel
rank keeps a part. That graph brings them together by itself; no other use of the model does, and
LiBai's layers refuse weights that are split another way than they were built.
"""

from __future__ import annotations

from functools import partial
from typing import Callable

import oneflow as flow
from oneflow import nn

_BUILT = "sbp_as_built"


def gather_on_use(model: nn.Module) -> None:
    """From now on each module of ``model`` sees its own tensors laid out as they are now.

    In eager mode they are gathered when the module is called and let go when it returns: beside
    its parts a rank holds one module's whole tensors at a time (with gradients, all of them until
    the backward pass). In a graph, :func:`gather_in_graph` does the same.
    """
    for module in model.modules():
        tensors = (*module.named_parameters("", False), *module.named_buffers("", False))
        setattr(module, _BUILT, {name: tensor.sbp for name, tensor in tensors})
        own = _Own(module)
        module.register_forward_pre_hook(own.gather)
        module.register_forward_hook(own.release)


def gather_in_graph(model) -> None:
    """For ``model`` inside an ``nn.Graph`` that is being built, before any module is called."""
    for module in model.modules():
        states = {**module._parameters, **module._buffers}
        for name, sbp in getattr(module.to(nn.Module), _BUILT, {}).items():
            builder = states[name].lazy_origin_builder()
            builder.method = partial(_build_whole, builder.method, sbp)


def _build_whole(build: Callable[[], flow.Tensor], sbp) -> flow.Tensor:
    return _whole(build(), sbp)


def _whole(tensor: flow.Tensor, sbp) -> flow.Tensor:
    return tensor if tensor.sbp == sbp else tensor.to_global(sbp=sbp)


class _Own:
    """The tensors of one module, not of those inside it."""

    def __init__(self, module: nn.Module):
        self.places = (module._parameters, module._buffers)
        self.sbp = getattr(module, _BUILT)
        self.cut: list[tuple] = []

    def gather(self, module, inputs) -> None:
        for place in self.places:
            for name, tensor in place.items():
                if tensor is not None and tensor.sbp != self.sbp[name]:
                    self.cut.append((place, name, tensor))
                    place[name] = _whole(tensor, self.sbp[name])

    def release(self, module, inputs, output) -> None:
        for place, name, tensor in self.cut:
            place[name] = tensor
        self.cut.clear()
