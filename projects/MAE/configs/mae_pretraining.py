"""MAE pre-training on ImageNet-1K: the paper's recipe (arXiv:2111.06377, table 8).

    bash tools/train.sh projects/MAE/train_net.py projects/MAE/configs/mae_pretraining.py 8 \
        data.train='[/data/imagenet/train]' train.global_batch_size=4096 \
        train.num_accumulation_steps=8 train.amp.enabled=True

The published weights, which reach 83.6 (ViT-B), 85.9 (ViT-L) and 86.9 (ViT-H) top-1 after
fine-tuning, were trained for 1600 epochs on normalised pixels: add train.train_epoch=1600
model.norm_pix_loss=True. Other sizes: model.arch=mae_vit_large_patch16 and so on.
"""

from libai.config import LazyCall
from omegaconf import DictConfig

from libai_ext.config.lazy_config import get_config
from libai_ext.data.dataset import KeyedDataset
from libai_ext.data.sources import open_source
from libai_ext.data.transforms import (
    Compose,
    EvalCrop,
    RandomHorizontalFlip,
    RandomResizedCrop,
    ToArray,
)
from projects.MAE.evaluation.evaluators import KNN, LinearProbe
from projects.MAE.modeling.archs import build_mae
from projects.MAE.modeling.masking import MaskingNoise
from projects.MAE.tasks import Pretraining

# With data.mode a number of channels, pictures show the three, or the one, of picture_channels;
# unset: the first three.
task = LazyCall(Pretraining)(picture_period=200, picture_samples=5, picture_channels=None)

train = get_config("common/train.py").train
train.train_micro_batch_size = 64
train.train_epoch = 800
train.warmup_epoch = 40
train.base_lr = 1.5e-4
# Evaluation of frozen features during training: set period or epoch to switch one on.
train.evaluation.evals = dict(
    knn=LazyCall(KNN)(neighbours=20, train=None, test=None, period=None, epoch=None),
    probe=LazyCall(LinearProbe)(iterations=200, train=None, test=None, period=None, epoch=None),
)

graph = get_config("common/graph.py").graph

optim = get_config("common/optim.py").optim
optim.betas = (0.9, 0.95)

model = LazyCall(build_mae)(
    arch="mae_vit_base_patch16",
    in_chans=3,
    mask_ratio=0.75,
    norm_pix_loss=False,
    # What is predicted instead of pixels (projects.MAE.modeling.targets), as in mae_hog.py.
    target=None,
    # Unset sizes come from the weights that a run starts from; without weights, from arch.
    img_size=None,
    patch_size=None,
    embed_dim=None,
    depth=None,
    num_heads=None,
    decoder_embed_dim=None,
    decoder_depth=None,
    decoder_num_heads=None,
)

# Roots: folders root/class/image, folders with a list of labels, LMDBs, tar shards here or on a
# server, CIFAR and STL-10 (for their syntax see libai_ext.data.sources); several roots are read as
# one data set.
data = DictConfig(
    dict(
        train=["/path/to/imagenet/train"],
        test=["/path/to/imagenet/val"],
        # "RGB", "L", or a number of channels, as TIFFs and .npy files hold them.
        mode="RGB",
        mean=[0.485, 0.456, 0.406],
        std=[0.229, 0.224, 0.225],
        # Bad images are replaced by the next readable ones; the run stops if a process has found at
        # least ten, and they are more than this share.
        max_bad_share=0.01,
        # Download CIFAR and STL-10 if they are missing.
        download=False,
        # Decode like torchvision: EXIF rotation ignored, 16-bit grey clipped at 255.
        as_torchvision=False,
        # In training, decode a JPEG at 1/8, 1/4 or 1/2 of its size where its crop is large enough:
        # faster for photographs of more than a megapixel, with slightly different pixels.
        reduce_jpegs=False,
        # Shards on a server are kept here, up to so many GiB; unset: in the user's cache folder.
        cache_dir=None,
        cache_gib=32.0,
    )
)

to_array = LazyCall(ToArray)(mean="${data.mean}", std="${data.std}")


def source(roots):
    return LazyCall(open_source)(
        roots=roots,
        mode="${data.mode}",
        max_bad_share="${data.max_bad_share}",
        download="${data.download}",
        as_torchvision="${data.as_torchvision}",
        cache_dir="${data.cache_dir}",
        cache_gib="${data.cache_gib}",
        # Larger images count as bad; unset: Pillow's own limit.
        max_pixels=None,
        # [height, width]: JPEGs of at least twice that size are decoded at a reduced size.
        draft_size=None,
    )


def _split(roots, transforms, **options):
    return dict(
        dataset=LazyCall(KeyedDataset)(
            source=source(roots),
            transform=LazyCall(Compose)(transforms=transforms + [to_array]),
            # num_patches follows from the model. For masks in blocks instead of random ones:
            # projects.MAE.modeling.masking.BlockwiseMasking.
            fields=[LazyCall(MaskingNoise)(num_patches=None)],
            **options,
        ),
        # Worker processes per rank; unset: the machine's cores divided by its ranks.
        num_workers=None,
    )


dataloader = DictConfig(
    dict(
        train=_split(
            "${data.train}",
            [
                LazyCall(RandomResizedCrop)(size="${model.img_size}", scale=(0.2, 1.0)),
                LazyCall(RandomHorizontalFlip)(p=0.5),
            ],
            reduce_jpegs="${data.reduce_jpegs}",
        ),
        test=_split("${data.test}", [LazyCall(EvalCrop)(size="${model.img_size}")]),
    )
)
