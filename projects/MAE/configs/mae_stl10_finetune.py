"""STL-10's labelled images with a model of mae_stl10.py: the protocols of mae_cifar10_finetune.py.

    bash tools/train.sh projects/MAE/train_net.py projects/MAE/configs/mae_stl10_finetune.py 1 \
        finetune.path=output/stl10
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
from .mae_stl10 import data

model.arch = "mae_vit_small_patch8"

data.train = ["stl10:train:data/stl10"]

train.output_dir = "output/stl10_finetune"
