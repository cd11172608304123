"""Output folders of runs as training leaves them, of small models with random weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import oneflow as flow
from omegaconf import OmegaConf

from libai_ext.checkpoint import torch_writer
from libai_ext.checkpoint.checkpointer import Checkpointer
from libai_ext.layers.initialize import assign
from projects.MAE.modeling.mae import MaskedAutoencoder
from projects.MAE.modeling.vit import ViTClassifier
from projects.MAE.weights.mapping import from_ours
from projects.MAE.weights.packing import Heads
from projects.MAE.weights.record import of_config

SIZES = dict(img_size=(16, 16), patch_size=4, in_chans=3, embed_dim=48, depth=2, num_heads=4)
DECODER = dict(decoder_embed_dim=24, decoder_depth=1, decoder_num_heads=2)
DATA = dict(mode="RGB", mean=[0.5, 0.4, 0.3], std=[0.3, 0.2, 0.1])


def autoencoder(**sizes) -> MaskedAutoencoder:
    """A model of SIZES and DECODER with these in their place."""
    return MaskedAutoencoder(**{**SIZES, **DECODER, **sizes}).eval()


def classifier(**sizes) -> ViTClassifier:
    return ViTClassifier(**{**SIZES, "num_classes": 5, **sizes}).eval()


def randomise(model, seed: int = 0):
    """Weights of a model that was trained: none zero, the fixed tables as they were."""
    rng = np.random.default_rng(seed)
    fixed = [name for name, _ in model.named_buffers()]
    with flow.no_grad():
        for name, tensor in model.state_dict().items():
            values = rng.normal(scale=0.2, size=tuple(tensor.shape)).astype(np.float32)
            if name == "head_norm.running_var":
                values = 0.5 + values**2
            if not (name in fixed and name.endswith("pos_embed")):
                assign(tensor, values + tensor.numpy() * ("norm" in name))
    return model


def weights_of(model) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def make_run(folder, model, sizes, data=None, classes=None) -> str:
    """Save ``model`` as the run's ``model_final``, through the checkpointer of training.

    Args:
        sizes: of the model, as keys of its config.
        data: of the config.
    """
    cfg = OmegaConf.create({"model": {"arch": "mae_vit_digits", **sizes}, "data": data or DATA})
    checkpointer = Checkpointer(model, str(folder))
    checkpointer.record = of_config(cfg, classes).plain()
    checkpointer.save("model_final", 9)
    checkpointer.finish()
    Path(folder, "config.yaml").write_text(OmegaConf.to_yaml(cfg))
    return str(folder)


def pretrained_run(folder, data=None, **sizes) -> tuple[str, MaskedAutoencoder]:
    """A run of :func:`autoencoder`, and its model."""
    model = randomise(autoencoder(**sizes))
    defaults = dict(SIZES, **DECODER, mask_ratio=0.75, norm_pix_loss=False)
    return make_run(folder, model, {**defaults, **sizes}, data), model


def classified_run(folder, **sizes) -> tuple[str, ViTClassifier]:
    """A run of :func:`classifier`, and its model; the classes are c0, c1 and so on."""
    sizes = {**SIZES, "num_classes": 5, "pooling": "mean", "batch_norm": False, **sizes}
    model = randomise(classifier(**sizes))
    names = [f"c{number}" for number in range(sizes["num_classes"])]
    return make_run(folder, model, sizes, classes=names), model


def official_probe(path, model: ViTClassifier) -> str:
    """``model`` with a batch norm as main_linprobe.py saves it: batch norm and head are the
    members of a Sequential."""
    state = from_ours(weights_of(model), "fb", Heads(model.blocks[0].self_attention.num_heads))
    head = {name: state.pop(name) for name in list(state) if name.startswith("head")}
    state["head.0.running_mean"] = head["head_norm.running_mean"]
    state["head.0.running_var"] = head["head_norm.running_var"]
    state["head.0.num_batches_tracked"] = np.array(7)
    state["head.1.weight"], state["head.1.bias"] = head["head.weight"], head["head.bias"]
    torch_writer.save({"model": state, "args": {"input_size": model.patch_embed.img_size[0]}}, path)
    return str(path)
