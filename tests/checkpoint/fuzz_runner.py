"""Read mutated files under limits. Started by the fuzz test.

    python fuzz_runner.py GOLDEN COUNT SEED

Prints one JSON object: number of files, how many were read in spite of all, the CPU seconds of the
slowest, audit events, and every outcome that is neither "read" nor a `CheckpointError`.
"""

import io
import json
import os
import pathlib
import random
import resource
import struct
import sys
import tempfile
import time
import zipfile

import hostile_runner

from libai_ext.checkpoint import formats
from libai_ext.checkpoint.errors import CheckpointError

MEGABYTES = 500
NUMBERS = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**62, 2**63, 2**64 - 1]
OPCODES = b"().0123NIJKMGXTUCB]}aesutlhjqrcRobQ\x80\x81\x85\x86\x87\x88\x89\x8a\x8b\x8c\x8f\x92\x93"


def mutate(content, rng):
    """Between one and four changes: bits, bytes, numbers, opcodes, cuts, copies, removals."""
    content = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        if not content:
            break
        position = rng.randrange(len(content))
        kind = rng.randrange(7)
        if kind == 0:
            content[position] ^= 1 << rng.randrange(8)
        elif kind == 1:
            content[position] = rng.randrange(256)
        elif kind == 2:
            number = struct.pack("<Q", rng.choice(NUMBERS))[: rng.choice((1, 2, 4, 8))]
            content[position : position + len(number)] = number
        elif kind == 3:
            content.insert(position, rng.choice(OPCODES))
        elif kind == 4:
            del content[position:]
        elif kind == 5:
            chunk = content[position : position + rng.randint(1, 64)]
            target = rng.randrange(len(content))
            content[target:target] = chunk * rng.choice((1, 1, 50))
        else:
            del content[position : position + rng.randint(1, 16)]
    return bytes(content)


def mutate_pickle(archive_bytes, rng):
    """A sound archive around a mutated pickle, which its checksum would protect otherwise."""
    buffer = io.BytesIO()
    source = zipfile.ZipFile(io.BytesIO(archive_bytes))
    with source, zipfile.ZipFile(buffer, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith("data.pkl"):
                content = mutate(content, rng)
            target.writestr(name, content)
    return buffer.getvalue()


def main():
    golden, count, seed = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    rng = random.Random(seed)
    names = ("tensors.pth", "tensors_protocol4.pth", "tensors_legacy.pth", "tensors.safetensors")
    sound = [(golden / name).read_bytes() for name in names]
    archives = [content for content in sound if content.startswith(b"PK")]
    resource.setrlimit(resource.RLIMIT_CPU, (120, 120))
    read, slowest, wrong, events = 0, 0.0, [], []
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "mutated")
        used = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
        limit = used * resource.getpagesize() + (MEGABYTES << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        sys.addaudithook(hostile_runner.watch)
        for number in range(count):
            if number % 2:
                content = mutate_pickle(rng.choice(archives), rng)
            else:
                content = mutate(rng.choice(sound), rng)
            with open(path, "wb") as file:
                file.write(content)
            del hostile_runner.EVENTS[:]
            started = time.process_time()
            try:
                formats.load(path)
                read += 1
            except CheckpointError as error:
                if path not in str(error):
                    wrong.append((number, "an error without the file's name", str(error)))
            except Exception as error:
                wrong.append((number, type(error).__name__, str(error)))
            slowest = max(slowest, time.process_time() - started)
            events += hostile_runner.EVENTS
    print(json.dumps(dict(count=count, read=read, slowest=slowest, wrong=wrong, events=events)))


if __name__ == "__main__":
    main()
