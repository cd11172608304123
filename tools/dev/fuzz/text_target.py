"""Small files of text: the first byte of an input chooses the reader of the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Iterator

from guard import Target

from libai_ext.checkpoint import checkpointer, manifest, record
from libai_ext.data import classes, listed
from libai_ext.engine import run_folder
from libai_ext.errors import UserError
from projects.MAE.weights import foreign
from projects.MAE.weights.record import of_run_config, parse


def _record(folder: Path) -> Any:
    found = record.read(str(folder))
    return parse({} if found is None else found, str(folder / record.RECORD))


# Name of a file, a valid content, and a function that reads it in a folder.
READERS = (
    ("labels.csv", b"ImageId,PredictionString\nval_1,n01 1 2 3 4\nval_2,n02 1 2 3 4\n",
     lambda folder: listed._read(str(folder / "labels.csv"))),
    ("labels.txt", b"\xef\xbb\xbfval_1.JPEG 65\nval 2.JPEG 970\n",
     lambda folder: listed._read(str(folder / "labels.txt"))),
    ("names.txt", b"cat\n  dog\n\n", lambda folder: classes.read_names(str(folder / "names.txt"))),
    ("record.json", b'{"version": 1, "model": {"img_size": [8, 8], "mlp_ratio": 4.0, "pooling": '
     b'"cls"}, "data": {"mode": "L", "mean": [0.5], "transform": [{}]}, "classes": ["a"]}',
     _record),
    ("config.yaml", b"model: {arch: vit_base_patch16, img_size: 224, mask_ratio: 0.75}\n"
     b"data: {mean: [0.5, 1], mode: L}\n",
     lambda folder: of_run_config(str(folder / "config.yaml"))),
    ("progress.json", b'{"iteration": 5, "best": null, "settings": {}}',
     lambda folder: checkpointer.read_progress(str(folder))),
    ("metrics.jsonl", b'{"iteration": 1, "total_loss": 0.5, "lr": NaN}\n{"iteration": 2}\n',
     lambda folder: run_folder.read_metrics(str(folder))),
    ("manifest", b"00000000 0 empty\n", manifest.verify),
    ("config.json", b'{"image_size": [8, 8], "num_channels": 3, "hidden_size": 8, "id2label": {"0":'
     b' "a"}, "layer_norm_eps": 1e-6, "mask_ratio": 0.75, "norm_pix_loss": true}',
     lambda folder: foreign.huggingface(str(folder))),
    ("config.json", b'{"pretrained_cfg": {"input_size": [3, 8, 8], "mean": [0.5], "std": [1]}, '
     b'"model_args": {"img_size": 8, "num_heads": 3}}',
     lambda folder: foreign.timm(str(folder))),
)  # fmt: skip


def _lay(path: Path, data: bytes) -> None:
    for number in range(len(READERS)):
        (path / str(number)).mkdir(parents=True, exist_ok=True)
        (path / str(number) / "empty").touch()
    number = data[0] % len(READERS) if data else 0
    (path / str(number) / READERS[number][0]).write_bytes(data[1:])
    (path / "number").write_text(str(number))


def _read(path: Path) -> Any:
    number = int((path / "number").read_text())
    return READERS[number][2](path / str(number))


def _seeds(folder: Path) -> Iterator[bytes]:
    for number, (_, sound, _) in enumerate(READERS):
        yield bytes([number]) + sound


TEXTS = Target(
    name="texts",
    seeds=_seeds,
    read=_read,
    errors=(UserError,),
    lay=_lay,
    words=(
        b'"iteration"', b'"model"', b'"data"', b'"classes"', b'"version"', b"null", b"true", b"NaN",
        b"Infinity", b"-Infinity", b"1e999", b"[[[[[[[[", b'{"a":' * 8, b"9" * 400, b"\\ud800",
        b"\0", b"\r", b'"', b"\t", b",", b"\xef\xbb\xbf", b"\xff", b"&a [*a]", b"2001-99-99",
        b"0b_", b"!!binary x", b"!!set {a}", b"? ", b"<<: [1]", b"\xe2\x80\xa8",
    ),
)  # fmt: skip

TARGETS = (TEXTS,)
