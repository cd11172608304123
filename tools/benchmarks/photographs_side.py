"""Pre-training in PyTorch on a folder of photographs: a line of JSON for each step.

photographs.py starts it: FOLDER PRECISION STEPS BATCH WORKERS.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import torch
from plain_pillow import plain
from steps_side import ATTENTION, hugging_face
from torch.utils.data import DataLoader, Dataset

from libai_ext.data.image_folder import ImageFolder
from libai_ext.data.sampler import GlobalOrder, SampleKey
from libai_ext.data.transforms import RandomResizedCrop


class Photographs(Dataset):
    """Images for the model, by epoch and index."""

    def __init__(self, folder: str):
        self.samples = ImageFolder([folder]).samples
        self.crop = RandomResizedCrop((224, 224))

    def __getitem__(self, key: SampleKey) -> np.ndarray:
        rng = np.random.default_rng([0, key.epoch, key.index, 0])
        return plain(self.samples[key.index][0], self.crop, rng)


def main(folder: str, precision: str, steps: int, batch: int, workers: int) -> None:
    is_autocast = precision == "bfloat16"
    model, loss_of = hugging_face("pretrain", "base", ATTENTION[is_autocast])
    model.train()
    groups: tuple[list, list] = ([], [])
    for parameter in model.parameters():
        if parameter.requires_grad:
            groups[parameter.ndim > 1].append(parameter)
    decays = [dict(params=group, weight_decay=w) for group, w in zip(groups, (0.0, 0.05))]
    optimizer = torch.optim.AdamW(decays, lr=1e-6, betas=(0.9, 0.95), fused=True)
    photographs = Photographs(folder)
    order = GlobalOrder(len(photographs.samples), batch, seed=0)
    keys = [order.batch(iteration) for iteration in range(steps)]
    batches = iter(DataLoader(photographs, batch_sampler=keys, num_workers=workers))
    for _ in keys:
        begin = time.perf_counter()
        images = next(batches)
        waited = time.perf_counter() - begin
        with torch.autocast("cpu", torch.bfloat16, enabled=is_autocast):
            loss = loss_of(images)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        seconds = time.perf_counter() - begin
        print(json.dumps({"time": seconds, "data_wait": waited / seconds}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
