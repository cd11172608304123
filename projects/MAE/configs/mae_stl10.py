"""MAE pre-training on STL-10 with its unlabelled images: 96 x 96, patch 8, ViT-small.

    bash tools/train.sh projects/MAE/train_net.py projects/MAE/configs/mae_stl10.py 1 \
        data.download=true

The schedule is that of mae_cifar10.py: 105,000 images give 20,508 iterations of 4096.
"""

from .mae_cifar10 import data, dataloader, graph, model, optim, task, train  # noqa: F401

model.arch = "mae_vit_small_patch8"

data.train = ["stl10:train:data/stl10", "stl10:unlabeled:data/stl10"]
data.test = ["stl10:test:data/stl10"]
data.mean = [0.4467, 0.4398, 0.4066]
data.std = [0.2603, 0.2566, 0.2713]

train.output_dir = "output/stl10"
