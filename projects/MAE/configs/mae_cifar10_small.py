"""MAE pre-training on CIFAR-10 in about an hour on two CPU cores.

    bash tools/train.sh projects/MAE/train_net.py projects/MAE/configs/mae_cifar10_small.py 1 \
        data.download=true

A smaller model and a shorter schedule than in mae_cifar10.py. Accuracies of all protocols:
tools/benchmarks/protocols.py cifar10, and the table in README.md.
"""

from .mae_cifar10 import data, dataloader, graph, model, optim, task, train  # noqa: F401

model.depth = 6
model.decoder_depth = 2
model.decoder_embed_dim = 128
model.decoder_num_heads = 4
model.norm_pix_loss = True

train.output_dir = "output/cifar10_small"
train.global_batch_size = 256
train.train_epoch = 20
train.warmup_epoch = 2
train.base_lr = 1.5e-3
train.log_period = 50
train.evaluation.evals.knn.epoch = 5
train.checkpointer.epoch = 1
