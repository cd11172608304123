"""Linear probing of ViT-B on ImageNet-1K: the paper's recipe (arXiv:2111.06377, table 10).

    bash tools/train.sh projects/MAE/train_net.py projects/MAE/configs/mae_linprobe.py 8 \
        data.train='[/data/imagenet/train]' data.test='[/data/imagenet/val]' \
        finetune.path=mae_pretrain_vit_base.pth train.num_accumulation_steps=8

Published: B 68.0, L 75.8, H 76.6 % top-1; other sizes: model.arch=mae_vit_large_patch16 and so on.
Batch statistics are computed over the whole micro-batch on all processes.
"""

from libai.config import LazyCall

from libai_ext.data.transforms import RandomHorizontalFlip, RandomResizedCrop
from libai_ext.optim.lars import LARS
from libai_ext.optim.param_groups import decay_matrices_only

from .mae_finetune import data, dataloader, finetune, graph, model, task, train  # noqa: F401

model.pooling = "cls"
model.n_partial = 0
model.batch_norm = True
model.drop_path = 0.0
model.head_std = 0.01

optim = LazyCall(LARS)(
    params=LazyCall(decay_matrices_only)(weight_decay=0.0), lr=None, momentum=0.9
)
graph.enabled = False  # LARS and batch statistics do not work in a graph

_dataset = dataloader.train.dataset
_dataset.transform.transforms = [
    LazyCall(RandomResizedCrop)(size="${model.img_size}", scale=(0.08, 1.0), clip=True),
    LazyCall(RandomHorizontalFlip)(p=0.5),
    dataloader.test.dataset.transform.transforms[-1],
]
_dataset.fields = []
_dataset.mixer = None

train.output_dir = "output/linprobe"
train.global_batch_size = 16384
train.train_epoch = 90
train.warmup_epoch = 10
train.base_lr = 0.1
train.scheduler.min_lr = 0.0
