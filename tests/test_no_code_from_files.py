"""No file can make a program of the project run code: by the source, and by poisoned files."""

from __future__ import annotations

import ast
import builtins
import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import pytest
from data.made_sets import write_cifar10

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("libai_ext", "projects", "tools", "setup.py")

# What turns data into code or objects. A module stands for all that is in it.
DANGEROUS = {
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "_pickle", "cloudpickle", "dill"),
    *("joblib", "marshal", "shelve", "runpy", "code", "codeop", "pandas.read_pickle"),
    *("multiprocessing.connection", "multiprocessing.reduction", "libai.utils.checkpoint"),
    *("oneflow.load", "oneflow.framework.check_point_v2", "torch.load", "torch.jit"),
    *("numpy.load", "numpy.lib.format", "numpy.lib.npyio", "numpy.fromregex"),
    *("yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "yaml.Loader"),
    *("yaml.FullLoader", "yaml.UnsafeLoader", "yaml.add_constructor"),
    *("eval", "exec", "compile", "__import__", "importlib.import_module", "os.system", "os.popen"),
    *("PIL.Image.open", "imp", "ctypes.CDLL", "ctypes.cdll", "ctypes.PyDLL"),
}

BROADCAST = "rank 0 pickles, the other ranks of the job unpickle: no file is involved"
# (file, what) -> why it may stay.
ALLOWED = {
    ("libai_ext/kernels/loader.py", "ctypes.CDLL"): "the library that build.py vouches for",
    (
        "libai_ext/checkpoint/checkpointer.py",
        "libai.utils.checkpoint.Checkpointer",
    ): "load is replaced",
    ("libai_ext/config/targets.py", "importlib.import_module"): "of the packages on a fixed list",
    ("libai_ext/config/safe_yaml.py", "yaml.load"): "by a subclass of yaml.SafeLoader",
    ("libai_ext/data/decode.py", "PIL.Image.open"): "with a list of formats that run nothing",
    ("tools/benchmarks/plain_pillow.py", "PIL.Image.open"): "as torchvision does, to compare",
    ("libai_ext/data/tar_shards.py", "numpy.load"): "with allow_pickle=False",
    ("tools/benchmarks/checkpoint.py", "torch.load"): "of a file that it has made",
    ("tools/benchmarks/pytorch_training.py", "torch.load"): "with weights_only=True",
    ("tools/features.py", "numpy.load"): "with allow_pickle=False",
    ("projects/MAE/evaluation/extract.py", "numpy.load"): "with allow_pickle=False",
    ("tools/dev/fuzz/table.py", "importlib.import_module"): "of the modules on a fixed list",
    **{
        ("projects/MAE/evaluation/extract.py", f"numpy.lib.format{name}"): "to write"
        for name in ("", ".write_array", ".write_array_header_1_0")
    },
    **{
        ("libai_ext/data/channels.py", f"numpy.lib.format{name}"): "a header, by literal_eval"
        for name in ("", ".read_magic", ".read_array_header_1_0")
    },
    **{
        (f"libai_ext/{file}.py", "oneflow.framework.check_point_v2._broadcast_py_object"): BROADCAST
        for file in (
            "checkpoint/checkpointer",
            "data/classes",
            "engine/checkpointing",
            "engine/steps",
        )
    },
}


def names_of(tree: ast.AST) -> dict[str, str]:
    """What the names that a module imports stand for."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                whole = alias.name if alias.asname else alias.name.split(".")[0]
                names[alias.asname or whole] = whole
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return names


def dotted(node: ast.AST, names: dict[str, str]) -> str:
    """The full name of an expression such as np.load; nothing for any other."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id if hasattr(builtins, node.id) else "")
    if isinstance(node, ast.Attribute):
        base = dotted(node.value, names)
        return base and f"{base}.{node.attr}"
    return ""


def dangers(text: str) -> set[str]:
    """Dangerous names that a module uses or imports."""
    tree = ast.parse(text)
    names = names_of(tree)
    harmless = {
        node.func
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and dotted(node.func, names) == "ctypes.CDLL"
        and [ast.dump(value) for value in node.args] == ["Constant(value=None)"]
    }  # functions of the C library, which is loaded already
    found = {dotted(node, names) for node in ast.walk(tree) if node not in harmless}
    found |= set(names.values())
    return {
        name
        for name in found
        if any(name == danger or name.startswith(f"{danger}.") for danger in DANGEROUS)
    }


def sources() -> list[Path]:
    paths = [ROOT / name for name in SOURCES]
    files = [path for path in paths if path.is_file()]
    return sorted(files + [file for path in paths for file in path.rglob("*.py")])


@pytest.mark.parametrize(
    "text",
    [
        "import pickle as p\np.loads(b'')",
        "from pickle import Unpickler\nclass U(Unpickler): ...",
        "import oneflow as flow\nread = flow.load",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "from oneflow.framework import check_point_v2 as c\nc.load('x')",
        "def f():\n    import marshal",
        "import yaml\nyaml.load('', yaml.FullLoader)",
        "eval('1')",
        "from importlib import import_module",
        "import ctypes\nctypes.CDLL('x.so')",
        "import ctypes\nload = ctypes.CDLL\nload(None)",
    ],
)
def test_the_check_sees_each_way_to_write_it(text):
    assert dangers(text)


def test_no_source_turns_data_into_code():
    found = {
        (path.relative_to(ROOT).as_posix(), name)
        for path in sources()
        for name in dangers(path.read_text())
    }
    assert found == set(ALLOWED)


class Trap:
    """Makes a folder when it is unpickled by anyone who lets it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def archive(content: bytes) -> bytes:
    """A file as torch.save writes it."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        made.writestr("archive/data.pkl", content)
    return file.getvalue()


DIGITS = "projects/MAE/configs/mae_digits.py"
TRAIN = "projects.MAE.train_net"
VISUALIZE, CONVERT, KNN = "tools.visualize", "tools.convert", "tools.knn"
FEATURES = "tools.features"


@pytest.fixture(scope="module")
def outcomes(launch, digits, tmp_path_factory):
    """name -> how the command ended and its message; and the folder that no command may make."""
    tmp = tmp_path_factory.mktemp("poisoned")
    trap, run, last = tmp / "trap", tmp / "run", tmp / "run/model_final"
    options = [
        *(f"data.train=[{digits}/train]", f"data.test=[{digits}/test]", "model.depth=1"),
        *("train.train_iter=2", "train.warmup_iter=1", "train.train_micro_batch_size=8"),
        *("graph.enabled=False", "dataloader.train.num_workers=0", "train.ema.enabled=True"),
        *("dataloader.test.num_workers=0", "train.evaluation.enabled=False"),
    ]

    def train(*arguments, folder=run):
        return ["--config-file", DIGITS, *options, f"train.output_dir={folder}", *arguments]

    def pickled(protocol=4):
        return pickle.dumps({"protocol_version": 1, "data": {"model": Trap(trap)}}, protocol)

    write_cifar10(tmp)
    cifar = f"data.train=[cifar10:train:{tmp}]"
    steps = {"sound run": (TRAIN, train(), None, b"")}
    for part in ("model", "optimizer", "lr_scheduler", "ema"):
        steps[f"--resume, {part}"] = (
            *(TRAIN, train("--resume", "train.train_iter=2")),
            *(last / part / "pickled_data", pickled()),
        )
    poisons = {"folder": (last / "model/pickled_data", pickled(), run)}
    for name, content in (("zip", archive(pickled(2))), ("legacy", pickled(2))):
        poisons[name] = (tmp / f"{name}.pth", content, tmp / f"{name}.pth")
    steps["--eval-only"] = (TRAIN, train("--eval-only"), *poisons["folder"][:2])
    for name, (file, content, weights) in poisons.items():
        load = train(f"train.load_weight={weights}", "--eval-only", folder=tmp / "other")
        steps[f"load_weight, {name}"] = (TRAIN, load, file, content)
        steps[f"finetune, {name}"] = (
            TRAIN,
            [
                *("--config-file", "projects/MAE/configs/mae_digits_finetune.py", *options[:3]),
                *(f"finetune.path={weights}", f"train.output_dir={tmp / 'tuned'}", "--dry-run"),
            ],
            *(file, content),
        )
        features = [DIGITS, *options, f"train.load_weight={weights}"]
        steps[f"knn, {name}"] = (KNN, features, file, content)
        pictures = [str(weights), f"{digits}/test/0", "--output", str(tmp / "picture.png")]
        steps[f"visualize, {name}"] = (VISUALIZE, pictures, file, content)
        arrays = [str(weights), f"{digits}/test/0", "--output", str(tmp / "features.npz")]
        steps[f"features, {name}"] = (FEATURES, arrays, file, content)
        steps[f"convert, {name}"] = (CONVERT, [str(weights), f"{tmp}/{name}.out"], file, content)
        steps[f"inspect, {name}"] = (CONVERT, ["--inspect", str(weights)], file, content)
    for name, entry in (("pixels", "data_batch_1"), ("names", "batches.meta")):
        file = tmp / "cifar-10-batches-py" / entry
        dry = train(cifar, "--dry-run", folder=tmp / "cifar")
        steps[f"CIFAR, {name}"] = (TRAIN, dry, file, pickle.dumps({b"data": Trap(trap)}, 2))
    for name, text in (("object", "!!python/object/apply:os.mkdir"), ("name", "!!python/name:os")):
        file = tmp / "config.yaml"
        content = f"train: {text} ['{trap}']".encode()
        steps[f"config, {name}"] = (TRAIN, ["--config-file", str(file)], file, content)
    path = tmp / "steps.json"
    plain = [
        dict(program=program, arguments=arguments, file=file and str(file), content=content.hex())
        for program, arguments, file, content in steps.values()
    ]
    path.write_text(json.dumps(plain))
    out = launch.python("tests/poisoned_files_run.py", path)
    ends = [json.loads(line[8:]) for line in out.splitlines() if line.startswith("outcome ")]
    return dict(zip(steps, ends)), trap, out


def test_no_command_runs_what_a_file_names(outcomes):
    ends, trap, out = outcomes
    assert not trap.exists(), out
    assert ends.pop("sound run") == ["status", "0"], out
    inspected = {name: ends.pop(name)[0] for name in list(ends) if name.startswith("inspect")}
    assert set(inspected.values()) == {"status"}  # it shows what is there
    converted = {name: ends.pop(name) for name in list(ends) if name.startswith("convert")}
    assert set(map(tuple, converted.values())) == {("status", "2")}
    assert {name: end for name, end in ends.items() if end[0] != "refused"} == {}, out
