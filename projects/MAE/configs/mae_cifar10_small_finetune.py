"""Labels of CIFAR-10 for a model of mae_cifar10_small.py, on two CPU cores.

    bash tools/train.sh projects/MAE/train_net.py \
        projects/MAE/configs/mae_cifar10_small_finetune.py 1 \
        finetune.path=output/cifar10_small model.n_partial=1

model.n_partial as in mae_cifar10_finetune.py; unset: the whole model is trained. Ten epochs are too
few for mixup, CutMix, RandAugment and stochastic depth, so images are only cropped and flipped.
"""

from libai.config import LazyCall

from libai_ext.data.transforms import RandomHorizontalFlip, RandomResizedCrop

from .mae_cifar10_finetune import (  # noqa: F401
    data,
    dataloader,
    finetune,
    graph,
    model,
    optim,
    task,
    train,
)

model.depth = 6  # for a start without weights
model.drop_path = 0.0

_dataset = dataloader.train.dataset
_dataset.transform.transforms = [
    LazyCall(RandomResizedCrop)(size="${model.img_size}", scale=(0.5, 1.0)),
    LazyCall(RandomHorizontalFlip)(p=0.5),
    dataloader.test.dataset.transform.transforms[-1],
]
_dataset.mixer = None

optim.params.decay = 0.75

train.output_dir = "output/cifar10_small_finetune"
train.global_batch_size = 256
train.train_epoch = 10
train.warmup_epoch = 1
train.base_lr = 1e-3
train.log_period = 50
