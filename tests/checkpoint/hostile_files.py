"""Archives and headers that lie, and the whole corpus of hostile files.

Every function yields (name, content).
"""

from __future__ import annotations

import json
import struct
import zipfile
import zlib

from hostile_parts import NAME, legacy_file, state_dict, tensor, zip_file
from hostile_pickles import bombs, calls, tensors


def archives():
    """Zip archives that lie, and legacy files cut short."""
    good_pickle = state_dict(tensor())
    good = zip_file(good_pickle, {"0": b"0123456789abcdef"})
    paths = ("../evil", "/etc/evil", "archive/../../evil", "a\\..\\evil", "..", "evil/..")
    for number, path in enumerate(paths):
        yield f"zip_path_{number}", zip_file(good_pickle, {"0": bytes(16)}, extra=[(path, b"x")])
    two = zip_file(good_pickle, {"0": bytes(16)}, extra=[("other/data.pkl", good_pickle)])
    yield "zip_two_pickles", two
    yield "zip_duplicate", two.replace(b"other/data.pkl", b"archive/data/0")
    yield "zip_no_pickle", good.replace(b"data.pkl", b"data.txt")
    yield "zip_script", zip_file(good_pickle, extra=[("archive/constants.pkl", b"N.")])
    yield (
        "zip_big_endian",
        zip_file(good_pickle, {"0": bytes(16)}, extra=[("archive/byteorder", b"big")]),
    )
    central, end = good.find(b"PK\1\2"), good.find(b"PK\5\6")
    patches = {
        "encrypted": (6, b"\x01\x00"),
        "local_method": (8, b"\x0c\x00"),
        "local_name": (30, b"X"),
        "local_name_length": (26, b"\xff\xff"),
        "central_method": (central + 10, b"\x0c\x00"),
        "central_crc": (central + 16, b"\x01\x02\x03\x04"),
        "central_compressed_size": (central + 20, b"\xfe\xff\xff\x7f"),
        "central_size": (central + 24, b"\xfe\xff\xff\x7f"),
        "central_zip64_without_extra": (central + 24, b"\xff" * 4),
        "central_name_length": (central + 28, b"\xff\xff"),
        "central_extra_length": (central + 30, b"\xff\xff"),
        "central_header_offset": (central + 42, b"\xf0\xff\xff\x7f"),
        "central_signature": (central, b"XXXX"),
        "central_name_not_text": (central + 46, b"\xff\xfe"),
        "end_count": (end + 10, b"\xff\xff"),
        "end_size": (end + 12, b"\xff\xff\xff\x7f"),
        "end_offset": (end + 16, b"\xff\xff\xff\x7f"),
        "end_offset_wrong": (end + 16, b"\x00\x00\x00\x00"),
        "end_signature": (end, b"XXXX"),
    }
    for name, (position, patch) in patches.items():
        yield f"zip_{name}", good[:position] + patch + good[position + len(patch) :]
    record = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 2**40, 2**40, 2**40, 0)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, end, 1)
    yield "zip64_count", good[:end] + record + locator + good[end:]
    yield "zip64_nowhere", good[:end] + struct.pack("<4sLQL", b"PK\6\7", 0, 2**62, 1) + good[end:]
    zeros = bytes(400 << 20)
    size = len(zeros) // 4
    bomb = tensor(numel=size, size=(size,), stride=(1,))
    yield "zip_inflates", zip_file(state_dict(bomb), {"0": zeros}, method=zipfile.ZIP_DEFLATED)
    yield "zip_pickle_inflates", zip_file(zeros, method=zipfile.ZIP_DEFLATED)
    lying = bytearray(zip_file(good_pickle, {"0": bytes(16)}, method=zipfile.ZIP_DEFLATED))
    packed = zlib.compress(bytes(16), 9)[2:-4]
    position = lying.find(packed, lying.find(b"archive/data/0"))
    lying[position : position + len(packed)] = b"\xff" * len(packed)
    yield "zip_deflate_damaged", bytes(lying)
    for step in range(12):
        yield f"zip_cut_{step}", good[: 4 + (len(good) - 5) * step // 11]
    for bit in range(40):
        # In the pickle or the tensor: both lie under a checksum.
        start, length = (good.find(good_pickle), len(good_pickle)) if bit % 2 else (
            good.find(b"0123456789abcdef"), 16
        )  # fmt: skip
        position = start + length * bit // 40
        flipped = bytes([good[position] ^ (1 << bit % 8)])
        yield f"zip_bit_{bit}", good[:position] + flipped + good[position + 1 :]
    tail = struct.pack("<q", 4) + bytes(16)
    whole = legacy_file(good_pickle, ["0"], tail)
    for step in range(12):
        yield f"legacy_cut_{step}", whole[: 1 + (len(whole) - 2) * step // 11]
    yield "legacy_size", legacy_file(good_pickle, ["0"], struct.pack("<q", 2**62) + bytes(16))
    yield "legacy_size_negative", legacy_file(good_pickle, ["0"], struct.pack("<q", -1) + bytes(16))
    yield "legacy_no_keys", legacy_file(good_pickle, [], tail)
    yield "legacy_other_keys", legacy_file(good_pickle, ["1"], tail)
    yield "legacy_double_keys", legacy_file(good_pickle, ["0", "0"], tail * 2)
    yield "legacy_numeric_keys", legacy_file(good_pickle, [0], tail)
    yield "legacy_big_endian", legacy_file(good_pickle, ["0"], tail, {"little_endian": False})
    yield "legacy_no_system", legacy_file(good_pickle, ["0"], tail, [])


def safetensors():
    """Headers that lie."""

    def file(header, data=bytes(16), length=None):
        encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
        return struct.pack("<Q", len(encoded) if length is None else length) + encoded + data

    entry = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
    cases = {
        "length_huge": file({NAME: entry}, length=2**63),
        "length_beyond": file({NAME: entry}, length=10_000),
        "length_short": file({NAME: entry}, length=10),
        "not_json": file(b"{" * 64),
        "nested": file(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
        "list": file(b"{[]}"),
        "offsets_beyond": file({NAME: {**entry, "data_offsets": [0, 64], "shape": [16]}}),
        "offsets_reversed": file({NAME: {**entry, "data_offsets": [16, 0]}}),
        "offsets_negative": file({NAME: {**entry, "data_offsets": [-16, 0]}}),
        "overlap": file({NAME: entry, "norm.weight": entry}),
        "hole": file({NAME: {**entry, "shape": [2], "data_offsets": [8, 16]}}),
        "shape_huge": file({NAME: {**entry, "shape": [2**62, 2**62]}}),
        "shape_negative": file({NAME: {**entry, "shape": [-4]}}),
        "shape_wrong": file({NAME: {**entry, "shape": [5]}}),
        "type_unknown": file({NAME: {**entry, "dtype": "F99"}}),
        "type_not_read": file({NAME: {**entry, "dtype": "F8_E4M3", "shape": [16]}}),
        "dimensions": file({NAME: {**entry, "shape": [1] * 1000 + [4]}}),
        "cut": file({NAME: entry})[:-4],
        "no_entry": file({NAME: 1}),
        "no_style": file({"x": entry}),
    }
    for name, content in cases.items():
        yield f"safetensors_{name}", content


def all_files(sentinel):
    """The whole corpus."""
    for family in (calls(sentinel), bombs(), tensors(), archives(), safetensors()):
        yield from family
