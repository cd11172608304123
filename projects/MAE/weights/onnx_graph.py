"""Build an ONNX graph of the encoder, with its class head if there is one, from the weights.

    images float32 [batch, C, H, W], normalised -> tokens [batch, 1 + L, D], logits [batch, N]

Neither OneFlow nor PyTorch is needed. B images, L patches, D width, h heads, E = D / h.
"""

from __future__ import annotations

import json
import math
import os
from typing import Any, Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from libai_ext.checkpoint.errors import CheckpointError
from projects.MAE.weights.describe import DECODER, Source
from projects.MAE.weights.mapping import from_ours
from projects.MAE.weights.packing import Heads

OPSET = 17  # the first with LayerNormalization
IR_VERSION = 8
LAYER_NORM_EPS = 1e-6
# The limit of a protobuf message is 2 GiB; larger weights go into a file next to the graph.
MAX_BYTES = 2_000_000_000


class _Graph:
    """Nodes and tensors, added one after the other."""

    def __init__(self, weights: Mapping[str, np.ndarray]):
        self.weights = weights
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: dict[str, onnx.TensorProto] = {}

    def add(self, op: str, *inputs: Any, outputs: int = 1, **attributes: Any) -> Any:
        """Returns the name of the node's output, or a list of several names. Arrays in the inputs
        become tensors of the graph."""
        number = len(self.nodes)
        names = [
            self.tensor(f"constant_{number}_{place}", one) if isinstance(one, np.ndarray) else one
            for place, one in enumerate(inputs)
        ]
        results = [f"{op}_{number}_{place}" for place in range(outputs)]
        self.nodes.append(helper.make_node(op, names, results, **attributes))
        return results[0] if outputs == 1 else results

    def tensor(self, name: str, array: np.ndarray) -> str:
        if name not in self.tensors:
            self.tensors[name] = numpy_helper.from_array(np.asarray(array, order="C"), name)
        return name

    def weight(self, name: str) -> str:
        return self.tensor(name, np.asarray(self.weights[name], np.float32))

    def linear(self, name: str, x: str) -> str:
        """PyTorch's weight is [out, in]."""
        weight = np.asarray(self.weights[f"{name}.weight"], np.float32).T
        product = self.add("MatMul", x, self.tensor(f"{name}.weight", weight))
        return self.add("Add", product, self.weight(f"{name}.bias"))

    def norm(self, name: str, x: str) -> str:
        scale, bias = self.weight(f"{name}.weight"), self.weight(f"{name}.bias")
        return self.add("LayerNormalization", x, scale, bias, axis=-1, epsilon=LAYER_NORM_EPS)

    def split_heads(self, name: str, x: str, heads: int) -> list[str]:
        """Query, key and value [B, h, L, E] of tokens [B, L, D]."""
        width = self.weights[f"{name}.weight"].shape[1]
        shape = np.array([0, 0, 3, heads, width // heads])
        packed = self.add("Reshape", self.linear(name, x), shape)
        packed = self.add("Transpose", packed, perm=[2, 0, 3, 1, 4])
        return [self.add("Gather", packed, np.array(which), axis=0) for which in range(3)]

    def attention(self, name: str, x: str, heads: int) -> str:
        query, key, value = self.split_heads(f"{name}.qkv", x, heads)
        width = self.weights[f"{name}.qkv.weight"].shape[1]
        query = self.add("Mul", query, _number(1 / math.sqrt(width // heads)))
        scores = self.add("MatMul", query, self.add("Transpose", key, perm=[0, 1, 3, 2]))
        mixed = self.add("MatMul", self.add("Softmax", scores, axis=-1), value)
        mixed = self.add("Transpose", mixed, perm=[0, 2, 1, 3])
        return self.linear(f"{name}.proj", self.add("Reshape", mixed, np.array([0, 0, width])))

    def mlp(self, name: str, x: str) -> str:
        """With the exact GELU, x (1 + erf(x / sqrt 2)) / 2."""
        x = self.linear(f"{name}.fc1", x)
        share = self.add("Erf", self.add("Mul", x, _number(math.sqrt(0.5))))
        share = self.add("Mul", self.add("Add", share, _number(1)), _number(0.5))
        return self.linear(f"{name}.fc2", self.add("Mul", x, share))

    def embed(self, patch: int) -> str:
        kernel, bias = (self.weight(f"patch_embed.proj.{part}") for part in ("weight", "bias"))
        sides = [patch, patch]
        x = self.add("Conv", "images", kernel, bias, kernel_shape=sides, strides=sides)
        width = self.weights["cls_token"].shape[-1]
        x = self.add("Reshape", x, np.array([0, width, -1]))
        x = self.add("Transpose", x, perm=[0, 2, 1])
        batch = self.add("Slice", self.add("Shape", x), np.array([0]), np.array([1]))
        shape = self.add("Concat", batch, np.array([1, width]), axis=0)
        token = self.add("Expand", self.weight("cls_token"), shape)
        return self.add("Add", self.add("Concat", token, x, axis=1), self.weight("pos_embed"))


def _number(value: float) -> np.ndarray:
    return np.array(value, np.float32)


def build(weights: dict[str, np.ndarray], source: Source) -> onnx.ModelProto:
    """
    Args:
        weights: under our names; a decoder is left out. A batch norm before the head must be folded
            into the head.
        source: what is known about them.

    Raises:
        CheckpointError: a needed value is not known.
    """
    known = source.record.model
    if source.patches is None or "img_size" not in known or "mlp_ratio" not in known:
        raise CheckpointError(f"{source.path}: its image size or its blocks are not known")
    heads = source.heads.of("blocks.0", known["embed_dim"])
    kept = {name: array for name, array in weights.items() if not name.startswith(DECODER)}
    graph = _Graph(from_ours(kept, "fb", Heads(heads)))
    x = graph.embed(known["patch_size"])
    for number in range(known["depth"]):
        block = f"blocks.{number}"
        x = graph.add(
            "Add", x, graph.attention(f"{block}.attn", graph.norm(f"{block}.norm1", x), heads)
        )
        x = graph.add("Add", x, graph.mlp(f"{block}.mlp", graph.norm(f"{block}.norm2", x)))
    if "norm.weight" in weights:
        x = graph.norm("norm", x)
    outputs = {"tokens": (x, [1 + source.patches, known["embed_dim"]])}
    if source.contents == "classifier":
        outputs["logits"] = (_head(graph, x), [known["num_classes"]])
    for name, (inner, _) in outputs.items():
        graph.nodes.append(helper.make_node("Identity", [inner], [name]))
    return _model(graph, source, {name: shape for name, (_, shape) in outputs.items()})


def _head(graph: _Graph, x: str) -> str:
    if "fc_norm.weight" not in graph.weights:
        return graph.linear("head", graph.add("Gather", x, np.array(0), axis=1))
    ends = np.array([np.iinfo(np.int64).max])
    patches = graph.add("Slice", x, np.array([1]), ends, np.array([1]))
    mean = graph.add("ReduceMean", patches, axes=[1], keepdims=0)
    return graph.linear("head", graph.norm("fc_norm", mean))


def _model(graph: _Graph, source: Source, outputs: dict[str, list[int]]) -> onnx.ModelProto:
    known = source.record.model

    def value(name: str, shape: list[int]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])

    made = helper.make_graph(
        graph.nodes,
        "encoder",
        [value("images", [known["in_chans"], *known["img_size"]])],
        [value(name, shape) for name, shape in outputs.items()],
        list(graph.tensors.values()),
    )
    opsets = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(made, opset_imports=opsets, ir_version=IR_VERSION)
    helper.set_model_props(model, {"record": json.dumps(source.record.plain())})
    return model


def write(model: onnx.ModelProto, path: str) -> list[str]:
    """Returns the written files: the graph, and a second file if the weights are too large for one.

    Raises:
        CheckpointError: a file cannot be written.
    """
    size = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    beside = f"{path}.data"
    try:
        if size <= MAX_BYTES:
            onnx.checker.check_model(model)
            onnx.save_model(model, path)
            return [path]
        if os.path.exists(beside):  # onnx would append to it
            os.unlink(beside)
        name = os.path.basename(beside)
        onnx.save_model(model, path, save_as_external_data=True, location=name)
        onnx.checker.check_model(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {error.strerror}") from None
    return [path, beside]
