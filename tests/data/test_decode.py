"""Each kind of odd image file, against what its maker put into it."""

from __future__ import annotations

import io
import os
import random
import re
import struct
import zlib

import numpy as np
import pytest
from image_files import bad_files, encode, pixels
from PIL import Image

from libai_ext.data.decode import BadImage, Decoder
from libai_ext.errors import DataError

decode = Decoder()


def decoded(data, **keywords):
    image = Decoder(**keywords)(data, "x")
    assert image.mode == keywords.get("mode", "RGB")
    return np.asarray(image)


@pytest.mark.parametrize("kind", bad_files())
def test_bad_files(kind):
    with pytest.raises(BadImage, match=r"^cannot read image folder/name: ."):
        decode(bad_files()[kind], "folder/name")


@pytest.mark.parametrize("kind", ["EPS", "FITS", "IM", "PCX", "XBM", "ICO", "DDS"])
def test_no_program_is_started_for_a_file(tmp_path, monkeypatch, kind):
    """Pillow gives EPS to Ghostscript, whatever the file is called, and reads formats that few
    have looked at."""
    program, proof = tmp_path / "gs", tmp_path / "started"
    program.write_text(f"#!/bin/sh\ntouch {proof}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    header = b"SIMPLE  =                    T".ljust(2880) if kind == "FITS" else None
    data = header or encode(pixels() if kind != "XBM" else pixels()[..., 0] > 99, kind)
    with pytest.raises(BadImage, match="x: unknown image format$"):
        decode(data, "x")
    assert not proof.exists()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_files_keep_their_pixels(kind):
    np.testing.assert_array_equal(decoded(encode(pixels(), kind)), pixels())


def test_jpeg_is_what_pillow_reads(tmp_path):
    data = encode(pixels(), "JPEG", quality=90)
    (tmp_path / "x.jpg").write_bytes(data)
    with Image.open(tmp_path / "x.jpg") as image:
        np.testing.assert_array_equal(decoded(data), image.convert("RGB"))
        np.testing.assert_array_equal(decoded(data, mode="L"), image.convert("L"))


def test_cmyk():
    cmyk = Image.fromarray(pixels()).convert("CMYK")
    np.testing.assert_array_equal(decoded(encode(cmyk, "TIFF")), pixels())
    assert np.abs(decoded(encode(cmyk, "JPEG", quality=95)).astype(int) - pixels()).mean() < 3


def test_palette_with_transparency():
    palette = Image.fromarray(np.uint8([[0, 1], [2, 1]]))
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    data = encode(palette, "PNG", transparency=bytes([0, 128, 255]))
    assert Image.open(io.BytesIO(data)).mode == "P"
    expected = [[[10, 20, 30], [40, 50, 60]], [[70, 80, 90], [40, 50, 60]]]
    assert decoded(data).tolist() == expected


def test_alpha_is_dropped():
    rgba = np.dstack([pixels(), np.full(pixels().shape[:2], 7, np.uint8)])
    np.testing.assert_array_equal(decoded(encode(rgba)), pixels())
    grey_alpha = Image.fromarray(rgba).convert("LA")
    expected = np.asarray(Image.fromarray(pixels()).convert("L"))
    np.testing.assert_array_equal(decoded(encode(grey_alpha), mode="L"), expected)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_keep_the_high_byte(kind):
    values = np.uint16([[0, 255, 256, 0x1234], [0x7FFF, 0x8000, 0xFEFF, 0xFFFF]])
    high = [[0, 0, 1, 0x12], [0x7F, 0x80, 0xFE, 0xFF]]
    assert decoded(encode(values, kind), mode="L").tolist() == high
    assert decoded(encode(values, kind))[..., 2].tolist() == high


def tiff(values, bits=16, kind=1, photometric=1):
    """An uncompressed grey TIFF of unsigned (kind 1) or signed (2) integers; 12 bits are packed."""
    if bits == 12:
        flat = np.asarray(values).ravel()
        text = "".join(f"{value:012b}" for value in flat)
        data = int(text, 2).to_bytes(len(text) // 8, "big")
    else:
        data = np.ascontiguousarray(values).tobytes()
    height, width = np.shape(values)
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 8)]
    tags += [(277, 1), (278, height), (279, len(data)), (339, kind)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    start = 8 + len(data) + len(data) % 2
    head = b"II*\0" + struct.pack("<I", start)
    return head + data + bytes(len(data) % 2) + struct.pack("<H", len(tags)) + entries + bytes(4)


def colours(values):
    """A PNG of 16 bits a channel, [H, W, 3]."""

    def chunk(name, content):
        check = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)

    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    parts = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0))
    parts += chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


RAMP = np.uint16([[0, 0x123, 0x800, 0xFFF]])


def test_twelve_bits_packed_and_in_a_grey_map_keep_their_highest_eight():
    high = [[0, 0x12, 0x80, 0xFF]]
    assert decoded(tiff(RAMP, bits=12), mode="L").tolist() == high
    grey_map = b"P5 4 1 4095\n" + RAMP.astype(">u2").tobytes()
    assert decoded(grey_map, mode="L").tolist() == high
    assert decoded(tiff(16 * RAMP), mode="L").tolist() == high
    inverted = decoded(tiff(16 * RAMP, photometric=0), mode="L")
    assert inverted.tolist() == [[255, 0xED, 0x7F, 0]]
    assert decoded(encode(0 * RAMP), mode="L").tolist() == [[0] * 4]


def test_colours_of_sixteen_bits_keep_their_highest_eight():
    values = np.uint16([[[0, 0x1234, 0xFFFF], [255, 256, 0x8000]]])
    assert decoded(colours(values)).tolist() == [[[0, 0x12, 255], [0, 1, 0x80]]]


@pytest.mark.parametrize(
    "data, why",
    [
        (tiff(np.int32([[0, 255, 4095, 70000]]), bits=32, kind=2), "no defined range"),
        (tiff(np.uint32([[0, 255, 4095, 65535]]), bits=32), "no defined range"),
        (tiff(np.int16([[-1000, 0, 1000, 3000]]), kind=2), "no defined range"),
        (tiff(RAMP), "reach 15 of 255 as 8 bits, which is black"),
        (encode(RAMP), "reach 15 of 255 as 8 bits, which is black"),
        (encode(np.uint16([[0, 255]])), "reach 0 of 255"),
        (b"P5 2 1 65535\n" + np.uint16([0, 1000]).astype(">u2").tobytes(), "reach 3 of 255"),
        (colours(np.uint16([[[9, 99, 999]]])), "reach 3 of 255"),
    ],
)
def test_values_that_eight_bits_would_lose_are_refused(data, why):
    with pytest.raises(BadImage, match=why):
        decode(data, "x")


def test_bilevel():
    assert decoded(encode(Image.fromarray(np.eye(3) > 0)), mode="L").tolist() == [
        [255, 0, 0],
        [0, 255, 0],
        [0, 0, 255],
    ]


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_of_an_animation(kind):
    frames = [Image.new("RGB", (8, 6), colour) for colour in ((200, 0, 0), (0, 200, 0))]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
    assert Image.open(io.BytesIO(data)).n_frames == 2
    assert decoded(data)[0, 0].tolist() == [200, 0, 0]


# Where each EXIF orientation puts the upright image: the stored one is turned back by its reader.
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


def test_deep_grey_is_turned_upright_too():
    exif = Image.Exif()
    exif[0x0112] = 6
    values = np.uint16(256 * pixels()[..., 0])
    stored = np.ascontiguousarray(np.rot90(values))
    found = decoded(encode(stored, exif=exif), mode="L")
    np.testing.assert_array_equal(found, pixels()[..., 0])


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_exif_rotation_is_undone(orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(STORED[orientation](pixels()))
    np.testing.assert_array_equal(decoded(encode(stored, kind, exif=exif)), pixels())


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_broken_exif_tag_costs_nothing():
    data = encode(pixels(), "JPEG", exif=b"Exif\0\0MM\0*garbage")
    np.testing.assert_array_equal(decoded(data), decoded(encode(pixels(), "JPEG")))


def test_one_pixel():
    assert decoded(encode(np.uint8([[[1, 2, 3]]]))).tolist() == [[[1, 2, 3]]]


@pytest.mark.filterwarnings("ignore:Image size")
def test_giants_are_refused_before_they_are_decoded():
    data = encode(pixels(height=20, width=30))
    assert decoded(data, max_pixels=600).shape == (20, 30, 3)
    with pytest.raises(BadImage, match="600 pixels.* exceeds limit of 598"):
        decode_small = Decoder(max_pixels=599)
        decode_small(data, "x")
    assert Image.MAX_IMAGE_PIXELS == 89478485
    # 179 million pixels and one row, of which the file has none: only the header is looked at.
    huge = Image.new("1", (1, 1))
    header = bytearray(encode(huge))
    header[16:24] = (20000).to_bytes(4, "big") + (8948).to_bytes(4, "big")
    header[29:33] = zlib.crc32(bytes(header[12:29])).to_bytes(4, "big")
    with pytest.raises(BadImage, match="decompression bomb"):
        decode(bytes(header), "x")


def test_draft_size_reduces_jpegs_of_twice_the_size_and_more():
    big = pixels(height=400, width=600)
    data = encode(big, "JPEG", quality=95)
    sizes = {
        (50, 75): (50, 75),
        (51, 75): (100, 150),
        (200, 300): (200, 300),
        (201, 300): (400, 600),
    }
    for asked, given in sizes.items():
        assert decoded(data, draft_size=asked).shape[:2] == given
    reduced = np.asarray(Image.fromarray(decoded(data)).reduce(2), int)
    assert np.abs(decoded(data, draft_size=(200, 300)) - reduced).mean() < 1.5
    turned = encode(np.ascontiguousarray(np.rot90(big)), "JPEG", exif=_turned())
    assert decoded(turned, draft_size=(200, 300)).shape == (200, 300, 3)


def _turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def test_as_torchvisions_loader_does():
    """``Image.open(file).convert("RGB")``: stored rotation, clipped values."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for data in (
        encode(pixels(), "JPEG", exif=exif),
        encode(pixels(), exif=exif),
        encode(np.uint16([[0, 200, 256, 0xFFFF]])),
        encode(np.ones((4, 4), np.float32), "TIFF"),
    ):
        expected = Image.open(io.BytesIO(data)).convert("RGB")
        np.testing.assert_array_equal(decoded(data, as_torchvision=True), expected)
    assert decoded(encode(pixels(), exif=exif)).shape == (30, 20, 3)


def test_messages_name_no_objects_in_memory():
    for data in bad_files().values():
        with pytest.raises(BadImage) as caught:
            decode(data, "folder/x.png")
        assert not re.search("0x|BytesIO|<", str(caught.value)), caught.value
    with pytest.raises(BadImage, match="x: unknown image format$"):
        decode(b"not a picture", "x")


def test_unknown_mode():
    with pytest.raises(DataError, match="data.mode must be one of .* not 'RBG'"):
        Decoder("RBG")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM"])
def test_damage_gives_an_image_or_a_bad_image(kind):
    """Whatever a plug-in raises on it, nothing else comes out."""
    draw = random.Random(0)
    whole = encode(pixels(), kind)
    outcomes = {"bad": 0, "image": 0}
    for _ in range(150):
        data = bytearray(whole[: draw.choice([len(whole), draw.randrange(len(whole))])])
        for _ in range(draw.randrange(1, 6)):
            if data:
                data[draw.randrange(len(data))] = draw.randrange(256)
        try:
            decode(bytes(data), "x")
            outcomes["image"] += 1
        except BadImage:
            outcomes["bad"] += 1
    assert outcomes["bad"] > 10 and outcomes["image"] > 0
