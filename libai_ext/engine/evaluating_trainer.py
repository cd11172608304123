"""The evaluations of a trainer: on its test set, and by named evaluators."""

from __future__ import annotations

import logging
import time
from typing import Any, Mapping, Sequence

from libai.engine.default import DefaultTrainer
from libai.utils import distributed as dist

from libai_ext.config.lazy_config import fresh, instantiate
from libai_ext.data.loader import Loader, build_eval_loader
from libai_ext.engine.evaluation import evaluate
from libai_ext.engine.evaluator import Evaluator
from libai_ext.engine.output_dir import unwritable
from libai_ext.engine.progress import position
from libai_ext.engine.run_metrics import sum_over_data_ranks
from libai_ext.errors import ConfigError

logger = logging.getLogger(__name__)


class EvaluatingTrainer(DefaultTrainer):
    """What a trainer of this project evaluates, and when.

    Attributes:
        test_set: the data set of :meth:`test`; None if it is not opened.
        test_batches: batches of an evaluation; None: all.
        evaluators: those of ``train.evaluation.evals`` by name.
        unevaluated: names, as in :meth:`evaluations`, of those after the last iteration that could
            not read their data.
    """

    test_set: Any = None
    test_batches: int | None = None
    evaluators: Mapping[str, Evaluator]
    unevaluated: list[str]

    def open_test_set(self) -> None:
        """Make :meth:`test` possible. Called before the first step, to find errors early."""
        self.test_set = self.build_dataset("test")

    def build_dataset(self, split: str):
        """The data set of ``dataloader.<split>``.

        Raises:
            ConfigError: the config has no such split.
        """
        node = self.cfg.dataloader.get(split)
        if node is None:
            raise ConfigError(f"the config has no dataloader.{split}")
        node = fresh(node.dataset)
        node.seed = self.cfg.train.seed
        return instantiate(node)

    def evaluations(self) -> list[tuple[int, str]]:
        """Period and name of each evaluation; that of the task has no name."""
        evaluation = self.cfg.train.evaluation
        found = [(evaluation.eval_period, "")] if evaluation.enabled else []
        for name, evaluator in self.evaluators.items():
            epochs = evaluator.epoch
            found.append((self.order.iterations(epochs) if epochs else evaluator.period, name))
        return found

    def run_evaluator(self, name: str) -> dict[str, float]:
        """Run the evaluator ``name``; log its results and how long it took."""
        start = time.perf_counter()
        results = self.evaluators[name].run(self)
        seconds = time.perf_counter() - start
        if dist.is_main_process():
            logger.info(f"{self._place()}{name}: {_listed(results)} ({seconds:.2f} s)")
        return results

    def build_evaluator(self, dataset):
        """The evaluator of :meth:`test`; a task's trainer defines it."""
        raise NotImplementedError(f"{type(self).__name__} does not evaluate")

    def report(self, evaluator, dataset) -> None:
        """Write a task's files after an evaluation, on rank 0."""

    def eval_loader(self, dataset) -> Loader:
        """One pass over a data set, in batches of an evaluation."""
        train = self.cfg.train
        return build_eval_loader(
            dataset,
            train.test_micro_batch_size,
            train.dist.data_parallel_size,
            self.cfg.dataloader.test.num_workers,
        )

    def test(self) -> dict[str, float]:
        """Evaluate on the test set; results on rank 0, an empty dict elsewhere.

        With averaged weights, their results have the prefix ``ema_``.
        """
        dataset = self.test_set
        loader = self.eval_loader(dataset)
        evaluator = self.build_evaluator(dataset)
        before = dataset.source.totals()
        results = self.measure(loader, evaluator)
        self._say_replaced(dataset, before)
        if self.average is not None:
            with self.average.in_model():
                averaged = self.measure(loader, self.build_evaluator(dataset))
            results.update({f"ema_{name}": value for name, value in averaged.items()})
        if dist.is_main_process():
            samples = self._tested(loader)
            logger.info(f"{self._place()}evaluation on {samples} samples: {_listed(results)}")
            if self.test_batches is None:
                self._report(evaluator, dataset)
        return results

    def _say_replaced(self, dataset, before: Sequence[int]) -> None:
        """Log how many samples of an evaluation were replaced.

        Args:
            before: the totals of the data set's source, before the evaluation.
        """
        counts = tuple(now - then for now, then in zip(dataset.source.totals(), before))
        _, bad = sum_over_data_ranks(counts)
        if bad and dist.is_main_process():
            logger.warning(
                f"{bad:,} unreadable samples of the evaluation were replaced by others, which "
                "count twice: also in predictions.csv, where a row with the name of an unreadable "
                "sample has label and prediction of its replacement (log.txt* name both)"
            )

    def test_all(self) -> None:
        """:meth:`test`, then every evaluator that has a period."""
        self.test()
        for name in self.evaluators:
            self.run_evaluator(name)

    def repeat_evaluations(self) -> bool:
        """Run those of :attr:`unevaluated`; whether there are any."""
        missing = [name for _, name in self.evaluations() if name in self.unevaluated]
        for name in missing:
            self.run_evaluator(name) if name else self.test()
        if missing:
            logger.warning(
                "the last evaluation was missing: its results are in this log alone, neither in "
                "metrics.jsonl nor compared with model_best"
            )
        return bool(missing)

    def _place(self) -> str:
        """Where an evaluation is in the training."""
        return f"{position(self)} " if self._batches is not None else ""

    def _report(self, evaluator, dataset) -> None:
        try:
            self.report(evaluator, dataset)
        except OSError as error:
            problem = unwritable(self.cfg.train.output_dir, error)
            if self.order is None:  # the evaluation is all there is to do
                raise problem from None
            logger.error(f"{problem}; training continues without the evaluation's files")

    def _tested(self, loader) -> str:
        """Number of samples of an evaluation."""
        sampler = loader.batch_sampler
        batches = len(sampler) if self.test_batches is None else self.test_batches
        seen = min(batches * sampler.global_batch, sampler.num_samples)
        return str(seen) if seen == sampler.num_samples else f"{seen} of {sampler.num_samples}"

    def measure(self, loader, evaluator) -> dict[str, float]:
        """Results of ``evaluator`` over ``loader``, at most ``test_batches`` batches."""
        model = self.graph_eval if self.cfg.graph.enabled else self.model
        return evaluate(model, loader, self.get_batch, evaluator, max_batches=self.test_batches)


def _listed(results: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.6g}" for name, value in results.items())
