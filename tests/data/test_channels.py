"""Images of any number of channels: what is read is what was written, and the transforms on it."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
from image_files import encode, pixels
from PIL import Image

from libai_ext.data.auto_augment import RandAugment
from libai_ext.data.channels import ChannelImage
from libai_ext.data.decode import BadImage, Decoder
from libai_ext.data.image_folder import ImageFolder
from libai_ext.data.listed import ListedImages
from libai_ext.data.sources import open_source
from libai_ext.data.transforms import (
    CenterCrop,
    Compose,
    EvalCrop,
    RandomHorizontalFlip,
    RandomResizedCrop,
    ToArray,
)
from libai_ext.errors import DataError


def values(dtype, channels, height=37, width=50):
    made = np.random.default_rng(channels).normal(size=(height, width, channels))
    return (made if dtype == "float32" else 60 * (made + 4).clip(0, 4)).astype(dtype)


def tiff(array, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, array, photometric="minisblack", **options)
    return file.getvalue()


def npy(array, version=None, **options):
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version, **options)
    return file.getvalue()


def read(data, channels, **options):
    return np.asarray(Decoder(channels, **options)(data, "folder/x"))


STORAGE = (
    dict(rowsperstrip=10),
    dict(compression="zlib", rowsperstrip=10, byteorder=">"),
    dict(compression="zlib", tile=(16, 32), byteorder=">", bigtiff=True),
    dict(compression="zlib", tile=(32, 16), predictor=True),
    dict(tile=(16, 16), bigtiff=True),
)


@pytest.mark.parametrize("storage", STORAGE, ids=str)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_tiff_gives_what_tifffile_wrote(dtype, storage):
    if dtype == "float32" and "predictor" in storage:
        storage = dict(storage, predictor=False)  # tifffile alone writes none
    for channels in (1, 2, 4, 13):
        array = values(dtype, channels)
        plain = array[..., 0] if channels == 1 else array
        files = [tiff(plain, planarconfig="contig" if channels > 1 else None, **storage)]
        if channels > 1:
            planes = np.moveaxis(array, -1, 0)
            files += [tiff(planes, planarconfig="separate", **storage), tiff(planes, **storage)]
        for file in files:
            found = read(file, channels)
            np.testing.assert_array_equal(found, array)
            assert found.dtype == array.dtype


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_tiff_gives_what_libtiff_wrote(compression):
    array = values("uint8", 4)
    np.testing.assert_array_equal(read(encode(array, "TIFF", compression=compression), 4), array)
    array = values("float32", 1)
    for predictor in (1, 2, 3) if compression != "packbits" else (1,):
        options = dict(compression=compression, tiffinfo={317: predictor})
        np.testing.assert_array_equal(read(encode(array[..., 0], "TIFF", **options), 1), array)


def test_overviews_are_skipped_and_an_orientation_is_obeyed():
    array, file = values("uint16", 4), io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for step in (1, 2, 4):
            writer.write(array[::step, ::step], photometric="rgb", contiguous=False)
    np.testing.assert_array_equal(read(file.getvalue(), 4), array)
    for orientation in range(1, 9):
        data = encode(values("uint8", 3), "TIFF", tiffinfo={274: orientation})
        upright = np.asarray(Decoder("RGB")(data, "x"))
        np.testing.assert_array_equal(read(data, 3), upright)


@pytest.mark.parametrize("dtype", ["uint8", "<u2", ">u2", "<f4", ">f4"])
def test_npy(dtype):
    array = values("float32", 5).astype(dtype)
    for given in (array, np.asfortranarray(array)):
        found = read(npy(given), 5)
        np.testing.assert_array_equal(found, array)
        assert found.dtype == array.dtype.newbyteorder("=")
    np.testing.assert_array_equal(read(npy(array[..., 2]), 1), array[..., 2:3])


def test_other_formats_as_they_are():
    for channels in (3, 4):
        array = values("uint8", channels)
        np.testing.assert_array_equal(read(encode(array), channels), array)
    grey = values("uint16", 1)
    np.testing.assert_array_equal(read(encode(grey[..., 0]), 1), grey)
    turned = Image.Exif()
    turned[274] = 6
    found = read(encode(values("uint8", 3), exif=turned), 3)
    np.testing.assert_array_equal(found, np.rot90(values("uint8", 3), 3))


def test_what_is_not_the_channels_is_bad():
    deep = b"".join(
        (lambda part: struct.pack(">I", len(part) - 4) + part + bytes(4))(part)
        for part in (b"IHDR" + struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0), b"IEND")
    )
    cases = {
        r"an array of \[37, 50, 5\]; data.mode expects \[height, width, 4\]$": npy(
            values("uint8", 5)
        ),
        r"\[4, 9, 9\]; data.mode expects \[height, width, 4\]: move its first axis": npy(
            np.zeros((4, 9, 9), np.uint8)
        ),
        r"\[37, 50, 3\]; data.mode": tiff(values("uint16", 3), planarconfig="contig"),
        r"\[37, 50, 1\]; data.mode": tiff(np.moveaxis(values("uint16", 5), -1, 0)),
        r"\[20, 30, 3\]; data.mode": encode(pixels(), "JPEG"),
        "float64, which has no defined range: save them as uint8, uint16, float32": npy(
            np.zeros((4, 4, 4))
        ),
        "int16, which": npy(np.zeros((4, 4, 4), np.int16)),
        "of 16 bits, sample format 2": tiff(np.zeros((4, 4, 4), np.int16), planarconfig="contig"),
        "of 64 bits, sample format 3": tiff(np.zeros((4, 4, 4)), planarconfig="contig"),
        "values that are not finite": npy(np.full((4, 4, 4), np.nan, np.float32)),
        "array of object": npy(np.full((2, 2), None), allow_pickle=True),
        "pixels of mode P": encode(Image.new("P", (4, 4))),
        r"a .npy header of version \(2, 0\)": npy(values("uint8", 4), (2, 0)),
        "0 x 3 pixels": npy(np.zeros((3, 0, 4), np.uint8)),
    }
    for message, data in cases.items():
        with pytest.raises(BadImage, match=f"^cannot read image folder/x: .*{message}"):
            read(data, 4)
    with pytest.raises(BadImage):
        read(b"\x89PNG\r\n\x1a\n" + deep, 3)


def test_sizes_are_known_before_memory_is_taken():
    few, most = values("uint16", 4), 37 * 50 * 4
    for data in (npy(few), tiff(few, planarconfig="contig"), tiff(np.moveaxis(few, -1, 0))):
        np.testing.assert_array_equal(read(data, 4, max_pixels=most), few)
        with pytest.raises(BadImage, match="values, more than the"):
            read(data, 4, max_pixels=most - 1)
    header = "{'descr': '|u1', 'fortran_order': False, 'shape': (%d, 100000, 4)}"
    for rows, message in ((450, "more than the 178,956,970 allowed"), (100, "the file ends after")):
        text = (header % rows).encode()
        data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(100)
        with pytest.raises(BadImage, match=message):
            read(data, 4)


def small_tiff(*tags, pages=1, then=0):
    """A TIFF whose pages have these tags (number, type, count, value)."""
    page = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
    size = len(page) + 4
    data = b"II*\0" + struct.pack("<I", 8)
    for number in range(pages):
        data += page + struct.pack("<I", 8 + (number + 1) * size if number < pages - 1 else then)
    return data


GREY_TAGS = [(256, 4, 1, 4), (257, 4, 1, 4), (258, 3, 1, 8), (273, 4, 1, 0), (279, 4, 1, 16)]


def test_hostile_tiffs():
    big = [(tag, kind, count, 60_000) if tag in (256, 257) else (tag, kind, count, value)
           for tag, kind, count, value in GREY_TAGS]  # fmt: skip
    cases = {
        "3,600,000,000 values, more than": small_tiff(*big),
        "60,000 tags": b"II*\0" + struct.pack("<IH", 8, 60_000) + bytes(20),
        "ends before the values of TIFF tag 273": small_tiff((273, 4, 1 << 30, 8)),
        "TIFF tag 257 is missing": small_tiff((256, 4, 1, 4)),
        "TIFF tag 256 is missing": small_tiff((256, 2, 4, 4), (257, 4, 1, 4)),
        "unpack_from requires": b"II*\0" + struct.pack("<I", 900),
        "without a page": b"II*\0" + bytes(8),
        "0 TIFF strips or tiles, not 4": small_tiff(*GREY_TAGS[:3], (278, 4, 1, 1)),
        "a TIFF strip or tile of 0 bytes, not 16": small_tiff(
            *GREY_TAGS[:3], (273, 4, 1, 5000), (279, 4, 1, 16)
        ),
        "strips or tiles of .0, 4": small_tiff(*GREY_TAGS, (278, 4, 1, 0)),
        "photometric 3": small_tiff(*GREY_TAGS, (262, 3, 1, 3)),
        "compression 7: use none, LZW": small_tiff(*GREY_TAGS, (259, 3, 1, 7)),
        "predictor 2 with compression 1": small_tiff(*GREY_TAGS, (317, 3, 1, 2)),
        "predictor 3 with": small_tiff(*GREY_TAGS, (317, 3, 1, 3), (259, 3, 1, 8)),
    }
    for message, data in cases.items():
        with pytest.raises(BadImage, match=message):
            read(data, 1)
    circle = small_tiff(*GREY_TAGS, pages=2, then=8)
    assert read(circle, 1).shape == (4, 4, 1)  # its first page
    with pytest.raises(BadImage, match=r"\[4, 4, 1\]; data.mode expects \[height, width, 3\]"):
        read(circle, 3)


def test_a_deflated_part_gives_no_more_than_its_pixels():
    packed = zlib.compress(bytes(1 << 25))
    tags = [*GREY_TAGS[:3], (259, 3, 1, 8), (279, 4, 1, len(packed)), (278, 4, 1, 4)]
    tags.append((273, 4, 1, 8 + 2 + 7 * 12 + 4))
    data = small_tiff(*tags) + packed
    np.testing.assert_array_equal(read(data, 1), np.zeros((4, 4, 1)))


def test_cut_and_damaged_files():
    rng = np.random.default_rng(0)
    array = values("uint16", 4, 9, 8)
    options = (dict(), dict(compression="zlib", predictor=True), dict(tile=(16, 16)))
    files = [npy(array), *(tiff(array, planarconfig="contig", **each) for each in options)]
    files.append(encode(values("uint8", 4), "TIFF", compression="tiff_lzw"))
    for data in files:
        for end in rng.integers(1, len(data) - 1, 30):
            with pytest.raises(BadImage):
                read(data[:end], 4)
        for _ in range(100):
            damaged = bytearray(data)
            damaged[rng.integers(min(len(data), 300))] = rng.integers(256)
            try:
                read(bytes(damaged), 4, max_pixels=1 << 16)
            except BadImage:
                pass


@pytest.mark.parametrize("size", [(224, 224), (20, 30), (90, 61)])
def test_resizing_is_pillows(size):
    """On noise, which overshoots: Pillow rounds and clips after each pass, this only clips."""
    grey = np.random.default_rng(0).integers(0, 256, (61, 83), np.uint8)
    expected = np.asarray(Image.fromarray(grey).resize(size, Image.Resampling.BICUBIC))
    for scale, dtype in ((1, np.uint8), (257, np.uint16)):
        both = np.stack([grey[::-1], grey], axis=-1).astype(dtype) * dtype(scale)
        found = np.asarray(ChannelImage(both, 2).resize(size, Image.Resampling.BICUBIC)) / scale
        assert np.abs(found[..., 1] - expected).max() < 1.2
        assert np.abs(found[..., 1] - expected).mean() < 0.4
        assert size != (224, 224) or (found.min(), found.max()) == (0, 255)
    exact = Image.fromarray(grey.astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
    image = ChannelImage(grey.astype(np.float32), 1).resize(size, Image.Resampling.BICUBIC)
    np.testing.assert_allclose(np.asarray(image)[..., 0], exact, atol=1e-3)


@pytest.mark.parametrize("first", [RandomResizedCrop((24, 32)), EvalCrop((24, 32))])
def test_transforms_are_those_of_colours(first):
    """The same draws, crops and normalisation; pixels within a level of 255."""
    mean, std = [0.5, 0.4, 0.3], [0.3, 0.2, 0.1]
    steps = [first, RandomHorizontalFlip(), ToArray(mean, std)]
    for seed in range(8):
        colours, rng = pixels(seed, 60, 50), np.random.default_rng(seed)
        expected = Compose(steps)(Image.fromarray(colours), np.random.default_rng(seed))
        for array in (colours, np.uint16(colours) * 257, np.float32(colours) / 255):
            image = ChannelImage(array, 3)
            found = Compose(steps)(image, np.random.default_rng(seed))
            assert found.dtype == np.float32 and found.flags.c_contiguous
            np.testing.assert_allclose(found, expected, atol=1.2 / 255 / min(std))
    five = np.concatenate([colours, colours[..., :2]], axis=-1)
    found = Compose([*steps[:2], ToArray([0.5] * 5, [0.5] * 5)])(ChannelImage(five, 5), rng)
    assert found.shape == (5, 24, 32)
    np.testing.assert_array_equal(found[:2], found[3:])


def test_centre_crop_pads_with_zeros():
    array = values("uint16", 2, 5, 9)
    for size in ((9, 5), (8, 14), (3, 3)):
        found = np.asarray(CenterCrop(size)(ChannelImage(array, 2), None))
        one = [CenterCrop(size)(Image.fromarray(np.int32(array[..., c])), None) for c in (0, 1)]
        np.testing.assert_array_equal(found, np.stack(one, axis=-1))


def test_colour_operations_are_refused():
    augment = RandAugment(mean=[0.5] * 3)
    with pytest.raises(DataError, match="RandAugment is for 8-bit images with data.mode RGB or L"):
        augment(ChannelImage(values("uint8", 3), 3), np.random.default_rng(0))


@pytest.fixture
def folder(tmp_path):
    """TIFF and .npy of 4 channels in two classes, a bad one, and a .json."""
    for number in range(6):
        path = tmp_path / ("barley", "maize")[number % 2] / f"{number}"
        path.parent.mkdir(exist_ok=True)
        array = values("uint16", 4) + np.uint16(number)
        path.with_suffix(".tif").write_bytes(tiff(array, planarconfig="contig"))
        path.with_suffix(".npy").write_bytes(npy(array + np.uint16(100)))
    (tmp_path / "barley/0.npy").write_bytes(npy(values("uint16", 5)))
    (tmp_path / "maize/1.json").write_text("{}")
    return tmp_path


def test_folders_and_lists(folder, caplog):
    source = open_source(str(folder), mode=4, max_bad_share=0.5)
    assert (len(source), source.classes) == (12, ["barley", "maize"])
    assert source.labels.tolist() == [0] * 6 + [1] * 6
    image, label = source[2]
    np.testing.assert_array_equal(np.asarray(image), values("uint16", 4) + 102)
    assert (image.mode, image.size, label) == (4, (50, 37), 0)
    # The bad one is replaced by the next.
    np.testing.assert_array_equal(np.asarray(source[0][0]), values("uint16", 4))
    assert "barley/0.npy: an array of [37, 50, 5]; data.mode expects [height, width, 4]" in (
        caplog.text
    )
    # With another mode, arrays are no images.
    assert len(ImageFolder([str(folder)])) == 6
    (folder / "list.txt").write_text("3.npy wheat\n5.tif oats\n")
    listed = ListedImages(f"{folder}/list.txt", f"{folder}/maize", 4)
    assert [np.asarray(listed[i][0])[0, 0, 0] - values("uint16", 4)[0, 0, 0] for i in (0, 1)] == [
        103,
        5,
    ]


def test_modes_that_do_not_go_together(folder):
    with pytest.raises(DataError, match="data.mode must be one of .*'RGB', 'L'.* or a number"):
        Decoder(0)
    with pytest.raises(DataError, match="data.as_torchvision goes with data.mode RGB or L, not 4"):
        open_source(str(folder), mode=4, as_torchvision=True)
    with pytest.raises(DataError, match="cifar10 has images of data.mode RGB or L, not 4"):
        open_source(f"cifar10:train:{folder}", mode=4)
