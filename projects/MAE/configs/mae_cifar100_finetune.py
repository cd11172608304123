"""CIFAR-100 with a model of mae_cifar100.py: the protocols of mae_cifar10_finetune.py.

    bash tools/train.sh projects/MAE/train_net.py projects/MAE/configs/mae_cifar100_finetune.py 1 \
        finetune.path=output/cifar100
"""

from .mae_cifar10_finetune import (  # noqa: F401
    dataloader,
    finetune,
    graph,
    model,
    optim,
    task,
    train,
)
from .mae_cifar100 import data  # noqa: F401

model.num_classes = 100

train.output_dir = "output/cifar100_finetune"
