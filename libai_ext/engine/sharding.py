"""Gathers weights that ZeRO has sharded when a layer uses them.

Compiling a training graph with ZeRO shards the model's own tensors in place over the data-parallel
ranks. That graph gathers them, but no other use of the model does: LiBai's layers refuse weights
with another split than they were built with.
"""

from __future__ import annotations

from functools import partial
from typing import Callable

import oneflow as flow
from oneflow import nn

_BUILT = "sbp_as_built"


def gather_on_use(model: nn.Module) -> None:
    """From now on each module of ``model`` uses its tensors in their present split.

    In eager mode they are gathered when the module is called and released when it returns: a rank
    holds its shards and the whole tensors of one module (with gradients, those of all modules until
    the backward pass). In a graph, :func:`gather_in_graph` does the same.
    """
    for module in model.modules():
        tensors = (*module.named_parameters("", False), *module.named_buffers("", False))
        setattr(module, _BUILT, {name: tensor.sbp for name, tensor in tensors})
        module_tensors = _ModuleTensors(module)
        module.register_forward_pre_hook(module_tensors.gather)
        module.register_forward_hook(module_tensors.release)


def gather_in_graph(model) -> None:
    """Call it while an ``nn.Graph`` with ``model`` is built, before any module is called."""
    for module in model.modules():
        states = {**module._parameters, **module._buffers}
        for name, sbp in getattr(module.to(nn.Module), _BUILT, {}).items():
            builder = states[name].lazy_origin_builder()
            builder.method = partial(_build_gathered, builder.method, sbp)


def _build_gathered(build: Callable[[], flow.Tensor], sbp) -> flow.Tensor:
    return _gathered(build(), sbp)


def _gathered(tensor: flow.Tensor, sbp) -> flow.Tensor:
    return tensor if tensor.sbp == sbp else tensor.to_global(sbp=sbp)


class _ModuleTensors:
    """The tensors of one module, without those of its submodules."""

    def __init__(self, module: nn.Module):
        self.places = (module._parameters, module._buffers)
        self.sbp = getattr(module, _BUILT)
        self.sharded: list[tuple] = []

    def gather(self, module, inputs) -> None:
        for place in self.places:
            for name, tensor in place.items():
                if tensor is not None and tensor.sbp != self.sbp[name]:
                    self.sharded.append((place, name, tensor))
                    place[name] = _gathered(tensor, self.sbp[name])

    def release(self, module, inputs, output) -> None:
        for place, name, tensor in self.sharded:
            place[name] = tensor
        self.sharded.clear()
