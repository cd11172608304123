"""Weights & Biases (https://docs.wandb.ai)."""

from __future__ import annotations

import contextlib
import secrets
from pathlib import Path
from typing import Any

from libai_ext.engine.loggers.logger import Logger, Record, Run


class WeightsAndBiases(Logger):
    """Metrics, pictures and config as a run of Weights & Biases.

    Its own environment variables work too, such as ``WANDB_MODE=offline``. Its files are in
    ``output_dir/wandb``.

    Args:
        project, entity: where the run belongs; unset: as ``WANDB_PROJECT`` and ``WANDB_ENTITY``.
        name: unset: that of the output directory.
    """

    package = "wandb"

    def __init__(
        self,
        enabled: bool = False,
        project: str | None = None,
        entity: str | None = None,
        name: str | None = None,
    ):
        super().__init__(enabled)
        self.project = project
        self.entity = entity
        self.name = name
        self.id: str | None = None
        self.run: Any = None

    def open(self, run: Run, id: str | None) -> tuple[str, int]:
        import wandb

        # Known before the service is asked, so that a repeated attempt starts no second run.
        self.id = self.id or id or secrets.token_hex(4)
        offline = wandb.setup().settings.mode in ("offline", "dryrun")
        last = _last_step(run.output_dir, self.id) if offline and id else 0
        self.run = wandb.init(
            project=self.project,
            entity=self.entity,
            name=self.name or Path(run.output_dir).resolve().name,
            dir=run.output_dir,
            id=self.id,
            resume=None if offline else "allow",  # offline it would only give a warning
            config={**run.config, "run": dict(run.summary)},
            allow_val_change=True,  # of a resumed run
            settings=wandb.Settings(console="off", silent=True),
        )
        return self.id, last if offline else max(self.run.starting_step - 1, 0)

    def log(self, record: Record) -> None:
        import wandb

        pictures = {
            name: wandb.Image(picture[0] if len(picture) == 1 else picture.transpose(1, 2, 0))
            for name, picture in record.pictures.items()
        }
        row = {"_timestamp": record.time, **record.metrics, **pictures}
        self.run.log(row, step=record.step, commit=True)

    def close(self, finished: bool) -> None:
        self.run.finish(exit_code=0 if finished else 1)


def _last_step(output_dir: str, id: str) -> int:
    """The last step in the files of a run that was offline. A killed run may have cut one off."""
    from wandb.proto.wandb_internal_pb2 import Record as Stored
    from wandb.sdk.internal.datastore import DataStore

    last = 0
    for path in Path(output_dir, "wandb").glob(f"offline-run-*-{id}/run-{id}.wandb"):
        store = DataStore()
        with contextlib.suppress(Exception):  # of many kinds, where the file is cut off
            store.open_for_scan(str(path))
            for data in iter(store.scan_data, None):
                last = max(last, Stored.FromString(data).history.step.num)
        store.close()
    return last
