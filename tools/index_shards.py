"""Write the indices of tar shards, to be put on a server beside them.

    .venv/bin/python tools/index_shards.py SHARD ...

SHARD is a file, or a pattern such as 'shards/train-{000000..000999}.tar'. Its index is SHARD.index:
where each image is, its class, and the checksum of the shard. A run that reads the shards by URL
needs no more than the indices to start; for a shard without one, it fetches the shard first.
"""

from __future__ import annotations

import argparse
from typing import Sequence

from tqdm import tqdm

from libai_ext.data.remote.index import write_beside
from libai_ext.data.tar_shards import expand_braces
from libai_ext.engine import cli as entry
from libai_ext.errors import DataError


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the indices, and print how many.

    Raises:
        DataError: a shard cannot be read, or its index not be written.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shards", nargs="+", metavar="SHARD")
    args = parser.parse_args(arguments)
    shards = [shard for pattern in args.shards for shard in expand_braces(pattern)]
    for shard in tqdm(shards, unit="shard", disable=None):
        try:
            write_beside(shard)
        except OSError as error:
            raise DataError(f"{error.filename or shard}: {error.strerror}") from error
    print(f"{len(shards):,} indices: {shards[0]}.index" + " ..." * (len(shards) > 1))


if __name__ == "__main__":
    entry.run(main)
