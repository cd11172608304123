"""Read the zip archives that `torch.save` writes, as views of a memory map.

Python's `zipfile` loads the whole directory before a limit can be set, and copies what it reads.
Nothing is extracted to disk.
"""

from __future__ import annotations

import mmap
import struct
import zlib
from dataclasses import dataclass
from typing import Iterator

from libai_ext.checkpoint.errors import CheckpointError
from libai_ext.checkpoint.tensors import MAX_GROWTH, MIN_GROWN

STORED, DEFLATED = 0, 8
ENCRYPTED = 0x1
MAX_ENTRIES = 100_000

END = struct.Struct("<4s4H2LH")
END_SIGNATURE = b"PK\x05\x06"
END64_LOCATOR = struct.Struct("<4sLQL")
END64_LOCATOR_SIGNATURE = b"PK\x06\x07"
END64 = struct.Struct("<4sQ2H2L4Q")
END64_SIGNATURE = b"PK\x06\x06"
CENTRAL = struct.Struct("<4s6H3L5H2L")
CENTRAL_SIGNATURE = b"PK\x01\x02"
LOCAL = struct.Struct("<4s5H3L2H")
LOCAL_SIGNATURE = b"PK\x03\x04"
MAX_COMMENT = 0xFFFF
IN_ZIP64_EXTRA = 0xFFFFFFFF
ZIP64_EXTRA = 1


@dataclass(frozen=True)
class Entry:
    """One file of the archive, as the central directory describes it."""

    name: str
    method: int
    crc: int
    compressed_size: int
    size: int
    header_offset: int


class ZipReader:
    """The entries of a zip archive in a memory map.

    Raises:
        CheckpointError: the archive is damaged, or uses what `torch.save` never writes.
    """

    def __init__(self, data: mmap.mmap):
        self._data = data
        self._view = memoryview(data)
        self._inflatable = max(MAX_GROWTH * len(data), MIN_GROWN)
        self.entries: dict[str, Entry] = {}
        try:
            for entry in self._central_directory():
                _check_name(entry.name)
                if entry.name in self.entries:
                    raise CheckpointError(f"the archive has two entries named {entry.name!r:.80}")
                self.entries[entry.name] = entry
            # Overlapping entries can multiply a file without compression.
            if sum(entry.compressed_size for entry in self.entries.values()) > len(data):
                raise CheckpointError("the zip entries are larger than the file")
        except (struct.error, OverflowError, UnicodeDecodeError):
            raise CheckpointError("the zip directory is damaged") from None

    def read(self, name: str) -> bytes | memoryview:
        """The bytes of an entry, checked against its checksum; a view if it is not compressed."""
        entry = self.entries.get(name)
        if entry is None:
            raise CheckpointError(f"the archive has no entry {name!r:.80}")
        try:
            content = self._content(entry)
        except (struct.error, OverflowError, UnicodeDecodeError, zlib.error):
            raise CheckpointError(f"the zip entry {name!r:.80} is damaged") from None
        if len(content) != entry.size:
            raise CheckpointError(
                f"the zip entry {name!r:.80} has {len(content)} bytes, not {entry.size}"
            )
        # After torch.serialization.set_crc32_options(False), PyTorch writes 0.
        if entry.crc not in (0, zlib.crc32(content)):
            raise CheckpointError(f"the zip entry {name!r:.80} does not match its checksum")
        return content

    def _content(self, entry: Entry) -> bytes | memoryview:
        header = LOCAL.unpack_from(self._data, entry.header_offset)
        signature, _, flags, method = header[:4]
        name_length, extra_length = header[-2:]
        name_start = entry.header_offset + LOCAL.size
        name = self._data[name_start : name_start + name_length].decode("utf-8")
        if signature != LOCAL_SIGNATURE or name != entry.name or method != entry.method:
            raise CheckpointError(f"the zip entry {entry.name!r:.80} contradicts the directory")
        if flags & ENCRYPTED:
            raise CheckpointError(f"the zip entry {entry.name!r:.80} is encrypted")
        start = name_start + name_length + extra_length
        packed = self._view[start : start + entry.compressed_size]
        if entry.method == STORED:
            return packed
        if entry.method != DEFLATED:
            raise CheckpointError(f"the zip entry {entry.name!r:.80} has method {entry.method}")
        if entry.size > self._inflatable:
            raise CheckpointError(
                f"the zip entry {entry.name!r:.80} would inflate to {entry.size:,} bytes"
            )
        self._inflatable -= entry.size
        # One byte more shows an entry that is larger than it says.
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, entry.size + 1)

    def _central_directory(self) -> Iterator[Entry]:
        count, size, offset = self._end_record()
        if count > MAX_ENTRIES or offset + size > len(self._data):
            raise CheckpointError(f"the zip directory announces {count} entries, {size} bytes")
        position = offset
        for _ in range(count):
            fields = CENTRAL.unpack_from(self._data, position)
            if fields[0] != CENTRAL_SIGNATURE:
                raise CheckpointError("the zip directory is damaged")
            method, crc, compressed_size, full_size = fields[4], *fields[7:10]
            name_length, extra_length, comment_length = fields[10:13]
            position += CENTRAL.size
            name = self._data[position : position + name_length].decode("utf-8")
            position += name_length
            extra = self._data[position : position + extra_length]
            position += extra_length + comment_length
            sizes = _zip64_sizes(extra, [full_size, compressed_size, fields[-1]])
            yield Entry(name, method, crc, sizes[1], sizes[0], sizes[2])

    def _end_record(self) -> tuple[int, int, int]:
        """Number of entries, size and offset of the central directory."""
        earliest = max(0, len(self._data) - END.size - MAX_COMMENT)
        position = self._data.rfind(END_SIGNATURE, earliest)
        if position < 0:
            raise CheckpointError("the zip archive is cut short: it has no directory")
        count, size, offset = END.unpack_from(self._data, position)[4:7]
        locator = position - END64_LOCATOR.size
        if locator >= 0:
            signature, _, end64, _ = END64_LOCATOR.unpack_from(self._data, locator)
            if signature == END64_LOCATOR_SIGNATURE:
                record = END64.unpack_from(self._data, end64)
                if record[0] != END64_SIGNATURE:
                    raise CheckpointError("the zip64 directory is damaged")
                count, size, offset = record[-3:]
        return count, size, offset


def _check_name(name: str) -> None:
    if name.startswith("/") or "\\" in name or "\0" in name or ".." in name.split("/"):
        raise CheckpointError(f"the archive has an entry with the path {name!r:.80}")


def _zip64_sizes(extra: bytes, sizes: list[int]) -> list[int]:
    """`sizes`; the zip64 extra field gives those that do not fit into 32 bits."""
    position = 0
    while position + 4 <= len(extra):
        tag, length = struct.unpack_from("<2H", extra, position)
        position += 4
        if tag == ZIP64_EXTRA:
            values = iter(struct.unpack_from(f"<{length // 8}Q", extra, position))
            try:
                return [next(values) if size == IN_ZIP64_EXTRA else size for size in sizes]
            except StopIteration:
                raise CheckpointError("a zip64 extra field is cut short") from None
        position += length
    return sizes
