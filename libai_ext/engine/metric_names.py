"""Names of the metrics in ``metrics.jsonl`` and TensorBoard."""

from __future__ import annotations

TRAINING_LOSS = "total_loss"  # LiBai's name
LEARNING_RATE = "lr"
GRADIENT_NORM = "gradient_norm"  # over all parameters, before clipping; eager mode
STEP_SECONDS = "time"
DATA_SECONDS = "data_time"
SPEED = "images_per_second"
DATA_WAIT = "data_wait"  # share of the time, 0 to 1
MEMORY = "memory_gib"
LOSS_SCALE = "loss_scale"
SKIPPED_STEPS = "skipped_steps"
EVALUATION_LOSS = "eval_loss"
TOP1 = "top1"
TOP5 = "top5"

# Results of an evaluation whose own names would look like metrics of the training.
_EVALUATION = {"loss": EVALUATION_LOSS, "ema_loss": f"ema_{EVALUATION_LOSS}"}


def for_result(name: str) -> str:
    """The metric's name for a result of an evaluation."""
    return _EVALUATION.get(name, name)
