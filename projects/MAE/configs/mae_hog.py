"""MAE pre-training that predicts histograms of oriented gradients, the target of MaskFeat
(arXiv:2112.09133).

    bash tools/train.sh projects/MAE/train_net.py projects/MAE/configs/mae_hog.py 8 \
        data.train='[/data/imagenet/train]' train.global_batch_size=4096

Encoder, decoder, masks and schedule are those of mae_pretraining.py: no results are published for
this combination. MaskFeat's own recipe has no decoder and removes 40 % of the patches in blocks.
"""

from libai.config import LazyCall

from projects.MAE.modeling.targets.hog import Hog

from .mae_pretraining import data, dataloader, graph, model, optim, task, train  # noqa: F401

# A patch must hold whole cells: for patches of 14 or 4 pixels set model.target.cell to 7 or 4.
model.target = LazyCall(Hog)(bins=9, cell=8)

train.output_dir = "output/hog"
