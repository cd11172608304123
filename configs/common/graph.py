"""Static graph or eager execution."""

from libai.config import LazyCall
from omegaconf import DictConfig

from libai_ext.engine.graph import Graph

graph = DictConfig(
    dict(
        # True: a static graph; False: eager mode. Unset: a graph on GPUs; on CPU eager mode, but a
        # graph for activation checkpointing, and for pipeline stages that work on several
        # micro-batches. A resumed run keeps its mode.
        enabled=None,
        train_graph=LazyCall(Graph)(is_train=True),
        eval_graph=LazyCall(Graph)(is_train=False),
    )
)
