"""tools/check_gpu.py with a model of one layer each and few steps of ViT-B: graphs that compile in
half the time."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

import check_gpu  # noqa: E402

SMALL = ("model.depth=1", "model.decoder_depth=1")


class Run(check_gpu.Run):
    def _launch(self, *options):
        small = SMALL if self.config == check_gpu.DIGITS else ()
        return super()._launch(*small, *options)


check_gpu.Run, check_gpu.TIMED_STEPS = Run, 4
sys.exit(check_gpu.main())
