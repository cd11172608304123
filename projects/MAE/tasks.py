"""Tasks: the parts of a run that differ between pre-training and classification."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Any, Mapping, Sequence

from omegaconf import DictConfig, OmegaConf

from libai_ext.checkpoint.checkpointer import from_rank_0
from libai_ext.checkpoint.errors import CheckpointError
from libai_ext.config.targets import parameters
from libai_ext.data import classes
from libai_ext.data.walk import some
from libai_ext.engine import confusion
from libai_ext.engine.evaluation import MeanOf
from libai_ext.engine.metrics import Classification as ClassificationMetrics
from libai_ext.errors import ConfigError, DataError
from libai_ext.layers.patch_embedding import grid_of
from projects.MAE.modeling.masking import num_kept
from projects.MAE.pictures.hook import PictureHook
from projects.MAE.weights import compare
from projects.MAE.weights.describe import describe
from projects.MAE.weights.load import load_weights
from projects.MAE.weights.match import NEW, REPLACED
from projects.MAE.weights.record import of_config

logger = logging.getLogger(__name__)


class Task:
    """The task-specific part of a run: the node ``task`` of a config.

    It is built more than once, first to complete the config, and keeps only its arguments between
    calls. All methods except :meth:`report` are called on all ranks.

    Attributes:
        metrics: name of each result of an evaluation -> which is better, "min" or "max".
    """

    metrics: Mapping[str, str] = {}

    def prepare(self, cfg: DictConfig) -> None:
        """Write values that follow from the model into a config with derived sizes and batch.

        Raises:
            ConfigError: keys do not fit together.
        """

    def record(self, cfg: DictConfig, dataset) -> dict[str, Any]:
        """The record that each checkpoint stores, see :mod:`projects.MAE.weights.record`."""
        return of_config(cfg).plain()

    def settings(self, model) -> dict[str, Any]:
        """Besides the config, values that must be the same in a resumed run; plain for JSON."""
        return {}

    def start_from(self, model, cfg: DictConfig) -> None:
        """Load the weights that a new run starts from, if the config names any.

        Raises:
            CheckpointError: they cannot be read, or belong to another model.
        """
        if cfg.train.load_weight:
            load_weights(model, cfg.train.load_weight, grid=cfg.train.load_grid)

    def check_model(self, model, cfg: DictConfig) -> None:
        """
        Raises:
            ConfigError: the model does not fit these data.
        """

    def check_data(self, dataset, cfg: DictConfig, key: str, trained_on=None) -> None:
        """Refuse a data set that does not fit the task, or number its classes. By default, any
        images are accepted.

        Args:
            dataset: a :class:`libai_ext.data.dataset.KeyedDataset`.
            key: of the data set, ``data.train`` or ``data.test``.
            trained_on: the training data, if it exists and is not ``dataset``.

        Raises:
            DataError: says what is wrong with the data set.
        """

    def hooks(self, cfg: DictConfig) -> list:
        """More hooks for training, LiBai's ``HookBase``; they run before the files are written."""
        return []

    def evaluator(self, dataset):
        """The object that computes an evaluation's results, those of :attr:`metrics`; see
        :func:`libai_ext.engine.evaluation.evaluate`."""
        raise NotImplementedError

    def report(self, evaluator, dataset, output_dir: str) -> None:
        """Write files after an evaluation, on rank 0; by default none."""


def fill_fields(dataset: DictConfig, known: Mapping[str, Any]) -> None:
    """Set, in the nodes of a data set's fields, those parameters whose names are in ``known``."""
    for number, node in enumerate(dataset.fields):
        taken = parameters(node, f"fields.{number}")
        for name in known:
            if name in taken:
                node[name] = known[name]


class Pretraining(Task):
    """Masked autoencoding, evaluated by its loss, always with the same masks.

    Args:
        picture_period: iterations between reconstructions in TensorBoard; 0: none.
        picture_samples: how many samples they show.
        picture_channels: which channels, see :func:`projects.MAE.pictures.panels.as_picture`.
    """

    metrics = {"loss": "min"}

    def __init__(
        self,
        picture_period: int = 200,
        picture_samples: int = 5,
        picture_channels: Sequence[int] | None = None,
    ):
        self.picture_period = picture_period
        self.picture_samples = picture_samples
        self.picture_channels = picture_channels

    def prepare(self, cfg: DictConfig) -> None:
        """Set the fields' grid, number of patches and number of kept patches."""
        rows, columns = grid_of(cfg.model.img_size, cfg.model.patch_size)
        kept = num_kept(rows * columns, cfg.model.mask_ratio)
        if not 0 < kept < rows * columns:
            raise ConfigError(
                f"model.mask_ratio {cfg.model.mask_ratio} leaves {kept} of {rows * columns} "
                "patches visible: the model sees some and is judged by the others"
            )
        known = dict(num_patches=rows * columns, grid=[rows, columns], num_kept=kept)
        for split in ("train", "test"):
            if cfg.dataloader.get(split) is not None:
                fill_fields(cfg.dataloader[split].dataset, known)

    def settings(self, model) -> dict[str, Any]:
        identity = model.target.identity
        return {} if identity is None else {"content of model.target": identity}

    def check_model(self, model, cfg: DictConfig) -> None:
        """
        Raises:
            ConfigError: the target was made for images that were prepared otherwise.
        """
        own: Any = OmegaConf.to_container(cfg.data, resolve=True) if "data" in cfg else {}
        found = compare.contradictions(own, model.target.data, compare.DATA, "data.")
        if found:
            raise ConfigError(
                f"the model.target was made for other images: {'; '.join(found)}: set these keys "
                "as the file has them"
            )

    def hooks(self, cfg: DictConfig) -> list:
        return [PictureHook(self.picture_period, self.picture_samples, self.picture_channels)]

    def evaluator(self, dataset) -> MeanOf:
        return MeanOf(loss="sample_losses")


_MIXER, _ALPHAS = "dataloader.train.dataset.mixer", ("mixup_alpha", "cutmix_alpha")


def _mixes(mixer: DictConfig) -> bool:
    """Whether it mixes samples, and does not only smooth labels."""
    return any(mixer.get(alpha) != 0 for alpha in _ALPHAS)


def _described_classes(path: str) -> list[str] | None:
    """Class names in a file of weights, or in the folder of one; None if there are none."""
    with contextlib.suppress(CheckpointError):  # loading the weights reports it
        names = from_rank_0(lambda: describe(path)[1].record.classes)
        return list(names) if names else None
    return None


def _renamed(known: Sequence[str], names: Sequence[str]) -> bool:
    """Whether two lists of classes are as long and have no name in common."""
    return len(known) == len(names) and not set(known) & set(names)


class Classification(Task):
    """Fine-tuning of the whole model or a part, and linear probing.

    Args:
        per_class: write ``per_class.txt`` after an evaluation: support, recall and precision.
        confusion: write ``confusion.png``.
        predictions: write ``predictions.csv``, one line per sample.
        classes: a file of class names, one per line, in the order of the head's outputs.
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
        fill_fields(dataset, {"depth": cfg.model.depth})
        micro = train.train_micro_batch_size  # unset in an evaluation
        if dataset.mixer is not None and micro and micro % 2 and _mixes(dataset.mixer):
            raise ConfigError(
                f"train.train_micro_batch_size {micro} is odd: mixup pairs the samples of a "
                f"micro-batch ({' '.join(f'{_MIXER}.{alpha}=0' for alpha in _ALPHAS)} switch it "
                "off and keep the smoothing of labels)"
            )

    def record(self, cfg: DictConfig, dataset) -> dict[str, Any]:
        """The record that each checkpoint stores, with the names of the classes."""
        return of_config(cfg, dataset and dataset.source.classes).plain()

    def start_from(self, model, cfg: DictConfig) -> None:
        """Load a whole classifier (``train.load_weight``) or an encoder (``finetune.path``)."""
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
        replaced, style = REPLACED[cfg.model.pooling], cfg.finetune.weight_style
        load_weights(model, cfg.finetune.path, replaced, style, grid, new=NEW)

    def check_data(self, dataset, cfg: DictConfig, key: str, trained_on=None) -> None:
        """Number the classes of a data set in the order of the head's outputs.

        The head's classes come from ``task.classes``, else from the training data, else from the
        weights; if none of these names them, from the data set itself. Classes of the weights are
        found by name, or by order if the data have as many and none of their names.

        Args:
            key: of the data set, ``data.train`` or ``data.test``.
            trained_on: the training data, if it exists and is not ``dataset``.

        Raises:
            DataError: samples have no class or an unknown one, or the head has another number of
                classes.
        """
        if key == "data.train" and dataset.mixer is None and cfg.model.get("n_partial") != 0:
            logger.info(f"no mixup and no label smoothing: {_MIXER} is null")
        source, head = dataset.source, cfg.model.num_classes
        known = self._classes_of_the_head(cfg, trained_on)
        if known and trained_on is None and not self.classes and _renamed(known, source.classes):
            logger.warning(
                f"{key} has none of the classes that the weights name ({some(known)}), but as "
                f"many: its own ({some(source.classes)}) are taken for them, in this order; "
                "task.classes can name a file of them in another order"
            )
            known = source.classes
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
        """Names by class number; None if nothing gives them."""
        if trained_on is not None:
            return trained_on.source.classes
        weights = cfg.train.load_weight or cfg.train.output_dir
        kept = classes.saved_classes(weights) or _described_classes(weights)
        if not self.classes:
            return kept
        names = classes.read_names(self.classes)
        if kept and _renamed(kept, names):
            logger.info(f"task.classes: {some(names)} in place of the weights' {some(kept)}")
        elif kept and names != kept:
            raise DataError(
                f"task.classes {self.classes} has {some(names)} ({len(names)}), the checkpoint of "
                f"{weights} {some(kept)} ({len(kept)}): leave task.classes out"
            )
        return names

    def evaluator(self, dataset) -> ClassificationMetrics:
        return ClassificationMetrics(dataset.source.classes, logits="prediction_scores")

    def report(self, evaluator: ClassificationMetrics, dataset, output_dir: str) -> None:
        """Write the files that the options ask for, besides accuracy and loss."""
        folder = Path(output_dir)
        if self.per_class:
            (folder / "per_class.txt").write_text(evaluator.table() + "\n", encoding="utf-8")
        if self.confusion:
            figure = confusion.draw(evaluator.confusion(), evaluator.classes)
            figure.savefig(folder / "confusion.png", dpi=100, bbox_inches="tight")
        if self.predictions:
            names = [dataset.source.name(index) for index in range(len(dataset))]
            evaluator.write_predictions(str(folder / "predictions.csv"), names)
