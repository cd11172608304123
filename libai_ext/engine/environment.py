"""``environment.json``: what a run ran on."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Mapping

from libai_ext.files.atomic import write_text
from libai_ext.text import masked

FILE = "environment.json"
_PACKAGES = ("oneflow", "libai", "flowvision", "numpy", "Pillow", "omegaconf")


def write(output_dir: str, run: Mapping[str, str] | None = None) -> None:
    """Write ``environment.json``: date, commit, versions, processor, memory, number of processes.

    Args:
        run: summary of the run, as (heading, text).
    """
    versions = {name: metadata.version(name) for name in _PACKAGES if _installed(name)}
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    content = {
        "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "commit": commit(),
        "python": platform.python_version(),
        **versions,
        "system": platform.platform(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "memory": f"{memory / 2**30:.1f} GiB",
        "processes": int(os.environ.get("WORLD_SIZE", 1)),
        "command": masked(" ".join(sys.argv)),
        "run": dict(run or {}),
    }
    write_text(Path(output_dir, FILE), json.dumps(content, indent=2) + "\n")


def commit() -> str | None:
    """The commit of this checkout, with ``-dirty`` if a tracked file differs; None if installed."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    command = "git --no-optional-locks describe --always --dirty --abbrev=40".split()
    try:
        result = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def processor() -> str:
    """The name of this machine's CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
