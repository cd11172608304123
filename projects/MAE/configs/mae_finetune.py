"""Fine-tuning ViT-B on ImageNet-1K: the paper's recipe (arXiv:2111.06377, table 9).

    bash tools/train.sh projects/MAE/train_net.py projects/MAE/configs/mae_finetune.py 8 \
        data.train='[/data/imagenet/train]' data.test='[/data/imagenet/val]' \
        finetune.path=mae_pretrain_vit_base.pth train.num_accumulation_steps=4 \
        train.amp.enabled=True

Published: 83.6 % top-1. To train only a part (section 4.3 of the paper): model.n_partial=0.5, 1 ...
"""

from libai.config import LazyCall
from omegaconf import DictConfig

from libai_ext.config.lazy_config import get_config
from libai_ext.data.auto_augment import RandAugment
from libai_ext.data.dataset import KeyedDataset
from libai_ext.data.mixup import Mixer
from libai_ext.data.random_erasing import RandomErasing
from libai_ext.data.transforms import (
    Compose,
    EvalCrop,
    RandomHorizontalFlip,
    RandomResizedCrop,
)
from libai_ext.layers.drop_path import DropPathNoise
from libai_ext.optim.param_groups import layer_decay
from projects.MAE.modeling.archs import build_vit
from projects.MAE.tasks import Classification

from .mae_pretraining import data, source, to_array  # noqa: F401

task = LazyCall(Classification)(
    per_class=False,
    confusion=False,
    predictions=False,
    # A file of class names, one per line, in the order of the head's outputs. If unset, the names
    # come from the weights or the training data.
    classes=None,
)

# Weights to start from; train.load_weight is for a whole classifier with its head.
finetune = DictConfig(
    dict(
        enable=True,
        # A file or folder of any known style, or the output folder of a run.
        path=None,
        # "oneflow" or "pytorch", to check the style; unset: any style.
        weight_style=None,
    )
)

train = get_config("common/train.py").train
train.output_dir = "output/finetune"
train.global_batch_size = 1024
train.train_epoch = 100
train.warmup_epoch = 5
train.base_lr = 5e-4
train.scheduler.min_lr = 1e-6
train.evaluation.enabled = True
train.evaluation.eval_epoch = 1
train.evaluation.eval_metric = "top1"

graph = get_config("common/graph.py").graph

optim = get_config("common/optim.py").optim
optim.params = LazyCall(layer_decay)(weight_decay=0.05, decay=0.65, clip_grad_max_norm=None)

model = LazyCall(build_vit)(
    arch="mae_vit_base_patch16",
    in_chans=3,
    num_classes=1000,
    pooling="mean",
    drop_path=0.1,
    head_std=2e-5,
    # How parameters without given weights are initialised: "timm", or "pretraining".
    init="timm",
    batch_norm=False,
    n_partial=None,
    # Unset sizes come from the weights that a run starts from; without weights, from arch.
    img_size=None,
    patch_size=None,
    embed_dim=None,
    depth=None,
    num_heads=None,
)

dataloader = DictConfig(
    dict(
        train=dict(
            dataset=LazyCall(KeyedDataset)(
                source=source("${data.train}"),
                transform=LazyCall(Compose)(
                    transforms=[
                        LazyCall(RandomResizedCrop)(size="${model.img_size}", scale=(0.08, 1.0)),
                        LazyCall(RandomHorizontalFlip)(p=0.5),
                        LazyCall(RandAugment)(mean="${data.mean}", magnitude=9, magnitude_std=0.5),
                        to_array,
                        LazyCall(RandomErasing)(probability=0.25),
                    ]
                ),
                # depth follows from the model.
                fields=[LazyCall(DropPathNoise)(depth=None)],
                reduce_jpegs="${data.reduce_jpegs}",
                labels=True,
                mixer=LazyCall(Mixer)(
                    num_classes="${model.num_classes}",
                    smoothing=0.1,
                    mixup_alpha=0.8,
                    cutmix_alpha=1.0,
                    # Samples that share one random choice: one GPU's batch in the published runs.
                    group_size=32,
                ),
            ),
            num_workers=None,
        ),
        test=dict(
            dataset=LazyCall(KeyedDataset)(
                source=source("${data.test}"),
                transform=LazyCall(Compose)(
                    transforms=[LazyCall(EvalCrop)(size="${model.img_size}"), to_array]
                ),
                labels=True,
            ),
            num_workers=None,
        ),
    )
)
