"""Files that try to run code, to exhaust memory or time, or to confuse a reader.

Every function yields (name, content). Content that would run something touches a sentinel file.
"""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
import zlib

from libai_ext.checkpoint.pickle_writer import global_name, integer, integers, text
from libai_ext.checkpoint.torch_file import LEGACY_MAGIC, LEGACY_PROTOCOL

# (module, name, argument); SENTINEL is replaced by the path of the file that must not appear.
CALLS = [
    ("os", "system", "touch SENTINEL"),
    ("posix", "system", "touch SENTINEL"),
    ("os", "popen", "touch SENTINEL"),
    ("os", "mkdir", "SENTINEL"),
    ("os", "execlp", "touch"),
    ("subprocess", "Popen", "touch SENTINEL"),
    ("subprocess", "getoutput", "touch SENTINEL"),
    ("subprocess", "check_call", "touch SENTINEL"),
    ("builtins", "eval", "open('SENTINEL', 'w')"),
    ("builtins", "exec", "open('SENTINEL', 'w')"),
    ("__builtin__", "eval", "open('SENTINEL', 'w')"),
    ("__builtin__", "execfile", "SENTINEL"),
    ("builtins", "compile", "open('SENTINEL', 'w')"),
    ("builtins", "__import__", "antigravity"),
    ("builtins", "open", "SENTINEL"),
    ("builtins", "getattr", "os.system"),
    ("builtins", "input", "SENTINEL"),
    ("builtins", "breakpoint", ""),
    ("io", "open", "SENTINEL"),
    ("importlib", "import_module", "antigravity"),
    ("runpy", "run_path", "SENTINEL"),
    ("runpy", "_run_code", "open('SENTINEL', 'w')"),
    ("pty", "spawn", "touch SENTINEL"),
    ("code", "interact", ""),
    ("shutil", "rmtree", "SENTINEL"),
    ("pathlib", "Path.touch", "SENTINEL"),
    ("pickle", "loads", "cos\nsystem\n(S'touch SENTINEL'\ntR."),
    ("_pickle", "loads", "cos\nsystem\n(S'touch SENTINEL'\ntR."),
    ("marshal", "loads", "c"),
    ("types", "FunctionType", "c"),
    ("functools", "partial", "os.system"),
    ("operator", "attrgetter", "system"),
    ("ctypes", "CDLL", "libc.so.6"),
    ("socket", "create_connection", "localhost"),
    ("webbrowser", "open", "http://localhost"),
    ("timeit", "timeit", "open('SENTINEL', 'w')"),
    ("cProfile", "run", "open('SENTINEL', 'w')"),
    ("platform", "popen", "touch SENTINEL"),
    ("numpy", "load", "SENTINEL"),
    ("numpy.testing._private.utils", "runstring", "open('SENTINEL', 'w')"),
    ("torch", "load", "SENTINEL"),
    ("torch.hub", "load", "SENTINEL"),
    ("torch.storage", "_load_from_bytes", "c"),
    ("torch._utils", "_rebuild_sparse_tensor", "c"),
    ("collections", "OrderedDict.__reduce__", "c"),
    ("libai_ext.checkpoint.torch_file", "load", "SENTINEL"),
]

# One name is enough to recognise a style.
NAME = "blocks.0.norm1.weight"


def zip_file(pickle_bytes, storages=None, folder="archive", extra=(), method=zipfile.ZIP_STORED):
    """A torch.save archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr(f"{folder}/data.pkl", pickle_bytes)
        for key, content in (storages or {}).items():
            archive.writestr(f"{folder}/data/{key}", content)
        for name, content in extra:
            archive.writestr(name, content)
    return buffer.getvalue()


def legacy_file(pickle_bytes, keys=(), tail=b"", system=None):
    """A file of the format from before PyTorch 1.6."""
    system = {"little_endian": True} if system is None else system
    start = (pickle.dumps(value, 2) for value in (LEGACY_MAGIC, LEGACY_PROTOCOL, system))
    return b"".join(start) + pickle_bytes + pickle.dumps(list(keys), 2) + tail


def tensor(numel=4, offset=0, size=(2, 2), stride=(2, 1), key="0", storage="FloatStorage"):
    """Opcodes of one tensor; numbers may be any opcodes (bytes)."""

    def numbers(values):
        return values if isinstance(values, bytes) else integers(values)

    def number(value):
        return value if isinstance(value, bytes) else integer(value)

    persistent = text("storage") + global_name("torch", storage) + text(key) + text("cpu")
    return (
        global_name("torch._utils", "_rebuild_tensor_v2") + b"((" + persistent + number(numel)
        + b"tQ" + number(offset) + numbers(size) + numbers(stride)
        + b"\x89" + global_name("collections", "OrderedDict") + b")RtR"
    )  # fmt: skip


def state_dict(value):
    """A pickle of {NAME: value}: a checkpoint that is read when the value is a sound tensor."""
    return b"\x80\x02}" + text(NAME) + value + b"s."


def calls(sentinel):
    """Every opcode that calls, in every place where torch.load would unpickle."""
    global_name("functools", "partial")
    for index, (module, name, argument) in enumerate(CALLS):
        function = global_name(module, name)
        argument = text(argument.replace("SENTINEL", sentinel))
        forms = {
            "reduce": function + argument + b"\x85R",
            "newobj": function + argument + b"\x85\x81",
            "newobj_ex": function + argument + b"\x85}\x92",
            "obj": b"(" + function + argument + b"o",
            "stack_global": text(module) + text(name) + b"\x93" + argument + b"\x85R",
            "build": function + b")R}" + text("__reduce__") + argument + b"sb",
            "nested": global_name("functools", "partial")
            + function
            + b"\x85R"
            + argument
            + b"\x85R",
            "text": f"c{module}\n{name}\n(S'{sentinel}'\ntR".encode(),
        }
        form = list(forms)[index % len(forms)]
        value = forms[form]
        yield f"call_{module}_{name}_{form}_zip", zip_file(state_dict(value))
        yield f"call_{module}_{name}_reduce_top", zip_file(b"\x80\x02" + forms["reduce"] + b".")
        yield f"call_{module}_{name}_{form}_legacy", legacy_file(state_dict(value))
    function = global_name("os", "system") + text(f"touch {sentinel}") + b"\x85"
    yield "call_raw", b"\x80\x02" + function + b"R."
    yield "call_raw_text", f"cos\nsystem\n(S'touch {sentinel}'\ntR.".encode()
    yield "call_in_legacy_magic", b"\x80\x02" + function + b"R." + legacy_file(b"}.")
    yield "call_in_legacy_system", legacy_file(b"}.", system=b"")[:40] + function + b"R."
    yield "call_as_persistent_id", zip_file(b"\x80\x02" + function + b"RQ.")
    yield (
        "call_as_storage_type",
        zip_file(
            b"\x80\x02(" + text("storage") + function + b"R" + text("0") + text("cpu") + b"K\4tQ."
        ),
    )
    yield "call_as_dictionary_key", zip_file(b"\x80\x02}" + function + b"RK\1s.")


def bombs():
    """Pickles that cost more than they seem."""
    doubled_tuple = b")" + b"q\x00h\x00\x86" * 1 + b"".join(
        struct.pack("<BIBI", ord("r"), i, ord("j"), i) + b"\x86" for i in range(1, 64)
    )  # fmt: skip
    doubled_list = b"]" + b"".join(
        struct.pack("<BI", ord("r"), i) + b"0](" + struct.pack("<BIBI", 106, i, 106, i) + b"e"
        for i in range(64)
    )
    many = b"(" + b"K\1" * 100_000 + b"t"
    pairs = b"](" + b"".join(text(str(i)) + b"K\1\x86" for i in range(20_000)) + b"e"
    ordered = global_name("collections", "OrderedDict")
    long_text = text("x" * 1_000_000)
    pickles = {
        "tuple_doubled_64_times": doubled_tuple + b".",
        "tuple_doubled_as_key": b"}" + doubled_tuple + b"K\1s.",
        "tuple_doubled_in_size": tensor(size=doubled_tuple) + b".",
        "tuple_doubled_as_persistent_id": doubled_tuple + b"Q.",
        "tuple_doubled_as_storage_kind": b"(" + doubled_tuple + b"K\1K\1K\1K\1tQ.",
        "list_doubled_64_times": doubled_list + b".",
        "list_in_itself": b"]q\x00h\x00a.",
        "dict_in_itself": b"}q\x00" + text("model") + b"h\x00s.",
        "lists_100000_deep": b"]" * 100_000 + b"a" * 99_999 + b".",
        "tuples_100000_deep": b")" + b"\x85" * 100_000 + b".",
        "dicts_50000_deep": (b"}" + text("model")) * 50_000 + b"N" + b"s" * 50_000 + b".",
        "placeholders_50000_deep": b"cos\nsystem\n" * 50_000 + b")" + b"R\x85" * 50_000 + b"0.",
        "marks_million": b"(" * 1_000_000,
        "opcodes_two_million": b"N0" * 1_000_000 + b".",
        "dicts_million": b"(" + b"}" * 1_000_000 + b"t.",
        "sets_million": b"(" + b"\x8f" * 1_000_000 + b"t.",
        "globals_200000": b"(" + b"cos\nsystem\n" * 200_000 + b"t.",
        "memo_index_maximal": b"Nr\xff\xff\xff\xff.",
        "memo_indices_spread": b"N" + b"".join(
            b"r" + struct.pack("<I", i * 65_521 % 2**32) for i in range(290_000)
        ) + b".",
        "text_encoded_100000_times": long_text + b"q\x00(" + (
            global_name("_codecs", "encode") + b"h\x00" + text("latin1") + b"\x86R"
        ) * 10_000 + b"t.",
        "tuple_copied_by_size": many + b"q\x00(" + (
            global_name("torch", "Size") + b"h\x00\x85R"
        ) * 10_000 + b"t.",
        "pairs_copied_by_ordered_dict": pairs + b"q\x00("
        + (ordered + b"h\x00\x85R") * 5_000 + b"t.",
        "items_copied_by_extend": b"](" + b"]" * 100_000 + b"e" * 2 + b".",
        "keys_that_collide": b"}(" + b"".join(
            integer(i * (2**61 - 1)) + b"N" for i in range(60_000)
        ) + b"u.",
        "integer_of_2GB": b"\x8b\xff\xff\xff\x7f.",
        "integer_of_negative_size": b"\x8b\xff\xff\xff\xff.",
        "integer_of_a_megabyte": b"\x8b" + struct.pack("<I", 1 << 20) + b"\1" * (1 << 20) + b".",
        "integer_of_million_digits": b"I" + b"9" * 1_000_000 + b"\n.",
        "long_of_million_digits": b"L" + b"9" * 1_000_000 + b"L\n.",
        "text_of_4GB": b"X\xff\xff\xff\xff.",
        "text_of_16EB": b"\x8d" + b"\xff" * 8 + b".",
        "text_of_9EB": b"\x8d" + b"\xff" * 7 + b"\x7f.",
        "bytes_of_4GB": b"B\xff\xff\xff\xff.",
        "bytes_of_16EB": b"\x8e" + b"\xff" * 8 + b".",
        "bytearray_of_16EB": b"\x96" + b"\xff" * 8 + b".",
        "text_invalid": b"X\2\0\0\0\xff\xfe.",
        "frame_of_16EB": b"\x80\x04\x95" + b"\xff" * 8 + b"N.",
        "global_without_end": b"c" + b"a" * 1_000_000,
        "extension": b"\x82\x01)R.",
        "extension_4": b"\x84\xff\xff\xff\x7f)R.",
        "out_of_band_buffer": b"\x97\x98.",
        "protocol_255": b"\x80\xff\xff.",
        "unknown_opcode": b"\xff.",
        "empty_stack": b".",
        "pop_empty": b"0.",
        "mark_missing": b"N1.",
        "tuple_without_mark": b"Nt.",
        "memo_missing": b"h\x07.",
        "memoize_nothing": b"\x94.",
        "append_to_none": b"NNa.",
        "append_to_dict": b"}Na.",
        "append_to_global": b"cos\nsystem\nNa.",
        "setitem_of_list": b"]NNs.",
        "setitems_odd": b"}(NNNu.",
        "setitem_of_tensor": tensor() + b"NNs.",
        "build_none": b"N}b.",
        "build_global": b"cos\nsystem\n}b.",
        "build_tensor": tensor() + b"}b.",
        "reduce_text": text("os.system") + b")R.",
        "reduce_without_tuple": b"cos\nsystem\nNR.",
        "stack_global_of_numbers": b"K\1K\2\x93.",
        "persistent_number": b"K\1Q.",
        "persistent_empty": b")Q.",
        "persistent_module": b"(" + text("module") + b"tQ.",
        "persistent_unknown": b"(" + text("file") + text("/etc/passwd") + b"tQ.",
        "ordered_dict_of_number": ordered + b"K\1\x85R.",
        "ordered_dict_of_text": ordered + text("ab") + b"\x85R.",
        "encode_to_codec": global_name("_codecs", "encode") + text("a") + text("zip") + b"\x86R.",
        "state_dict_of_numbers": b"}K\1K\2s.",
        "state_dict_of_text": b"}" + text(NAME) + text("x") + b"s.",
        "list_of_tensors": b"](" + tensor() + b"e.",
        "only_none": b"N.",
    }  # fmt: skip
    for name, content in pickles.items():
        yield f"bomb_{name}", zip_file(b"\x80\x02" + content, {"0": bytes(16)})
        if len(content) < 100_000:
            tail = struct.pack("<q", 4) + bytes(16)
            yield f"bomb_{name}_legacy", legacy_file(b"\x80\x02" + content, ["0"], tail)


def tensors():
    """Tensors that reach outside their storage, or declare more than there is."""
    infinity, negative = b"\x8a\x0a" + b"\xff" * 9 + b"\x7f", b"J\xff\xff\xff\xff"
    cases = {
        "offset_beyond": tensor(offset=1),
        "offset_huge": tensor(offset=2**62),
        "offset_beyond_64_bits": tensor(offset=infinity),
        "offset_negative": tensor(offset=negative),
        "offset_text": tensor(offset=text("0")),
        "stride_beyond": tensor(stride=(3, 1)),
        "stride_huge": tensor(stride=(2**62, 1)),
        "stride_negative": tensor(stride=b"(" + negative + b"K\1t"),
        "stride_missing": tensor(stride=(1,)),
        "size_beyond": tensor(size=(3, 2)),
        "size_negative": tensor(size=b"(" + negative + b"K\2t"),
        "size_float": tensor(size=b"(G" + struct.pack(">d", 2.0) + b"K\2t"),
        "size_bool": tensor(size=b"(\x88K\2t"),
        "size_list": tensor(size=b"](K\2K\2e"),
        "expanded_to_terabytes": tensor(size=(2**40, 1), stride=(0, 0)),
        "expanded_in_10000_dimensions": tensor(size=(1,) * 10_000, stride=(1,) * 10_000),
        "expanded_in_60_dimensions": tensor(size=(2,) * 60, stride=(0,) * 60),
        "empty_but_huge": tensor(size=(0, 2**62), stride=(1, 1)),
        "storage_larger_than_file": tensor(numel=2**40, size=(2**40, 1), stride=(1, 1)),
        "storage_smaller_than_file": tensor(numel=3, size=(1,), stride=(1,)),
        "storage_negative": tensor(numel=negative),
        "storage_beyond_64_bits": tensor(numel=infinity),
        "storage_missing": tensor(key="7"),
        "storage_outside": tensor(key="../../../../etc/passwd"),
        "storage_absolute": tensor(key="/etc/passwd"),
        "storage_of_objects": tensor(storage="ObjectStorage"),
        "storage_complex": tensor(storage="ComplexFloatStorage"),
        "storage_described_twice": b"(" + tensor() + tensor(storage="HalfStorage") + b"t",
        "storage_is_text": global_name("torch._utils", "_rebuild_tensor_v2")
        + b"(" + text("0") + integer(0) + b")" + b")" + b"tR",
        "without_arguments": global_name("torch._utils", "_rebuild_tensor_v2") + b")R",
        "parameter_of_nothing": global_name("torch._utils", "_rebuild_parameter") + b"N\x85R",
        "parameter_without_arguments": global_name("torch._utils", "_rebuild_parameter") + b")R",
    }  # fmt: skip
    for name, value in cases.items():
        yield f"tensor_{name}", zip_file(state_dict(value), {"0": bytes(16)})
        tail = struct.pack("<q", 4) + bytes(16)
        yield f"tensor_{name}_legacy", legacy_file(state_dict(value), ["0"], tail)


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
