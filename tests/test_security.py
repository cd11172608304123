"""What SECURITY.md says of ports, formats and variables."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import psutil

from libai_ext.data.decode import FORMATS
from libai_ext.launch import rendezvous

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "SECURITY.md").read_text()
PROGRAM = """
import os, psutil
from libai_ext.engine import cli as entry
from libai_ext.startup import start
def program():
    start()
    places = [c.laddr for c in psutil.Process().net_connections() if c.status == "LISTEN"]
    where = " ".join(f"{place.ip} {place.port}" for place in places)
    os.write(1, f"rank {os.environ['RANK']} {os.environ['MASTER_PORT']} {where}\\n".encode())
    assert "JOB_SECRET" not in os.environ
entry.run(program)
"""


def test_it_names_what_there_is():
    assert f"one of {', '.join(FORMATS)} (" in TEXT
    assert rendezvous.SECRET in TEXT
    links = re.findall(r"\]\(([^)]+)\)", TEXT)
    assert len(links) >= 4 and all((ROOT / link).exists() for link in links)


def test_one_process_listens_nowhere():
    assert [c for c in psutil.Process().net_connections() if c.status == "LISTEN"] == []


def test_of_several_each_rank_keeps_one_port_open(tmp_path, monkeypatch):
    """The one of the rendezvous is closed again. Without a network, by the command of the text."""
    monkeypatch.setenv(rendezvous.SECRET, "of the test")
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    job = f"{sys.executable} -m libai_ext.launch --nproc-per-node 2 {path}"
    begin, end = re.search(r"^(unshare .*)bash tools/train.*(')$", TEXT, re.MULTILINE).groups()
    command = ["bash", "-c", f"{begin}{job}{end}"]
    out = subprocess.run(
        command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=100
    ).stdout
    places = [re.fullmatch(r"rank (\d) (\d+) (::|0\.0\.0\.0) (\d+)", x) for x in out.splitlines()]
    assert sorted(place[1] for place in places) == ["0", "1"]
    assert all(place[2] != place[4] for place in places)
