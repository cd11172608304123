"""MLflow Tracking (https://mlflow.org/docs/latest/ml/tracking)."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Iterator, Mapping

from libai_ext.engine.loggers.logger import Logger, Record, Run
from libai_ext.errors import ConfigError

_VALUE_LENGTH = 500  # of a parameter, at least, in all versions
_BATCH = 100  # parameters


class MLflow(Logger):
    """Metrics, pictures and config as a run of MLflow.

    Args:
        tracking_uri: a server (``http://host:5000``) or a folder; a database needs the package
            mlflow instead of mlflow-skinny. Unset: ``MLFLOW_TRACKING_URI``, or MLflow's default.
        experiment: unset: as ``MLFLOW_EXPERIMENT_NAME``, or ``Default``.
        name: of the run; unset: that of the output directory.
    """

    package = "mlflow"
    id_pattern = r"[0-9a-f]{32}"

    def __init__(
        self,
        enabled: bool = False,
        tracking_uri: str | None = None,
        experiment: str | None = None,
        name: str | None = None,
    ):
        super().__init__(enabled)
        self.tracking_uri = tracking_uri
        self.experiment = experiment
        self.name = name
        self.client: Any = None
        self.id: str | None = None
        self.measured = 0  # the last step whose metrics were sent

    def check(self, key: str) -> None:
        super().check(key)
        # A folder is what the user asks for, so MLflow need not advise against it.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        # Records are sent again anyway, and the log tells of a failure earlier.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        from mlflow import MlflowClient, get_tracking_uri

        uri = self.tracking_uri or get_tracking_uri()
        try:
            self.client = MlflowClient(tracking_uri=uri)
        except Exception as error:
            reason = str(error).partition(". ")[0]
            raise ConfigError(
                f"{key}.tracking_uri {uri} cannot be used: {reason}. Give a server "
                "(http://host:5000) or a folder; a database needs the package mlflow"
            ) from None

    def open(self, run: Run, id: str | None) -> tuple[str, int]:
        self.id = self.id or id
        if self.id is None:
            name = self.name or Path(run.output_dir).resolve().name
            self.id = self.client.create_run(self._experiment(), run_name=name).info.run_id
        if id is None:
            self._describe(run)
        else:  # parameters of a run cannot be changed
            self.client.update_run(self.id, status="RUNNING")
        for heading, text in run.summary.items():
            self.client.set_tag(self.id, _name(f"run.{heading}"), text)
        history = self.client.get_metric_history(self.id, "samples") if id else []
        return self.id, max((metric.step for metric in history), default=0)

    def _experiment(self) -> str:
        name = self.experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "Default"
        found = self.client.get_experiment_by_name(name)
        return found.experiment_id if found else self.client.create_experiment(name)

    def _describe(self, run: Run) -> None:
        from mlflow.entities import Param

        params = [Param(_name(key), str(v)[:_VALUE_LENGTH]) for key, v in _flat(run.config)]
        for start in range(0, len(params), _BATCH):
            self.client.log_batch(self.id, params=params[start : start + _BATCH])

    def log(self, record: Record) -> None:
        from mlflow.entities import Metric

        time = round(1000 * record.time)
        if record.step > self.measured:
            named = record.metrics.items()
            metrics = [Metric(_name(name), value, time, record.step) for name, value in named]
            self.client.log_batch(self.id, metrics=metrics)
            self.measured = record.step
        while record.pictures:
            name, picture = next(iter(record.pictures.items()))
            image = picture[0] if len(picture) == 1 else picture.transpose(1, 2, 0)
            self.client.log_image(
                self.id, image, key=_name(name), step=record.step, timestamp=time, synchronous=True
            )
            del record.pictures[name]  # what was sent need not be repeated

    def close(self, finished: bool) -> None:
        self.client.set_terminated(self.id, "FINISHED" if finished else "KILLED")


def _name(name: str) -> str:
    """``name`` with the characters that MLflow allows."""
    return re.sub(r"[^\w .:/-]", "_", name)


def _flat(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of a config."""
    if isinstance(node, Mapping) and node:
        for name, value in node.items():
            yield from _flat(value, f"{key}.{name}" if key else str(name))
    else:
        yield key, node
