"""Linear probing on the quickstart's digits.

    bash tools/train.sh projects/MAE/train_net.py projects/MAE/configs/mae_digits_linprobe.py 1 \
        finetune.path=output/digits
"""

from .mae_digits_finetune import data, dataloader, finetune, task, train  # noqa: F401
from .mae_linprobe import graph, model, optim  # noqa: F401

model.arch = "mae_vit_digits"
model.in_chans = 1
model.num_classes = 10
model.init = "pretraining"

dataloader.train.dataset.fields = []
dataloader.train.dataset.mixer = None

train.output_dir = "output/digits_linprobe"
train.base_lr = 20
train.scheduler.min_lr = 0.0
