"""What a run is for: the parts of a run that differ between pre-training and classification."""

from __future__ import annotations

import logging
from pathlib import Path

from omegaconf import DictConfig

from libai_ext.data import classes
from libai_ext.data.walk import some
from libai_ext.engine import confusion
from libai_ext.engine.evaluation import MeanOf
from libai_ext.engine.metrics import Classification as ClassificationMetrics
from libai_ext.errors import ConfigError, DataError
from libai_ext.layers.patch_embedding import grid_of
from projects.MAE.modeling.masking import num_kept
from projects.MAE.pictures.hook import PictureHook
from projects.MAE.weights.load import load_weights
from projects.MAE.weights.match import REPLACED
from projects.MAE.weights.record import of_config

logger = logging.getLogger(__name__)


class Pretraining:
    """Masked autoencoding, evaluated by its loss under the same masks each time.

    Args:
        picture_period: iterations between reconstructions in TensorBoard; 0: none.
        picture_samples: how many samples they show.
    """

    # Results of an evaluation, and which way each is better.
    metrics = {"loss": "min"}

    def __init__(self, picture_period: int = 200, picture_samples: int = 5):
        self.picture_period = picture_period
        self.picture_samples = picture_samples

    def prepare(self, cfg: DictConfig) -> None:
        """Write what follows from the model into a config whose sizes and batch are
        derived."""
        rows, columns = grid_of(cfg.model.img_size, cfg.model.patch_size)
        kept = num_kept(rows * columns, cfg.model.mask_ratio)
        if not 0 < kept < rows * columns:
            raise ConfigError(
                f"model.mask_ratio {cfg.model.mask_ratio} leaves {kept} of {rows * columns} "
                "patches visible: the model sees some and is judged by the others"
            )
        for split in ("train", "test"):
            if cfg.dataloader.get(split) is not None:
                cfg.dataloader[split].dataset.fields[0].num_patches = rows * columns

    def record(self, cfg: DictConfig, dataset) -> dict:
        """What each checkpoint says of its model, see :mod:`projects.MAE.weights.record`."""
        return of_config(cfg).plain()

    def start_from(self, model, cfg: DictConfig) -> None:
        """Load the weights that a new run starts from, where the config names any."""
        if cfg.train.load_weight:
            load_weights(model, cfg.train.load_weight, grid=cfg.train.load_grid)

    def check_data(self, dataset, cfg: DictConfig, key: str, trained_on=None) -> None:
        """Any images will do."""

    def hooks(self, cfg: DictConfig) -> list:
        """What else happens while training; runs before the files are written."""
        return [PictureHook(self.picture_period, self.picture_samples)]

    def evaluator(self, dataset) -> MeanOf:
        return MeanOf(loss="sample_losses")

    def report(self, evaluator: MeanOf, dataset, output_dir: str) -> None:
        """Nothing beyond the loss."""


class Classification:
    """Fine-tuning, all of it or in part, and linear probing.

    Args:
        per_class: write ``per_class.txt`` after an evaluation: support, recall and precision.
        confusion: write ``confusion.png``.
        predictions: write ``predictions.csv``, a line a sample.
        classes: a file of class names, one a line, in the order of the head's outputs.
    """

    metrics = {"top1": "max", "top5": "max", "loss": "min"}

    def __init__(
        self,
        per_class: bool = False,
        confusion: bool = False,
        predictions: bool = False,
        classes: str | None = None,
    ):
        self.per_class = per_class
        self.confusion = confusion
        self.predictions = predictions
        self.classes = classes

    def prepare(self, cfg: DictConfig) -> None:
        dataset, train = cfg.dataloader.train.dataset, cfg.train
        for field in dataset.fields:
            field.depth = cfg.model.depth
        micro = train.train_micro_batch_size  # unset in an evaluation
        if dataset.mixer is not None and micro and micro % 2:
            raise ConfigError(
                f"train.train_micro_batch_size {micro} is odd: mixup pairs "
                "the samples of a micro-batch (dataloader.train.dataset.mixer=null switches it off)"
            )

    def record(self, cfg: DictConfig, dataset) -> dict:
        """What each checkpoint says of its model, the names of its classes included."""
        return of_config(cfg, dataset and dataset.source.classes).plain()

    def start_from(self, model, cfg: DictConfig) -> None:
        """A whole classifier from ``train.load_weight``, or an encoder from ``finetune.path``."""
        grid = cfg.train.load_grid
        if cfg.train.load_weight:
            load_weights(model, cfg.train.load_weight, grid=grid)
            return
        if not cfg.finetune.enable:
            return
        if not cfg.finetune.path:
            raise ConfigError(
                "set finetune.path to the pre-trained weights, or finetune.enable=False to train "
                "from scratch"
            )
        replaced = "finetune_mean" if cfg.model.pooling == "mean" else "finetune"
        style = cfg.finetune.weight_style
        load_weights(model, cfg.finetune.path, REPLACED[replaced], style, grid)

    def check_data(self, dataset, cfg: DictConfig, key: str, trained_on=None) -> None:
        """Number the classes of a data set as the head does.

        The head's classes are those of ``task.classes``, else of the training data, else those
        that the weights name; where nothing says them, the data set's own.

        Args:
            key: of the data set, ``data.train`` or ``data.test``.
            trained_on: the training data, where there is some and this is not it.

        Raises:
            DataError: the data set has samples without a class or of an unknown one, or the head
                another number of classes.
        """
        source, head = dataset.source, cfg.model.num_classes
        known = self._classes_of_the_head(cfg, trained_on)
        classes.use_class_numbers(source, known or source.classes, key)
        count = len(source.classes)
        if count != head:
            advice = (
                f"set model.num_classes={count}, or give the data the model was trained for"
                if trained_on is not None or known or count > head
                else "a test split may lack classes where task.classes names a file with all of "
                "them, in the order of the head's outputs"
            )
            raise DataError(
                f"{key} has {count} classes ({some(source.classes)}), the model's head {head}: "
                f"{advice}{classes.describe_empty_classes(source)}"
            )
        if known is None and key == "data.test":
            logger.warning(
                "the weights do not name their classes: they are taken to be those of data.test, "
                "in their order; task.classes can name a file of them"
            )

    def _classes_of_the_head(self, cfg: DictConfig, trained_on) -> list[str] | None:
        """Names by class number, None where nothing says them."""
        if trained_on is not None:
            return trained_on.source.classes
        weights = cfg.train.load_weight or cfg.train.output_dir
        kept = classes.saved_classes(weights)
        names = classes.read_names(self.classes) if self.classes else kept
        if kept and names is not None and names != kept:
            raise DataError(
                f"task.classes {self.classes} has {some(names)} ({len(names)}), the checkpoint of "
                f"{weights} {some(kept)} ({len(kept)}): leave task.classes out"
            )
        return names

    def hooks(self, cfg: DictConfig) -> list:
        """Nothing beyond the trainer's own."""
        return []

    def evaluator(self, dataset) -> ClassificationMetrics:
        return ClassificationMetrics(dataset.source.classes, logits="prediction_scores")

    def report(self, evaluator: ClassificationMetrics, dataset, output_dir: str) -> None:
        """Write what was asked for beyond accuracy and loss."""
        folder = Path(output_dir)
        if self.per_class:
            (folder / "per_class.txt").write_text(evaluator.table() + "\n", encoding="utf-8")
        if self.confusion:
            figure = confusion.draw(evaluator.confusion(), evaluator.classes)
            figure.savefig(folder / "confusion.png", dpi=100, bbox_inches="tight")
        if self.predictions:
            names = [dataset.source.name(index) for index in range(len(dataset))]
            evaluator.write_predictions(str(folder / "predictions.csv"), names)
