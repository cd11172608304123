"""Fine-tuning on the quickstart's digits, of the whole model or a part.

    bash tools/train.sh projects/MAE/train_net.py projects/MAE/configs/mae_digits_finetune.py 1 \
        finetune.path=output/digits model.n_partial=0.5
"""

from libai.config import LazyCall

from libai_ext.data.transforms import Resize

from .mae_digits import data  # noqa: F401
from .mae_finetune import (  # noqa: F401
    dataloader,
    finetune,
    graph,
    model,
    optim,
    task,
    train,
)

model.arch = "mae_vit_digits"
model.in_chans = 1
model.num_classes = 10
model.init = "pretraining"  # timm's is made for wide models: see README.md

# As in pre-training, digits are neither mirrored nor cropped; mixup and CutMix stay on.
_resize = LazyCall(Resize)(size="${model.img_size}")
for _split in (dataloader.train, dataloader.test):
    _to_array = dataloader.test.dataset.transform.transforms[-1]
    _split.dataset.transform.transforms = [_resize, _to_array]

train.output_dir = "output/digits_finetune"
train.global_batch_size = 64
train.train_epoch = 40
train.base_lr = 8e-3
train.evaluation.eval_epoch = 10
train.log_period = 50
