"""Fine-tuning ViT-L on ImageNet-1K, like ViT-B in mae_finetune.py. Published: 85.9 % top-1."""

from .mae_finetune import (  # noqa: F401
    data,
    dataloader,
    finetune,
    graph,
    model,
    optim,
    task,
    train,
)

model.arch = "mae_vit_large_patch16"
model.drop_path = 0.2

optim.params.decay = 0.75

train.train_epoch = 50
train.base_lr = 1e-3
