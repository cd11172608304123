"""Write what an independent implementation of fine-tuning computes: Hugging Face's ViT on PyTorch.

    python tests/golden/make_classifier_numbers.py

Needs torch and transformers, so it runs in an environment of its own. The committed files were
written by torch 2.13.0 and transformers 5.23.0.
"""

import math
import pathlib

import numpy as np
import torch
from transformers import ViTConfig, ViTForImageClassification

FOLDER = pathlib.Path(__file__).parent / "classifier_numbers"
SIDE, PATCH, WIDTH, DEPTH, CLASSES, BATCH = 16, 4, 24, 3, 5, 6
STEPS, WARMUP = 10, 3
LEARNING_RATE, MIN_LR, WEIGHT_DECAY, LAYER_DECAY = 2e-3, 1e-4, 0.05, 0.65


class Classifier(torch.nn.Module):
    """The layers of transformers' ViT; "mean" pools the patches before the last norm."""

    def __init__(self, pooling):
        super().__init__()
        config = ViTConfig(
            image_size=SIDE,
            patch_size=PATCH,
            hidden_size=WIDTH,
            num_hidden_layers=DEPTH,
            num_attention_heads=3,
            intermediate_size=4 * WIDTH,
            layer_norm_eps=1e-6,
            hidden_act="gelu",
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            num_labels=CLASSES,
        )
        torch.manual_seed(0)
        self.net = ViTForImageClassification(config)
        self.pooling = pooling
        with torch.no_grad():
            for parameter in self.net.parameters():  # biases and scales that do something
                if parameter.ndim == 1:
                    parameter.add_(0.1 * torch.randn_like(parameter))
                else:
                    parameter.mul_(3)
        norm = self.net.vit.layernorm
        if pooling == "mean":
            self.net.vit.layernorm = torch.nn.Identity()
            self.fc_norm = norm

    def forward(self, images):
        tokens = self.net.vit(images).last_hidden_state
        if self.pooling == "mean":
            return self.net.classifier(self.fc_norm(tokens[:, 1:].mean(1)))
        return self.net.classifier(tokens[:, 0])


def renamed(name):
    """As a state dict of transformers has it; the pooled norm keeps the place of the norm."""
    return name.replace("net.", "", 1).replace("fc_norm", "vit.layernorm")


def layer_of(name):
    if "layer." in name or "layers." in name:
        return int(next(part for part in name.split(".") if part.isdigit())) + 1
    return 0 if "embeddings" in name else DEPTH + 1


def batch(seed):
    """Images and soft targets; the tests draw the same."""
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(BATCH, 3, SIDE, SIDE)).astype(np.float32)
    targets = rng.dirichlet(np.ones(CLASSES), size=BATCH).astype(np.float32)
    return torch.from_numpy(images), torch.from_numpy(targets)


def loss_of(model, images, targets):
    return -(targets * model(images).log_softmax(-1)).sum(-1).mean()


def arrays(prefix, named):
    return {f"{prefix}/{renamed(name)}": t.detach().numpy().copy() for name, t in named}


def learning_rate(step):
    """The official lr_sched.py, per step, before the layer's scale."""
    if step < WARMUP:
        return LEARNING_RATE * step / WARMUP
    progress = (step - WARMUP) / (STEPS - WARMUP)
    return MIN_LR + (LEARNING_RATE - MIN_LR) * 0.5 * (1 + math.cos(math.pi * progress))


def write(pooling):
    model = Classifier(pooling)
    images, targets = batch(1)
    out = arrays("weight", model.state_dict().items())
    out["logits"] = model(images).detach().numpy()
    loss = loss_of(model, images, targets)
    loss.backward()
    out["loss"] = loss.detach().numpy()
    out.update(arrays("gradient", ((n, p.grad) for n, p in model.named_parameters())))
    model.zero_grad()

    groups = []
    for name, parameter in model.named_parameters():
        token = name.endswith(("cls_token", "position_embeddings"))
        groups.append(
            {
                "params": [parameter],
                "weight_decay": 0.0 if parameter.ndim == 1 or token else WEIGHT_DECAY,
                "scale": LAYER_DECAY ** (DEPTH + 1 - layer_of(name)),
            }
        )
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.999))
    losses = []
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step) * group["scale"]
        loss = loss_of(model, *batch(100 + step))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    out.update(arrays("after", model.state_dict().items()))
    out["losses"] = np.array(losses)
    np.savez_compressed(FOLDER / f"{pooling}.npz", **out)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    torch.set_num_threads(1)
    for kind in ("mean", "cls"):
        write(kind)
