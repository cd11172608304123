"""CIFAR-10 at its own size with a model of mae_cifar10.py, in any of four protocols.

    bash tools/train.sh projects/MAE/train_net.py projects/MAE/configs/mae_cifar10_finetune.py 1 \
        finetune.path=output/cifar10 model.n_partial=0

n_partial = 0 trains only the head (linear probe), 0.5 the head and the last block's MLP, k the head
and the last k blocks; if unset, everything. These are the protocols of MAE-code
(github.com/liujiyuan13/MAE-code).
"""

from libai.config import LazyCall

from libai_ext.data.transforms import Resize

from .mae_cifar10 import data  # noqa: F401
from .mae_finetune import (  # noqa: F401
    dataloader,
    finetune,
    graph,
    model,
    optim,
    task,
    train,
)

model.arch = "mae_vit_tiny_patch4"
model.num_classes = 10
model.init = "pretraining"  # timm's is made for wide models: see README.md

# Only a resize, no crop: by default the images have the model's size.
_transform = dataloader.test.dataset.transform
_transform.transforms = [LazyCall(Resize)(size="${model.img_size}"), _transform.transforms[-1]]

train.output_dir = "output/cifar10_finetune"
train.global_batch_size = 1024
train.test_micro_batch_size = 256
