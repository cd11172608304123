"""Memory of a training step in a graph on a GPU, as OneFlow 0.9.0's compiler plans it.

The numbers below are counted in its plans (projects/MAE/PARALLEL.md compares them). N tokens, D
width, h heads; a value has 4 bytes, with mixed precision 2.

- Parameters and AdamW's moments take 4 and 8 bytes per parameter. Mixed precision adds copies of 2
  bytes. Several micro-batches add the sums of their gradients, with mixed precision in 2 bytes.
- ZeRO divides parameters and moments, and the gradients of one micro-batch, but not their sums. It
  divides by the data-parallel size. Parameters that tensor parallelism does not divide are divided
  by the tensor-parallel size instead. Within the step there are whole copies: of all parameters in
  stages 1 and 2, of one layer in stage 3.
- A layer keeps 19 N D + h N^2 values for its backward pass: the inputs and outputs of both norms;
  queries, keys and values twice (transposed together, then each); attention's weights and output;
  the MLP's hidden values before and after GELU. Tensor parallelism divides 15 N D + h N^2 of them.
  Activation checkpointing keeps N D, and computes one layer again.
- With tensor parallelism, ZeRO or one data-parallel rank, NCCL and the optimizer take turns with
  the other kernels, and gradients reuse the memory of activations. With one micro-batch, the peak
  is at the loss, or in the backward pass if a stage has more parameters than activations.
- Otherwise NCCL has its own stream (libai_ext.engine.graph), and less memory is reused. Gradients
  that are being sent need extra memory, in the width of activations. So does the optimizer: 4
  bytes per parameter, or 8 with several micro-batches in float32.
- In a pipeline, stage s of p holds p - s micro-batches (libai_ext.engine.pipeline_buffers). Forward
  pass, backward pass and the optimizer's step share no memory; the step needs gradients in 4 bytes.
- The images of a step are on the first stage, in 4 bytes; pre-training sends them to the last.
- Outside the graph are a copy of those images and the libraries' workspaces, measured as 60 MB.
"""

from __future__ import annotations

from typing import NamedTuple, Sequence

from projects.MAE.parallel.costs import Layer

WHOLE, SPLIT, SCORES = 4.0, 15.0, 1.0
WORKSPACE = 60e6


class Training(NamedTuple):
    batch: int
    accumulation: int = 1
    zero: int = 0
    amp: bool = False
    checkpointing: bool = False

    @property
    def width(self) -> int:
        """Bytes of an activation or a gradient."""
        return 2 if self.amp else 4


class Memory(NamedTuple):
    """Bytes on the fullest device.

    Attributes:
        gradients: sums over micro-batches, and gradients that are sent while kernels run; others
            share memory with activations.
        outside: memory outside the graph.
    """

    parameters: float
    gradients: float
    optimizer: float
    activations: float
    outside: float

    @property
    def graph(self) -> float:
        return sum(self) - self.outside


def groups_of(layers: Sequence[Layer], stages: Sequence[int]) -> list[list[Layer]]:
    """The layers of each stage."""
    return [[x for x, s in zip(layers, stages) if s == stage] for stage in range(stages[-1] + 1)]


def held(layers: Sequence[Layer], tensor: int) -> float:
    """Parameters of the layers on one of the tensor-parallel ranks."""
    return sum(layer.split_parameters / tensor + layer.whole_parameters for layer in layers)


def fullest(layers, training: Training, data: int, tensor: int, stages: Sequence[int]) -> Memory:
    """Memory of the stage that needs the most."""
    groups = groups_of(layers, stages)
    return max(
        (stage_memory(groups, stage, training, data, tensor) for stage in range(len(groups))),
        key=sum,
    )


def stage_memory(groups, stage: int, training: Training, data: int, tensor: int) -> Memory:
    """Memory of one stage; ``groups`` are the layers of each."""
    layers, remaining = groups[stage], len(groups) - stage
    parameters = held(layers, tensor)
    divided = _divided(layers, data, tensor) if training.zero else parameters
    several = training.accumulation > 1
    samples = training.batch // (data * training.accumulation)
    step = 4 * training.batch // data * layers[0].image if stage == 0 else 0
    images = _images(layers, stage, len(groups), training)
    sent = _sends_beside(training, data, tensor)
    activations = _activations(layers, remaining, training, data, tensor)
    return Memory(
        4 * divided + training.width * _copied(layers, training, tensor),
        training.width * parameters * (several + sent),
        8 * divided,
        samples * images + activations + step,
        WORKSPACE + step,
    )


def _divided(layers: Sequence[Layer], data: int, tensor: int) -> float:
    """Parameters that ZeRO leaves on one device."""
    whole = tensor if tensor > 1 else data
    return sum(x.split_parameters / tensor / data + x.whole_parameters / whole for x in layers)


def _copied(layers: Sequence[Layer], training: Training, tensor: int) -> float:
    """Parameters with a copy for the step. With one micro-batch and mixed precision, the copies
    count as activations."""
    if training.zero == 3:
        return max(held([layer], tensor) for layer in layers)
    several = training.accumulation > 1
    return held(layers, tensor) if (several if training.amp else training.zero) else 0.0


def _sends_beside(training: Training, data: int, tensor: int) -> bool:
    """Whether gradients are sent while kernels run."""
    return data > 1 and tensor == 1 and not training.zero


def _images(layers, stage: int, stages: int, training: Training) -> float:
    """Bytes of a sample's image, for all micro-batches that are being computed or sent."""
    several = training.accumulation > 1
    if stage == stages - 1 > 0:  # on their way to the loss
        return training.width * layers[-1].image * (min(stages, training.accumulation) + several)
    return 4 * layers[0].image * several if stage == 0 else 0.0


def _activations(layers, remaining: int, training: Training, data: int, tensor: int) -> float:
    """Bytes of activations and of the results of the backward pass and the optimizer.

    Args:
        remaining: number of stages from this one to the last.
    """
    several = training.accumulation > 1
    width = training.width * (training.batch // (data * training.accumulation))
    kept = [width * _kept(layer, training, tensor) for layer in layers]
    backward = [width * _backward(layer, training, tensor) for layer in layers]
    update, sent = _update(layers, training, data, tensor), _sends_beside(training, data, tensor)
    if several and remaining > 1:
        micro_batches = min(remaining, training.accumulation)
        forward = width * max(_forward(layer, training, tensor) for layer in layers)
        return micro_batches * sum(kept) + forward + max(backward) + update

    parameters = [held([layer], tensor) for layer in layers]
    gradients = [training.width / (data if training.zero else 1) * x for x in parameters]
    if several or sent:  # added to the sums, or sent, at once
        gradients = [0.0] * len(layers)
    if training.amp and not several and training.zero < 3:
        # Each layer's copy in 2 bytes is kept together with its activations.
        kept = [values + 2 * number for values, number in zip(kept, parameters)]
    loss = sum(kept) + width * layers[-1].loss
    passes = max(loss, _backward_peak(kept, backward, gradients, training))
    return passes + update if sent else max(passes, update)


def _update(layers, training: Training, data: int, tensor: int) -> float:
    """Bytes that the optimizer needs.

    They are added to those of activations if gradients are sent while kernels run, and in a
    pipeline with several micro-batches.
    """
    size = 4 * held(layers, tensor) / (data if training.zero else 1)
    sums = training.accumulation > 1 and not training.amp
    return size * (2 if sums and _sends_beside(training, data, tensor) else 1)


def _backward_peak(kept, backward, gradients, training: Training) -> float:
    """Earlier layers than the one being computed keep activations, later ones have gradients."""
    peak = 0.0
    for layer, work in enumerate(backward):
        here = sum(kept[: layer + 1]) + sum(gradients[layer + 1 :])
        # Without checkpointing, a layer's results reuse the memory of its kept values.
        peak = max(peak, here + (work if training.checkpointing else 0))
    return peak


def _kept(layer: Layer, training: Training, tensor: int) -> float:
    """Values of one sample that a layer keeps for its backward pass."""
    if training.checkpointing:
        return layer.tokens * layer.width + layer.beside
    return _all(layer, tensor) + layer.beside


def _all(layer: Layer, tensor: int) -> float:
    tokens, scores = layer.tokens * layer.width, layer.heads * layer.tokens**2
    return tokens * (WHOLE + SPLIT / tensor) + scores * SCORES / tensor


def _forward(layer: Layer, training: Training, tensor: int) -> float:
    """The most values that a layer's forward pass needs but does not keep."""
    if not training.checkpointing:
        return 0.0
    tokens, scores = layer.tokens * layer.width, layer.heads * layer.tokens**2
    return max(tokens * (1 + 8 / tensor), tokens * (1 + 1 / tensor) + 2 * scores / tensor)


def _backward(layer: Layer, training: Training, tensor: int) -> float:
    """The most values that a layer's backward pass holds: in the MLP, or in attention."""
    tokens, scores = layer.tokens * layer.width, layer.heads * layer.tokens**2
    if training.checkpointing:
        return _all(layer, tensor) + tokens * (1 + 8 / tensor)
    return max(tokens * (3 + 8 / tensor), tokens * 4 / tensor + 2 * scores / tensor)
