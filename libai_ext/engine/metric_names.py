"""What a run calls its numbers in ``metrics.jsonl`` and in TensorBoard, and its best result."""

from __future__ import annotations

TRAINING_LOSS = "total_loss"  # LiBai's name
LEARNING_RATE = "lr"
GRADIENT_NORM = "gradient_norm"  # over all parameters, before clipping; eager mode
STEP_SECONDS = "time"
DATA_SECONDS = "data_time"
SPEED = "images_per_second"
DATA_WAIT = "data_wait"  # share of the time, of 1
MEMORY = "memory_gib"
LOSS_SCALE = "loss_scale"
SKIPPED_STEPS = "skipped_steps"
EVALUATION_LOSS = "eval_loss"
TOP1 = "top1"
TOP5 = "top5"

# A result of an evaluation whose own name says nothing beside numbers of the training.
_PLAINER = {"loss": EVALUATION_LOSS, "ema_loss": f"ema_{EVALUATION_LOSS}"}


def of_result(name: str) -> str:
    """Under which name a result of an evaluation is kept."""
    return _PLAINER.get(name, name)
