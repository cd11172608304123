"""MAE pre-training that predicts the features of a trained encoder, as MaskDistill
(arXiv:2210.10615).

    bash tools/train.sh projects/MAE/train_net.py projects/MAE/configs/mae_distill.py 8 \
        data.train='[/data/imagenet/train]' train.global_batch_size=4096 \
        model.target.weights=mae_pretrain_vit_base.pth

Any weights that train.load_weight takes are a teacher, if their patch size and channels are the
model's. They are read at each start of the run; others than before are refused when it is resumed.
In a pipeline the teacher comes on top of the last stage, and the stages that are chosen by
themselves do not count it: train.dist.custom_pipeline_stage_id can. Encoder, decoder, masks and
schedule are those of mae_pretraining.py: nothing is published for them together.
"""

from libai.config import LazyCall

from projects.MAE.modeling.targets.teacher import TeacherFeatures

from .mae_pretraining import data, dataloader, graph, model, optim, task, train  # noqa: F401

model.target = LazyCall(TeacherFeatures)(weights="/path/to/teacher")

train.output_dir = "output/distill"
