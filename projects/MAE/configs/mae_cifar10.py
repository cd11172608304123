"""MAE pre-training on CIFAR-10 at its own size: 32 x 32, patch 4, ViT-tiny.

    bash tools/train.sh projects/MAE/train_net.py projects/MAE/configs/mae_cifar10.py 1 \
        data.download=true

Schedule and batch size are those of MAE-code (github.com/liujiyuan13/MAE-code). It enlarges the
images to 256 x 256 and cuts them into patches of 32: the same 8 x 8 grid with 64 times the pixels.
50,000 images give 9,766 iterations of 4096; the learning rate is 2.4e-3. For less memory:
train.num_accumulation_steps=8.
"""

from libai.config import LazyCall

from libai_ext.data.transforms import Resize

from .mae_pretraining import data, dataloader, graph, model, optim, task, train  # noqa: F401

model.arch = "mae_vit_tiny_patch4"

data.train = ["cifar10:train:data/cifar10"]
data.test = ["cifar10:test:data/cifar10"]
data.mean = [0.4914, 0.4822, 0.4465]
data.std = [0.2470, 0.2435, 0.2616]

# Only a resize, no crop: by default the images have the model's size.
_transform = dataloader.test.dataset.transform
_transform.transforms = [LazyCall(Resize)(size="${model.img_size}"), _transform.transforms[-1]]

train.output_dir = "output/cifar10"
train.global_batch_size = 4096
train.test_micro_batch_size = 256
train.train_epoch = 800
train.warmup_epoch = 40
train.base_lr = 1.5e-4
