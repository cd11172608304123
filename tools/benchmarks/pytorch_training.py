"""Pre-training and fine-tuning in PyTorch, for cifar10_pytorch.py."""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from pathlib import Path
from typing import Any, Callable

import numpy as np
import torch
from cifar10_pytorch import BATCH, DECODER, MEAN, MODEL, STD, WEIGHT_DECAY, Recipe
from steps_side import ATTENTION
from torch import nn
from torch.utils.data import DataLoader, Dataset
from transformers import ViTConfig, ViTMAEConfig, ViTMAEForPreTraining, ViTModel

from libai_ext.data.sampler import GlobalOrder, SampleKey
from libai_ext.data.sources import open_source
from libai_ext.data.transforms import Compose, RandomHorizontalFlip, RandomResizedCrop, ToArray
from libai_ext.engine.environment import commit, processor
from projects.MAE.modeling.pos_embed import sincos_pos_embed

SIZES: dict[str, Any] = dict(
    MODEL,
    intermediate_size=4 * MODEL["hidden_size"],
    layer_norm_eps=1e-6,
    attn_implementation=ATTENTION[True],
)
TEST_BATCH = 500


class Run:
    """All stages on one data set."""

    def __init__(self, args: argparse.Namespace):
        self.output: Path = args.output
        self.seed, self.workers = args.seed, args.workers
        self.train, self.test = open_source(args.train), open_source(args.test)
        self.test.use_classes(self.train.classes)
        self.autocast = torch.autocast("cpu", torch.bfloat16, enabled=args.bf16)
        self.report(
            commit=commit(),
            processor=processor(),
            torch=torch.__version__,
            threads=torch.get_num_threads(),
            precision="autocast bfloat16" if args.bf16 else "float32",
            images=len(self.train),
            seed=args.seed,
        )

    def pretrain(self, recipe: Recipe) -> None:
        """Train a masked autoencoder; writes ``pretrained``."""
        folder = self.output / "pretrained"
        if folder.is_dir():
            return
        model = new_autoencoder(self.seed)
        groups = parameter_groups(model, recipe.layer_decay, undecayed=())
        self.fit("pretrain", model, groups, recipe, lambda images, labels: model(images).loss)
        model.save_pretrained(folder)

    def learn_labels(
        self, stage: str, recipe: Recipe, from_pretrained: bool, head_only: bool
    ) -> None:
        """Train a classifier."""
        encoder = new_autoencoder(self.seed)
        if from_pretrained:
            encoder = ViTMAEForPreTraining.from_pretrained(self.output / "pretrained")
        torch.manual_seed(self.seed)
        model = Classifier(encoder, len(self.train.classes))
        if head_only:
            model.vit.requires_grad_(False)
        groups = parameter_groups(model, recipe.layer_decay, ("cls_token", "position_embeddings"))
        self.fit(
            stage,
            model,
            groups,
            recipe,
            lambda images, labels: nn.functional.cross_entropy(model(images), labels),
            lambda: {"top1": self.accuracy(model)},
        )

    def fit(
        self,
        stage: str,
        model: nn.Module,
        groups: list[dict],
        recipe: Recipe,
        loss_of: Callable,
        evaluate: Callable[[], dict] = dict,
    ) -> None:
        """Train the epochs that are left, with a saved state and a line of results after each."""
        optimizer = torch.optim.AdamW(groups, lr=0.0, betas=recipe.betas, fused=True)
        state = self.output / f"{stage}.pt"
        done = load(state, model, optimizer)
        samples = Samples(self.train, crops(recipe.crop), self.seed)
        order = GlobalOrder(len(samples), BATCH, self.seed)
        total, warmup = order.iterations(recipe.epochs), order.iterations(recipe.warmup)
        for epoch in range(done, recipe.epochs):
            torch.manual_seed(1000 * self.seed + epoch)  # of the masks
            first, last = order.iterations(epoch), order.iterations(epoch + 1)
            keys = [order.batch(iteration) for iteration in range(first, last)]
            batches = DataLoader(samples, batch_sampler=keys, num_workers=self.workers)
            model.train()
            losses, begin = [], time.perf_counter()
            for iteration, (images, labels) in enumerate(batches, first):
                rate = learning_rate(iteration, total, warmup, recipe)
                for group in optimizer.param_groups:
                    group["lr"] = rate * group["lr_scale"]
                with self.autocast:
                    loss = loss_of(images, labels)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                losses.append(loss.item())
            seconds = round(time.perf_counter() - begin, 1)
            loss = round(sum(losses) / len(losses), 4)
            self.report(stage=stage, epoch=epoch + 1, loss=loss, seconds=seconds, **evaluate())
            save(state, model, optimizer, epoch + 1)

    def accuracy(self, model: nn.Module) -> float:
        """Per cent of the test images whose class has the highest score."""
        model.eval()
        samples = Samples(self.test, Compose([ToArray(MEAN, STD)]), self.seed)
        keys = [SampleKey(0, index) for index in range(len(samples))]
        batches = DataLoader(samples, TEST_BATCH, sampler=keys, num_workers=self.workers)
        right = 0
        with torch.no_grad(), self.autocast:
            for images, labels in batches:
                right += (model(images).argmax(-1) == labels).sum().item()
        return round(100 * right / len(samples), 2)

    def report(self, **values) -> None:
        line = json.dumps({**values, "time": time.strftime("%Y-%m-%d %H:%M:%S")})
        print(line, flush=True)
        with open(self.output / "results.jsonl", "a") as results:
            results.write(line + "\n")


class Samples(Dataset):
    """Transformed images and their class numbers, by epoch and index."""

    def __init__(self, source, transform: Compose, seed: int):
        self.source, self.transform, self.seed = source, transform, seed

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: SampleKey) -> tuple[np.ndarray, int]:
        image, label = self.source[key.index]
        rng = np.random.default_rng([self.seed, key.epoch, key.index, 0])  # that of KeyedDataset
        return self.transform(image, rng), label


class Classifier(nn.Module):
    """The encoder of an autoencoder; its mean patch token, normalised, goes to a linear head."""

    def __init__(self, autoencoder: ViTMAEForPreTraining, classes: int):
        super().__init__()
        self.vit: Any = ViTModel(ViTConfig(**SIZES), add_pooling_layer=False)
        self.vit.load_state_dict(autoencoder.vit.state_dict())
        self.vit.layernorm = nn.Identity()
        self.norm = nn.LayerNorm(SIZES["hidden_size"], SIZES["layer_norm_eps"])
        self.head = nn.Linear(SIZES["hidden_size"], classes)
        nn.init.trunc_normal_(self.head.weight, std=2e-5)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.vit(images).last_hidden_state[:, 1:].mean(1)))


def new_autoencoder(seed: int) -> ViTMAEForPreTraining:
    """With the paper's initialisation in place of Hugging Face's: Xavier for all matrices, and
    positions, which transformers 5.23 leaves at zero in both halves of a new model."""
    torch.manual_seed(seed)
    decoder = dict(DECODER, decoder_intermediate_size=4 * DECODER["decoder_hidden_size"])
    model = ViTMAEForPreTraining(ViTMAEConfig(**SIZES, **decoder, norm_pix_loss=True))
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.xavier_uniform_(module.weight.data.flatten(1))  # a view
            nn.init.zeros_(module.bias)
    nn.init.normal_(model.vit.embeddings.cls_token, std=0.02)
    nn.init.normal_(model.decoder.mask_token, std=0.02)
    side = MODEL["image_size"] // MODEL["patch_size"]
    for positions in (model.vit.embeddings.position_embeddings, model.decoder.decoder_pos_embed):
        table = sincos_pos_embed((side, side), positions.shape[-1])
        positions.data.copy_(torch.from_numpy(table))
    return model


def parameter_groups(model: nn.Module, decay: float, undecayed: tuple[str, ...]) -> list[dict]:
    """Groups whose ``lr_scale`` falls by ``decay`` from layer to layer towards the input; no weight
    decay for vectors and for names that end with ``undecayed``."""
    depth = SIZES["num_hidden_layers"]
    groups: dict[tuple[int, bool], list] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        layer = depth + 1
        if name.startswith("vit.layers."):
            layer = int(name.split(".")[2]) + 1
        elif name.startswith("vit.embeddings."):
            layer = 0
        decayed = parameter.ndim > 1 and not name.endswith(undecayed)
        groups.setdefault((layer, decayed), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": WEIGHT_DECAY if decayed else 0.0,
            "lr_scale": decay ** (depth + 1 - layer),
        }
        for (layer, decayed), parameters in groups.items()
    ]


def learning_rate(iteration: int, total: int, warmup: int, recipe: Recipe) -> float:
    """Linear warm-up, then half a cosine."""
    highest = recipe.base_lr * BATCH / 256
    if iteration < warmup:
        return highest * iteration / warmup
    share = (iteration - warmup) / (total - warmup)
    return recipe.min_lr + (highest - recipe.min_lr) * (1 + math.cos(math.pi * share)) / 2


def crops(scale: tuple[float, float]) -> Compose:
    crop = RandomResizedCrop((MODEL["image_size"],) * 2, scale)
    return Compose([crop, RandomHorizontalFlip(), ToArray(MEAN, STD)])


def save(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, epoch: int) -> None:
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}
    torch.save(state, path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)


def load(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Set what :func:`save` has saved; the epochs that it was trained for, 0 without a file."""
    if not path.is_file():
        return 0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["epoch"]
