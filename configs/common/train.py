"""Keys of every run. Lengths and periods are in iterations or epochs. Where both are set, the
iterations of a length and the epochs of a period win."""

from libai.config import LazyCall
from omegaconf import DictConfig

from libai_ext.engine.loggers.mlflow_tracking import MLflow
from libai_ext.engine.loggers.weights_and_biases import WeightsAndBiases
from libai_ext.optim.schedule import warmup_cosine

train = DictConfig(
    dict(
        output_dir="output",
        seed=0,
        # "cpu" or "cuda" insists; unset: a GPU where there is one. A GPU that cannot be used is an
        # error unless "cpu" is asked for.
        device=None,
        # Batch: global = micro x accumulation x data-parallel size. Give the micro or the global
        # batch; the other one follows.
        train_micro_batch_size=32,
        global_batch_size=None,
        num_accumulation_steps=1,
        test_micro_batch_size=32,
        # Length of the run, then of the linear warm-up at its start.
        train_epoch=None,
        train_iter=None,
        warmup_epoch=0,
        warmup_iter=None,
        # The learning rate is base_lr x global batch / 256, unless optim.lr is given.
        base_lr=None,
        scheduler=LazyCall(warmup_cosine)(min_lr=0.0),
        # What remains of an epoch that is no multiple of the batch: "carry" starts the next
        # epoch's permutation within the same batch, so that every sample is seen once an epoch;
        # "drop" leaves it out, as the official PyTorch code does.
        epoch_remainder="carry",
        # Tar shards, Parquet and Arrow: an epoch permutes the shards, then the samples within
        # windows of so many shards, so that few are needed at a time. Unset: 8 for shards on a
        # server, else a permutation of all samples.
        shard_window=None,
        # Weights to start from: a file or folder of any known style. --resume goes first.
        load_weight=None,
        # A run, or a checkpoint of one, to continue in a new output directory under another
        # schedule: its weights, its optimizer state and its iterations.
        extend_from=None,
        # [rows, columns]: the grid of its position tables, where the file does not say.
        load_grid=None,
        log_period=20,
        # Every so many iterations, or epochs if they are set.
        checkpointer=dict(period=5000, epoch=None, max_to_keep=5),
        # Steps that may be left out because their loss or gradients are not finite; one more ends
        # the run. The state without these steps is saved.
        max_nonfinite_steps=0,
        # A step that takes factor times the median and min_seconds is reported with every rank's
        # stack. A step, a batch of an evaluation, a save or the building of the run that takes
        # end_seconds (a step also twice what is reported) ends the job; null: never.
        watchdog=dict(factor=20, min_seconds=120, end_seconds=1800),
        # SIGTERM, SIGINT, SIGUSR1, SIGHUP: a checkpoint after the iteration, then exit status 75.
        save_on_signal=True,
        # Every so many iterations or epochs, and after the last one. model_best is kept by the
        # result eval_metric; unset: no model_best. eval_mode, "max" or "min", follows from it.
        # evals: named nodes of libai_ext.engine.evaluator.Evaluator, each with a period of its own.
        evaluation=dict(
            enabled=False,
            eval_period=5000,
            eval_epoch=None,
            eval_metric=None,
            eval_mode=None,
            evals=dict(),
        ),
        # Services that get the metrics too: named nodes of libai_ext.engine.loggers.logger.Logger.
        loggers=dict(
            wandb=LazyCall(WeightsAndBiases)(enabled=False, project=None, entity=None, name=None),
            mlflow=LazyCall(MLflow)(enabled=False, tracking_uri=None, experiment=None, name=None),
        ),
        # Moving average of the weights, evaluated beside them.
        ema=dict(enabled=False, decay=0.9999),
        # Mixed precision. On CPU: products of bfloat16, without a scale. On GPUs: products in
        # float16; the loss is multiplied by a scale, halved after a step whose gradients overflow
        # (it is left out, which is no fault) and doubled after growth_interval sound ones. An
        # overflow at min_scale is a fault.
        amp=dict(enabled=False, init_scale=2.0**16, growth_interval=2000, min_scale=1.0),
        activation_checkpoint=dict(enabled=False),
        zero_optimization=dict(enabled=False, stage=1),
        # Sizes multiply to the number of processes; one that is unset follows from it.
        dist=dict(
            data_parallel_size=None,
            tensor_parallel_size=1,
            pipeline_parallel_size=1,
            # The pipeline stage of each layer; unset: cut where the slowest stage is fastest.
            custom_pipeline_stage_id=None,
        ),
        nccl_fusion_threshold_mb=16,
        nccl_fusion_max_ops=24,
    )
)
