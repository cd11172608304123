"""What real folders hold beside the images: skipped by name and number, or refused."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import tempfile
from pathlib import Path

import numpy as np
import pytest
from image_files import encode, pixels

from libai_ext.data.decode import BadImage
from libai_ext.data.image_folder import ImageFolder
from libai_ext.data.sources import open_source
from libai_ext.errors import DataError


def fill(root: Path, *names: str) -> Path:
    """Files of these names; those of images hold one, of a seed by their place."""
    for seed, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(pixels(seed)) if name.lower().endswith("png") else b"text")
    return root


def relative(folder: ImageFolder) -> list[tuple[str, str]]:
    """(path below the root, class) of the samples."""
    root = folder.roots[0]
    return [(os.path.relpath(path, root), folder.classes[i]) for path, i in folder.samples]


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.WARNING)
    return caplog


CLASSES = ("ant/1.png", "ant/2.PNG", "bee/3.png")
FOUND = [("ant/1.png", "ant"), ("ant/2.PNG", "ant"), ("bee/3.png", "bee")]


@pytest.mark.parametrize(
    "beside, skipped",
    [
        (".ipynb_checkpoints/1.png", "1 hidden (.ipynb_checkpoints)"),
        (".thumbnails/1.png", "1 hidden (.thumbnails)"),
        ("ant/.ipynb_checkpoints/1-checkpoint.png", "1 hidden (.ipynb_checkpoints)"),
        ("__MACOSX/ant/._1.png", "1 hidden (__MACOSX)"),
        ("ant/@eaDir/1.png/thumb.png", "1 hidden (@eaDir)"),
        ("ant/._1.png", "1 hidden (._1.png)"),
        ("ant/notes.txt", "1 files that are not images (.txt)"),
        ("labels.csv", "1 files that are not images (.csv)"),
        ("bee/0004", "1 files that are not images (no extension)"),
    ],
)
def test_what_is_no_data_is_skipped_by_name(tmp_path, log, beside, skipped):
    fill(tmp_path, *CLASSES, beside)
    folder = ImageFolder([str(tmp_path)])
    assert (folder.classes, relative(folder)) == (["ant", "bee"], FOUND)
    assert log.messages == [f"data folder {tmp_path}: skipped {skipped}"]


def test_what_is_skipped_is_counted(tmp_path, log):
    fill(tmp_path, *CLASSES, *(f"ant/{n}.json" for n in range(1200)), "bee/a.txt", ".git/x.png")
    assert len(ImageFolder([str(tmp_path)])) == 3
    (message,) = log.messages
    assert message.endswith("1,201 files that are not images (.json 1,200, .txt), 1 hidden (.git)")


def test_nothing_is_said_where_nothing_is_left_out(tmp_path, log):
    fill(tmp_path, *CLASSES)
    assert relative(ImageFolder([str(tmp_path)])) == FOUND
    assert log.messages == []


def test_hidden_images_do_not_make_a_data_set(tmp_path):
    fill(tmp_path, ".thumbnails/1.png", "notes.txt")
    with pytest.raises(DataError, match=r"holds no image .*skipped: .*1 hidden \(.thumbnails"):
        ImageFolder([str(tmp_path)])


def test_a_flat_root_with_hidden_and_other_folders(tmp_path, log):
    """Only ``.ipynb_checkpoints`` was read of it: a folder is a class, so the root had none."""
    fill(tmp_path, "a.png", "b.png", ".ipynb_checkpoints/a-checkpoint.png", "boxes/a.xml")
    folder = ImageFolder([str(tmp_path)])
    assert relative(folder) == [("a.png", ""), ("b.png", "")]
    assert "1 folders without an image (boxes)" in log.messages[0]


def test_images_beside_classes_are_an_error(tmp_path):
    fill(tmp_path, *CLASSES, "stray.png", "other.png")
    with pytest.raises(DataError, match=r"holds 2 images \(other.png ...\) beside .*\(ant, bee\)"):
        ImageFolder([str(tmp_path)])


def test_a_class_without_images_stays_a_class(tmp_path, log):
    fill(tmp_path, *CLASSES, "aphid/notes.txt")
    folder = ImageFolder([str(tmp_path)])
    assert folder.classes == ["ant", "aphid", "bee"]
    assert relative(folder) == FOUND and folder.labels.tolist() == [0, 0, 2]
    assert f"data folder {tmp_path}: no image of 1 classes: aphid" in log.messages


def test_links_are_what_they_lead_to(tmp_path):
    elsewhere = fill(tmp_path / "elsewhere", "bee/3.png", "2.png")
    root = fill(tmp_path / "root", "ant/1.png")
    (root / "bee").symlink_to(elsewhere / "bee")
    (root / "ant/2.PNG").symlink_to(elsewhere / "2.png")
    assert relative(ImageFolder([str(root)])) == FOUND


@pytest.mark.parametrize("target", [".", "..", "../..", "../bee", "../../elsewhere/in"])
def test_links_that_lead_back_add_nothing(tmp_path, log, target):
    """Each image once, whether a link leads to the folder that holds it, to one around the root,
    or to one that leads back in turn."""
    root = fill(tmp_path / "root", *CLASSES)
    (tmp_path / "elsewhere/in").mkdir(parents=True)
    (tmp_path / "elsewhere/in/back").symlink_to(root / "ant")
    (root / "bee/around").symlink_to(root / "ant")
    (root / "ant/link").symlink_to(target)
    found = [path for path, _ in relative(ImageFolder([str(root)]))]
    assert [path for path in found if "around" not in path and "link" not in path] == [
        path for path, _ in FOUND
    ]
    assert len(found) < 10
    assert "links to a folder around them" in log.messages[0]


def test_links_to_nowhere_are_an_error(tmp_path):
    root = fill(tmp_path, *CLASSES)
    for name in ("ant/4.png", "wasp", "ant/deep"):
        (root / name).symlink_to("/gone/away")
        with pytest.raises(DataError, match=f"the link .*{name} is broken, its target /gone/away"):
            ImageFolder([str(root)])
        (root / name).unlink()
    (root / "ant/self").symlink_to("self")
    with pytest.raises(DataError, match="ant/self"):
        ImageFolder([str(root)])


def test_special_files_are_never_opened(tmp_path, log):
    root = fill(tmp_path, *CLASSES)
    os.mkfifo(root / "ant/pipe.png")
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(root / "bee/s.png"))
    (root / "ant/zero.png").symlink_to("/dev/zero")
    assert relative(ImageFolder([str(root)])) == FOUND
    assert "3 special files (pipe.png, zero.png, s.png)" in log.messages[0]


@pytest.fixture
def unprivileged():
    """A folder that anybody reaches, seen with the rights of nobody."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o777)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    yield folder
    os.seteuid(user)
    shutil.rmtree(folder)


@pytest.mark.parametrize("name", ["bee", "ant/deep", "."])
def test_folders_without_permission_are_an_error(unprivileged, name):
    root = fill(unprivileged / "root", *CLASSES, "ant/deep/4.png")
    (root / name).chmod(0)
    try:
        with pytest.raises(DataError, match="cannot read .*: Permission denied; its images would"):
            ImageFolder([str(root)])
    finally:
        (root / name).chmod(0o777)


def test_a_file_without_permission_is_an_error_not_a_bad_image(unprivileged):
    root = fill(unprivileged / "root", *CLASSES)
    (root / "ant/1.png").chmod(0)
    with pytest.raises(DataError, match="cannot open .*ant/1.png: Permission denied") as caught:
        ImageFolder([str(root)])[0]
    assert not isinstance(caught.value, BadImage)


def test_names_that_are_not_utf8(tmp_path, log):
    root = fill(tmp_path, *CLASSES)
    bee = os.fsencode(root / "bee")
    for name in (b"\xff.png", b"\xfe.t\xfft"):
        with open(bee + b"/" + name, "wb") as file:
            file.write(encode(pixels(9)))
    folder = ImageFolder([str(root)])
    assert len(folder) == 4
    np.testing.assert_array_equal(folder[3][0], pixels(9))
    assert log.messages[0].endswith(r"skipped 1 files that are not images (.t\xfft)")


@pytest.mark.parametrize("name", ["ant/9.heic", "bee/9.AVIF", "9.cr2", "ant/deep/9.dng"])
def test_images_in_formats_that_are_not_read_are_an_error(tmp_path, name):
    fill(tmp_path, *CLASSES, name)
    with pytest.raises(DataError, match=f"{name}: .* images cannot be read: convert them"):
        ImageFolder([str(tmp_path)])


def test_less_usual_names_of_formats_that_are_read(tmp_path):
    (tmp_path / "a").mkdir()
    for name, kind in (("1.jfif", "JPEG"), ("2.JPE", "JPEG"), ("3.jp2", "JPEG2000")):
        (tmp_path / "a" / name).write_bytes(encode(pixels(), kind))
    folder = ImageFolder([str(tmp_path)])
    assert len(folder) == 3
    np.testing.assert_allclose(np.asarray(folder[2][0], int), pixels(), atol=3)


@pytest.mark.parametrize(
    "name", ["train.zip", "photo.png", "data.mdb", "shard.tar.gz", "list.txt", "set.h5"]
)
def test_a_root_that_is_a_file_is_called_one(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(DataError, match=f"{name} is a file, not a folder: roots of data are"):
        open_source(f"{tmp_path}/{name}")
