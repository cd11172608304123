"""Fine-tuning ViT-H on ImageNet-1K: mae_finetune_large.py with more drop path. Published: 86.9 %
top-1."""

from .mae_finetune_large import (  # noqa: F401
    data,
    dataloader,
    finetune,
    graph,
    model,
    optim,
    task,
    train,
)

model.arch = "mae_vit_huge_patch14"
model.drop_path = 0.3

dataloader.train.dataset.mixer.group_size = 16  # half the batch per GPU
