"""Pickles that try to run code, to exhaust memory or time, or to reach outside their file.

Every function yields (name, content). Content that would run something touches a sentinel file.
"""

from __future__ import annotations

import struct
import zipfile

from hostile_parts import NAME, legacy_file, state_dict, tensor, zip_file

from libai_ext.checkpoint.pickle_writer import global_name, integer, text

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


def grown():
    """Many names for few bytes: 3.3 GB as soon as each is copied."""
    large = tensor(size=(2**20,), stride=(0,))
    names = [text(f"blocks.{number}.norm1.weight") for number in range(800)]
    apart = b"".join(name + large for name in names)
    together = names[0] + large + b"q\x00" + b"".join(name + b"h\x00" for name in names[1:])
    for name, items in (("tensors_expanded", apart), ("tensor_of_800_names", together)):
        content = b"\x80\x02}(" + items + b"u."
        yield name, zip_file(content, {"0": bytes(16)}, method=zipfile.ZIP_DEFLATED)
        yield f"legacy_{name}", legacy_file(content, ["0"], struct.pack("<q", 4) + bytes(16))


def bombs():
    """Pickles that cost more than they seem."""
    yield from grown()
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
