"""Tables of images as Hugging Face's datasets writes them, for the tests of their readers."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq

PAIR = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def features(names=None, image="image", label="label"):
    """The types of an image and a class; ``names`` of the classes."""
    types = {image: {"_type": "Image"}}
    if label:
        types[label] = {"names": names, "_type": "ClassLabel"}
    return types


def table(files, labels=None, names=None, image="image", label="label", as_struct=True):
    """A row for each file; ``names`` of classes make it one of Hugging Face."""
    rows = [{"bytes": data, "path": f"{k}.png"} for k, data in enumerate(files)]
    columns = {image: pa.array(rows, PAIR) if as_struct else pa.array(files, pa.binary())}
    if labels is not None:
        columns[label] = pa.array(labels)
    made = pa.table(columns)
    if names is None:
        return made
    info = {"info": {"features": features(names, image, label)}}
    return made.replace_schema_metadata({"huggingface": json.dumps(info)})


def write_parquet(path, made, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(made, path, **options)
    return str(path)


def write_arrow(path, made, rows=3, as_file=False, options=None):
    """A stream, as datasets writes, or a file of batches of ``rows`` rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = pa.ipc.new_file if as_file else pa.ipc.new_stream
    with pa.OSFile(str(path), "wb") as sink, new(sink, made.schema, options=options) as writer:
        for batch in made.to_batches(max_chunksize=rows):
            writer.write_batch(batch)
    return str(path)


def save_to_disk(folder, tables):
    """What ``Dataset.save_to_disk`` leaves."""
    names = [f"data-{k:05d}-of-{len(tables):05d}.arrow" for k in range(len(tables))]
    for name, made in zip(names, tables):
        write_arrow(folder / name, made)
    state = {
        "_data_files": [{"filename": name} for name in names],
        "_fingerprint": "3f2a",
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": "train",
    }
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")
    return str(folder)
