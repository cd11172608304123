"""MAE pre-training on lines of text, 32 x 128: the recipe of Union14M (arXiv:2307.08723).

    bash tools/train.sh projects/MAE/train_net.py projects/MAE/configs/mae_text_lines.py 4 \
        data.train='[/data/book32_lmdb,/data/cc_lmdb,/data/openvino_lmdb]'

Roots are LMDBs (num-samples, image-%09d) or folders of images, read as one data set: here the three
parts of Union14M-U, ten million unlabelled lines. Base model: model.arch=mae_vit_base_patch4.
"""

from libai.config import LazyCall

from libai_ext.data.transforms import Resize

from .mae_pretraining import data, dataloader, graph, model, optim, task, train  # noqa: F401

model.arch = "mae_vit_small_patch4"
model.norm_pix_loss = True

data.train = ["/path/to/union14m-u"]
data.test = ["/path/to/union14m-u-held-out"]
data.mean = [0.5, 0.5, 0.5]
data.std = [0.5, 0.5, 0.5]

# A cropped line lacks letters, and a mirrored one is no text: the whole line is resized.
_resize = LazyCall(Resize)(size="${model.img_size}")
for _split in (dataloader.train, dataloader.test):
    _to_array = _split.dataset.transform.transforms[-1]
    _split.dataset.transform.transforms = [_resize, _to_array]

train.output_dir = "output/text_lines"
train.global_batch_size = 1024  # 256 on each of four processes
train.train_epoch = 20
train.warmup_epoch = 2
train.base_lr = 1.5e-4
