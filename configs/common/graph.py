"""Static graph or eager execution."""

from libai.config import LazyCall
from omegaconf import DictConfig

from libai_ext.engine.graph import Graph

graph = DictConfig(
    dict(
        # True: a static graph; False: eager mode. Unset: a graph on GPUs, eager mode on CPU unless
        # something else that is set needs a graph. A resumed run keeps its mode.
        enabled=None,
        train_graph=LazyCall(Graph)(is_train=True),
        eval_graph=LazyCall(Graph)(is_train=False),
    )
)
