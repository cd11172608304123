"""The targets by name. Each module is imported when one of its targets is asked for."""

from __future__ import annotations

import importlib
import tempfile
from pathlib import Path

from guard import Target

FINDINGS = Path("tests/fuzz/findings")
MODULES = {
    "config": "config_target",
    "pickle": "checkpoint_targets",
    "torch": "checkpoint_targets",
    "safetensors": "checkpoint_targets",
    "oneflow": "folder_target",
    "tar": "data_targets",
    "tar-cache": "data_targets",
    "lmdb": "data_targets",
    "cifar": "data_targets",
    "image": "data_targets",
    "channels": "data_targets",
    "texts": "text_target",
    "lines": "launcher_target",
}


def find(name: str) -> Target:
    """The target with this name."""
    targets = importlib.import_module(MODULES[name]).TARGETS
    return next(target for target in targets if target.name == name)


def seeds(target: Target) -> list[bytes]:
    """The target's valid inputs."""
    with tempfile.TemporaryDirectory() as folder:
        return list(target.seeds(Path(folder)))


def findings(name: str) -> list[bytes]:
    """Inputs that were findings in an earlier version of a target's reader."""
    return [path.read_bytes() for path in sorted((FINDINGS / name).glob("*"))]
