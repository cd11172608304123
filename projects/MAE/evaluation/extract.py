"""Features of all images of a source. Each part is saved as soon as it is computed.

A part always has the same batches, and so the same bits: on any number of processes, and after any
interruption.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any, Iterator

import numpy as np

from libai_ext.data.concat import Concat
from libai_ext.data.decode import BadImage
from libai_ext.data.fingerprint import fingerprint
from libai_ext.errors import ConfigError, DataError
from libai_ext.files.atomic import atomic_file
from projects.MAE.encoder import Encoder

# Images in a part, and in a batch.
PART, BATCH = 256, 32
_UNUSABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)


class Extraction:
    """A part holds ``features`` [n, ...] of the images with the numbers ``kept`` [n]; ``bad``, a
    sentence for each other image on what is wrong; and ``key``, a checksum of what they depend on.

    Args:
        source: the images.
        output: the ``.npz`` to write; its parts are in ``output.parts`` until all are there.
        options: arguments of :meth:`Encoder.features`: layer, pool, norm.

    Raises:
        ConfigError: that folder has parts of other weights, images or options.
    """

    def __init__(self, encoder: Encoder, source: Concat, output: str, options: dict[str, Any]):
        self.encoder, self.source, self.options = encoder, source, options
        self.output = Path(output)
        self.folder = Path(f"{output}.parts")
        self.key = _key(encoder, source, options)
        self.count = -(-len(source) // PART)
        for number in range(self.count):
            if self._path(number).exists():
                self._read(number, "key")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot make {self.folder}: {error.strerror}") from error

    def run(self, share: int = 0, shares: int = 1) -> Iterator[int]:
        """Compute the missing parts of this share; after each part, yields how many images all
        processes have done."""
        for number in range(share, self.count, shares):
            if not self._path(number).exists():
                self._compute(number)
            yield self.done()

    def done(self) -> int:
        """How many images the existing parts hold."""
        there = [number for number in range(self.count) if self._path(number).exists()]
        last = self.count - 1
        return len(there) * PART - (last in there) * (self.count * PART - len(self.source))

    def merge(self) -> tuple[list[int], list[str]]:
        """Write the output and remove the parts; returns the shape of the features, and a sentence
        on what is wrong with each bad image.

        Raises:
            DataError: all images are bad.
        """
        parts = [self._read(number, "kept", "bad") for number in range(self.count)]
        kept, bad = map(np.concatenate, zip(*parts))
        if not len(kept):
            raise DataError(f"none of {len(self.source):,} images can be read; {bad[0]}")
        labels, classes = self.source.labels[kept], self.source.classes
        labels[np.array([not name for name in classes])[labels]] = -1
        about = dict(self.options, weights=self.encoder.source.located)
        arrays = dict(
            names=np.array([self.source.name(int(index)) for index in kept]),
            labels=labels,
            classes=np.array(classes),
            unreadable=bad,
            about=np.array(json.dumps(about)),
        )
        shape = (len(kept), *self._row_shape())
        with atomic_file(self.output) as temporary, zipfile.ZipFile(temporary, "w") as archive:
            # One part at a time: all together may not fit into memory.
            with archive.open("features.npy", "w", force_zip64=True) as member:
                header = dict(descr="<f4", fortran_order=False, shape=shape)
                np.lib.format.write_array_header_1_0(member, header)
                for number in range(self.count):
                    member.write(self._read(number, "features")[0].tobytes())
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
        shutil.rmtree(self.folder)
        return list(shape), bad.tolist()

    def _compute(self, number: int) -> None:
        rows, kept, bad = [np.empty((0, *self._row_shape()), np.float32)], [], []
        end = min((number + 1) * PART, len(self.source))
        for start in range(number * PART, end, BATCH):
            images = []
            for index in range(start, min(start + BATCH, end)):
                try:
                    images.append(self.encoder.preprocess.of(self.source[index][0]))
                    kept.append(index)
                except BadImage as error:
                    bad.append(str(error))
            if images:
                rows.append(self.encoder.features(images, **self.options, batch_size=BATCH))
        arrays = dict(
            key=np.array(self.key),
            features=np.concatenate(rows),
            kept=np.array(kept, np.int64),
            bad=np.array(bad, "U"),
        )
        with atomic_file(self._path(number)) as temporary, open(temporary, "wb") as file:
            np.savez(file, **arrays)

    def _row_shape(self) -> tuple[int, ...]:
        rows, columns = self.encoder.grid
        tokens = (1 + rows * columns,) if self.options["pool"] == "tokens" else ()
        return (*tokens, self.encoder.width)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.npz"

    def _read(self, number: int, *names: str) -> list[np.ndarray]:
        path = self._path(number)
        try:
            with np.load(path, allow_pickle=False) as file:
                key, arrays = str(file["key"]), [file[name] for name in names]
        except _UNUSABLE as error:
            raise ConfigError(f"{path} cannot be read ({error}): remove it") from None
        if key != self.key:
            raise ConfigError(
                f"{self.folder} holds features by other weights, of other images or with other "
                "options: remove it, or give another output"
            )
        return arrays


def _key(encoder: Encoder, source: Concat, options: dict[str, Any]) -> str:
    """A text that differs if anything that the features depend on differs."""
    digest = hashlib.sha256()
    facts: list[Any] = [fingerprint(source), len(source), options, encoder.shape, PART, BATCH]
    facts += [dict(encoder.source.record.data), *encoder.preprocess[:3]]
    digest.update(json.dumps(facts, sort_keys=True).encode())
    for name, tensor in sorted(encoder.model.state_dict().items()):
        if not name.startswith("head"):  # features do not depend on the head; it may be untrained
            digest.update(name.encode())
            digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()[:32]
