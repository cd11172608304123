"""MAE pre-training on CIFAR-100 with the recipe of mae_cifar10.py.

    bash tools/train.sh projects/MAE/train_net.py projects/MAE/configs/mae_cifar100.py 1 \
        data.download=true
"""

from .mae_cifar10 import data, dataloader, graph, model, optim, task, train  # noqa: F401

data.train = ["cifar100:train:data/cifar100"]
data.test = ["cifar100:test:data/cifar100"]
data.mean = [0.5071, 0.4867, 0.4408]
data.std = [0.2675, 0.2565, 0.2761]

train.output_dir = "output/cifar100"
