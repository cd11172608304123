"""Static graph (``graph.enabled``) or eager execution."""

from libai.config import LazyCall
from omegaconf import DictConfig

from libai_ext.engine.graph import Graph

graph = DictConfig(
    dict(
        enabled=True,
        train_graph=LazyCall(Graph)(is_train=True),
        eval_graph=LazyCall(Graph)(is_train=False),
    )
)
