"""Keys of other programs for masked autoencoders, each with the key or option here (and, after a
comma, what its values are if they differ), or the reason why there is none. MIGRATING.md shows
these tables; messages about unknown keys use them."""

from __future__ import annotations

from libai_ext.config.names import register_names

MICRO = "train.train_micro_batch_size"
_MIXER = "dataloader.train.dataset.mixer"
_STEPS = "dataloader.train.dataset.transform.transforms"
MIXUP = f"{_MIXER}.mixup_alpha"
CUTMIX = f"{_MIXER}.cutmix_alpha"
SMOOTHING = f"{_MIXER}.smoothing"
ERASING = f"{_STEPS}.4.probability"
RANDAUGMENT = f"{_STEPS}.2.magnitude"
_DIST = "without a key: the launcher is told N, NODE and ADDR"
_LOGS = "without a key: logs and TensorBoard files lie in train.output_dir"
_ALWAYS = "without a key: it is always so"
_JITTER = "without a key: add a transform to the recipe"
_WARMUP_FROM = "without a key: the warm-up starts at 0"
_MLP = "without a key: the argument mlp_ratio of the model in a recipe (4)"
_SCHEDULE = "without a key: a linear warm-up, then half a cosine to train.scheduler.min_lr"

OFFICIAL = {
    "model": "model.arch",
    "batch_size": MICRO,
    "accum_iter": "train.num_accumulation_steps",
    "epochs": "train.train_epoch",
    "warmup_epochs": "train.warmup_epoch",
    "start_epoch": "without a key: --resume knows where to go on",
    "lr": "optim.lr",
    "blr": "train.base_lr",
    "min_lr": "train.scheduler.min_lr",
    "weight_decay": "optim.params.weight_decay",
    "layer_decay": "optim.params.decay",
    "clip_grad": "optim.params.clip_grad_max_norm",
    "input_size": "model.img_size",
    "mask_ratio": "model.mask_ratio",
    "norm_pix_loss": "model.norm_pix_loss",
    "drop_path": "model.drop_path",
    "nb_classes": "model.num_classes",
    "global_pool": "model.pooling",
    "cls_token": "model.pooling",
    "finetune": "finetune.path",
    "data_path": "data.train",
    "reprob": ERASING,
    "remode": _ALWAYS + " (pixel)",
    "recount": _ALWAYS + " (1)",
    "resplit": _ALWAYS + " (off)",
    "aa": RANDAUGMENT + ", a number: 9 for rand-m9",
    "color_jitter": _JITTER,
    "smoothing": SMOOTHING,
    "mixup": MIXUP,
    "cutmix": CUTMIX,
    "cutmix_minmax": "without a key: the share is drawn from a beta distribution",
    "mixup_prob": "without a key: the argument probability of Mixer in the recipe",
    "mixup_switch_prob": "without a key: the argument switch_probability of Mixer in the recipe",
    "mixup_mode": _ALWAYS + " (batch)",
    "output_dir": "train.output_dir",
    "log_dir": _LOGS,
    "seed": "train.seed",
    "num_workers": "dataloader.train.num_workers",
    "resume": "--resume",
    "eval": "--eval-only",
    "dist_eval": _ALWAYS,
    "device": "train.device",
    "pin_mem": _ALWAYS,
    "no_pin_mem": _ALWAYS,
    "world_size": _DIST,
    "local_rank": _DIST,
    "dist_url": _DIST,
    "dist_on_itp": _DIST,
}

TIMM = {
    "data_dir": "data.train",
    "train_split": "data.train",
    "val_split": "data.test",
    "dataset_download": "data.download",
    "initial_checkpoint": "train.load_weight",
    "pretrained": "finetune.path",
    "num_classes": "model.num_classes",
    "img_size": "model.img_size",
    "in_chans": "model.in_chans",
    "mean": "data.mean",
    "std": "data.std",
    "validation_batch_size": "train.test_micro_batch_size",
    "grad_accum_steps": "train.num_accumulation_steps",
    "opt": "without a key: the node optim of a recipe",
    "opt_eps": "optim.eps",
    "opt_betas": "optim.betas",
    "momentum": "optim.momentum",
    "sched": _SCHEDULE,
    "lr_base": "train.base_lr",
    "lr_base_size": _ALWAYS + " (256)",
    "warmup_lr": _WARMUP_FROM,
    "scale": f"{_STEPS}.0.scale",
    "hflip": f"{_STEPS}.1.p",
    "drop_path_rate": "model.drop_path",
    "mlp_ratio": _MLP,
    "class_token": _ALWAYS,
    "model_ema": "train.ema.enabled",
    "model_ema_decay": "train.ema.decay",
    "log_interval": "train.log_period",
    "checkpoint_hist": "train.checkpointer.max_to_keep",
    "workers": "dataloader.train.num_workers",
    "amp": "train.amp.enabled",
    "grad_checkpointing": "train.activation_checkpoint.enabled",
    "output": "train.output_dir",
    "experiment": "train.output_dir",
    "eval_metric": "train.evaluation.eval_metric",
}

LIBAI = {
    "train.warmup_ratio": "train.warmup_epoch, in epochs",
    "train.start_iter": "without a key: --resume knows where to go on",
    "train.resume": "--resume",
    "train.consumed_train_samples": "without a key: --resume knows where to go on",
    "train.consumed_valid_samples": _ALWAYS + " (all are used)",
    "train.train_samples": "train.train_epoch, in epochs",
    "train.layer_decay": "optim.params.decay",
    "train.evaluation.eval_after_n_epoch": "train.evaluation.eval_epoch",
    "train.evaluation.eval_iter": _ALWAYS + " (all of data.test)",
    "train.evaluation.evaluator": "without a key: the task of a recipe evaluates",
    "train.checkpointer.save_model_after_n_epoch": "train.checkpointer.epoch",
    "train.input_placement_device": "train.device",
    "train.rdma_enabled": "without a key: OneFlow finds InfiniBand by itself",
    "train.scheduler.warmup_factor": _WARMUP_FROM,
    "train.scheduler.warmup_method": _SCHEDULE,
    "train.scheduler.alpha": "train.scheduler.min_lr, a rate, not a share",
    "train.dist.num_gpus_per_node": _DIST,
    "train.dist.num_nodes": _DIST,
    "train.dist.pipeline_num_layers": _ALWAYS + " (counted from the model)",
    "optim.weight_decay": "optim.params.weight_decay",
    "optim.params.layer_decay": "optim.params.decay",
    "optim.params.clip_grad_norm_type": _ALWAYS + " (2)",
    "optim.params.weight_decay_norm": _ALWAYS + " (0)",
    "optim.params.weight_decay_bias": _ALWAYS + " (0)",
    "model.loss_func": "without a key: the model has its loss",
    "model.drop_path_rate": "model.drop_path",
    "dataloader.train.mixup_func": _MIXER,
    "dataloader.train.dataset.root": "data.train",
    "n_gpus": _DIST,
}

MAE_CODE = {
    "data_name": "data.train",
    "image_size": "model.img_size",
    "n_worker": "dataloader.train.num_workers",
    "n_class": "model.num_classes",
    "vit_dim": "model.embed_dim",
    "vit_depth": "model.depth",
    "vit_heads": "model.num_heads",
    "vit_mlp_dim": _MLP,
    "masking_ratio": "model.mask_ratio",
    "decoder_dim": "model.decoder_embed_dim",
    "decoder_depth": "model.decoder_depth",
    "n_partial": "model.n_partial",
    "batch_size": "train.global_batch_size",
    "base_lr": "train.base_lr",
    "momentum": "optim.betas",
    "epochs_warmup": "train.warmup_epoch",
    "warmup_from": _WARMUP_FROM,
    "warmup_to": "optim.lr",
    "lr_decay_rate": "train.scheduler.min_lr, a rate: lr x lr_decay_rate^3",
    "label_smoothing": SMOOTHING,
    "print_freq": "train.log_period, in iterations",
    "save_freq": "train.checkpointer.epoch",
    "eval_freq": "train.evaluation.eval_epoch",
    "tb_folder": _LOGS,
    "ckpt_folder": "train.output_dir",
    "ckpt": "finetune.path",
}

NAMES = {
    "the official code": OFFICIAL,
    "timm": TIMM,
    "LiBai": LIBAI,
    "MAE-code": MAE_CODE,
}
for _whose, _names in NAMES.items():
    register_names(_whose, _names)
