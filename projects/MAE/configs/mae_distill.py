"""MAE pre-training that predicts the features of a trained encoder, like MaskDistill
(arXiv:2210.10615).

    bash tools/train.sh projects/MAE/train_net.py projects/MAE/configs/mae_distill.py 8 \
        data.train='[/data/imagenet/train]' train.global_batch_size=4096 \
        model.target.weights=mae_pretrain_vit_base.pth

The teacher's weights can be any that train.load_weight takes, with the model's patch size and
channels. They are read at each start of the run; a resumed run refuses other weights.
In a pipeline the last stage holds the teacher too. The automatic choice of stages does not count
it; train.dist.custom_pipeline_stage_id sets them by hand. Encoder, decoder, masks and schedule are
those of mae_pretraining.py: no results are published for this combination.
"""

from libai.config import LazyCall

from projects.MAE.modeling.targets.teacher import TeacherFeatures

from .mae_pretraining import data, dataloader, graph, model, optim, task, train  # noqa: F401

model.target = LazyCall(TeacherFeatures)(weights="/path/to/teacher")

train.output_dir = "output/distill"
