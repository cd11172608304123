"""What OneFlow's compiler says a training step needs of each device's memory, for any number.

    PYTHONPATH=tests:. python -m fakecuda.compile DEVICES CONFIG [key=value ...]

prints it, a line a rank.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path

from fakecuda.gpus import environment

ROOT = Path(__file__).resolve().parents[2]
WORKER = Path(__file__).with_name("compile_worker.py")
# As plan_util.cpp of OneFlow 0.9.0 writes them; its MiB has 10^6 bytes.
_MIB = r"\[ ([\d.e+-]+) MiB \]"
_RANK = re.compile(rf"in Rank: (\d+), Device: -?\d+ needs to allocate {_MIB}")
_PART = re.compile(rf"(?:memory is|not eager var is|total memory is) +{_MIB}")
_COMPILED = "CompilePlan"


@dataclass
class Memory:
    """Bytes of one rank's device.

    Attributes:
        total: the sum of the others.
        reused: the chunk that tensors share whose lives do not overlap.
        unreused: tensors that have their own.
        variables: parameters and the optimizer's state.
    """

    total: int = 0
    reused: int = 0
    unreused: int = 0
    variables: int = 0


def compile_memory(config, options, devices: int, timeout: float = 600) -> list[Memory]:
    """Compile the training graph of a run on so many devices, in one process.

    Args:
        options: ``key=value`` overrides. No data is read.
        timeout: seconds.

    Returns:
        Of each rank, in order.

    Raises:
        RuntimeError: the graph did not compile; the message ends with what the process said.
    """
    env = dict(os.environ, **environment(devices=devices, memory_gib=10000))
    env.update(GLOG_minloglevel="0", GLOG_logtostderr="1", OMP_NUM_THREADS="1")
    command = ["timeout", str(timeout), sys.executable, WORKER, devices, config, *options]
    process = subprocess.Popen(
        [str(part) for part in command],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        errors="replace",
    )
    try:
        return _read(process.stdout)
    finally:
        # It would go on to wait for the other ranks.
        process.terminate()
        process.wait()


def _read(lines) -> list[Memory]:
    found: dict[int, Memory] = {}
    parts, said = iter(()), []
    for line in lines:
        said.append(line)
        rank, part = _RANK.search(line), _PART.search(line)
        if rank:
            memory = found[int(rank[1])] = Memory(_bytes(rank[2]))
            parts = iter(fields(memory)[1:])
        elif part and found:
            setattr(memory, next(parts).name, _bytes(part[1]))
        if _COMPILED in line and found:
            return [found[rank] for rank in sorted(found)]
    raise RuntimeError("the graph did not compile:\n" + "".join(said[-30:]))


def _bytes(mib: str) -> int:
    return round(float(mib) * 1e6)


if __name__ == "__main__":
    for number, memory in enumerate(compile_memory(sys.argv[2], sys.argv[3:], int(sys.argv[1]))):
        print(number, memory)
