"""Open the roots in ``data.train`` or ``data.test`` as one source."""

from __future__ import annotations

import os
from functools import partial
from typing import Any, Iterator, Protocol, Sequence

import numpy as np

from libai_ext.data.arrow_source import ArrowImages
from libai_ext.data.cifar import Cifar10, Cifar100
from libai_ext.data.concat import Concat
from libai_ext.data.image_folder import ImageFiles, ImageFolder
from libai_ext.data.listed import ListedImages
from libai_ext.data.lmdb_source import DATA_FILE, LmdbImages
from libai_ext.data.parquet_source import ParquetImages
from libai_ext.data.remote.shards import CACHE_GIB, RemoteTarShards
from libai_ext.data.retry import is_temporary, read_with_retry
from libai_ext.data.skip_unreadable import SkipUnreadable
from libai_ext.data.stl10 import Stl10
from libai_ext.data.tar_shards import TarShards
from libai_ext.data.walk import EXTENSIONS
from libai_ext.errors import DataError
from libai_ext.launch.exit_report import restarted

TABLES = {"parquet": ParquetImages, "arrow": ArrowImages}
NAMED = {"cifar10": Cifar10, "cifar100": Cifar100, "stl10": Stl10}


class Source(Protocol):
    """Labelled images by number. A config wraps a user's own source in
    :class:`libai_ext.data.skip_unreadable.SkipUnreadable`, which replaces unreadable images and
    numbers classes.

    Each process opens it once, and then forks data workers, which share its state. An open file has
    one position for all of them: read with ``os.pread``, or open it again if the process id has
    changed. No lock may be held during the fork. The order of the samples must be the same in every
    process, on every machine and at every start.

    Attributes:
        classes: names, by class number; a single empty name if there are no classes.
        labels: int64 [N], the class numbers of all samples, without reading images.
    """

    classes: Sequence[str]
    labels: np.ndarray

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """The decoded image and its class number. As ``data.mode`` says, it is a Pillow image,
        "RGB" or "L", or a :class:`libai_ext.data.channels.ChannelImage`.

        Raises:
            BadImage: this sample is no image; another one replaces it.
            DataError: the source itself cannot be used: the run ends.
            DataUnavailable: it cannot be read for now: the run saves and ends with status 74, and
                can be resumed.
        """
        ...

    def name(self, index: int) -> str:
        """The path or another name of a sample, for messages and ``predictions.csv``."""
        ...

    def identity(self) -> Iterator[bytes]:
        """Bytes that differ for other data, so that a resumed run notices; they do not depend on
        the folder. See :mod:`libai_ext.data.fingerprint`."""
        ...


def open_source(
    roots: str | Sequence[str],
    mode: str | int = "RGB",
    max_bad_share: float = 0.01,
    download: bool = False,
    max_pixels: int | None = None,
    draft_size: Sequence[int] | None = None,
    as_torchvision: bool = False,
    cache_dir: str | None = None,
    cache_gib: float = CACHE_GIB,
) -> SkipUnreadable:
    """Open all roots as one source that skips unreadable images.

    A root is one of

    - a folder ``root/class/image`` or ``root/image``;
    - a folder that holds the ``data.mdb`` of an LMDB;
    - tar shards: a path that ends in ``.tar``; braces name several, ``{000000..000999}``;
    - tar shards on a server, ``https://``, ``s3://`` and so on (:class:`RemoteTarShards`);
    - ``labels:FILE:FOLDER``: images of a folder with a list of their classes
      (:class:`ListedImages`);
    - ``parquet:PATH``, ``arrow:PATH`` or a path that ends in ``.parquet``: tables with a column of
      images (:mod:`libai_ext.data.table_columns`);
    - ``cifar10:SPLIT:FOLDER``, ``cifar100:SPLIT:FOLDER`` (train, test) or ``stl10:SPLIT:FOLDER``
      (train, test, unlabeled).

    Args:
        roots: in this order.
        mode, max_pixels, draft_size, as_torchvision: arguments of :class:`Decoder`.
        max_bad_share: see :class:`SkipUnreadable`.
        download: fetch CIFAR and STL-10 if they are missing.
        cache_dir, cache_gib: arguments of :class:`RemoteTarShards`.

    Raises:
        DataError: there is no root, or a root cannot be used.
        DataUnavailable: a root's disk or server did not come back.
    """
    decoding = dict(
        mode=mode,
        max_pixels=max_pixels,
        draft_size=draft_size,
        as_torchvision=as_torchvision,
    )
    roots = [roots] if isinstance(roots, str) else list(roots or [])
    # After a restart every error is retried: the roots were usable when the run began.
    retriable = (lambda error: True) if restarted() else is_temporary
    cache = dict(cache_dir=cache_dir, cache_gib=cache_gib)
    parts = [
        read_with_retry(partial(_open_root, root, download, decoding, cache), root, retriable)
        for root in map(str, roots)
    ]
    if not parts:
        raise DataError("no data is given: set data.train (data.test) to a list of folders")
    return SkipUnreadable(parts[0] if len(parts) == 1 else Concat(parts), max_bad_share)


def open_images(
    paths: Sequence[str], mode: str | int = "RGB", as_torchvision: bool = False
) -> Concat:
    """Image files and roots, in this order, as one source that raises :class:`BadImage` for a bad
    image: for programs that read each image once.

    Args:
        paths: image files; any other path is a root, see :func:`open_source`.
        mode, as_torchvision: arguments of :class:`Decoder`.

    Raises:
        DataError: see :func:`open_source`.
    """
    decoding: dict[str, Any] = dict(mode=mode, as_torchvision=as_torchvision)
    return Concat([
        ImageFiles([(path, 0)], [""], **decoding) if _is_image(path)
        else open_source(path, **decoding).source
        for path in map(str, paths)
    ])  # fmt: skip


def _is_image(path: str) -> bool:
    if path.endswith((".tar", ".parquet")) or "://" in path or os.path.isdir(path):
        return False
    return os.path.isfile(path) or path.lower().endswith(EXTENSIONS)


def _open_root(root: str, download: bool, decoding: dict, cache: dict):
    if "://" in root:
        return RemoteTarShards(root, **cache, **decoding)
    name, *rest = root.split(":", 2)
    if name in NAMED:
        if len(rest) != 2:
            raise DataError(f"{root}: expected {name}:SPLIT:FOLDER, as {name}:train:data/{name}")
        if not isinstance(decoding["mode"], str):
            raise DataError(f"{name} has images of data.mode RGB or L, not {decoding['mode']}")
        split, folder = rest
        return NAMED[name](folder, split, download, decoding["mode"])
    if name == "labels":
        if len(rest) != 2:
            raise DataError(f"{root}: expected labels:FILE:FOLDER, as labels:val.txt:data/val")
        return ListedImages(*rest, **decoding)
    if name in TABLES and rest:
        return TABLES[name](root.partition(":")[2], **decoding)
    if root.partition("?")[0].endswith(".parquet"):
        return ParquetImages(root, **decoding)
    if root.endswith(".tar"):
        return TarShards(root, **decoding)
    if os.path.isfile(os.path.join(root, DATA_FILE)):
        return LmdbImages(root, **decoding)
    return ImageFolder([root], **decoding)
