"""Reading pictures of every kind, resizing as PIL does, normalising there and back."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from incontext.image import (
    MEAN,
    STD,
    ImageError,
    denormalise,
    normalise,
    open_image,
    resize_image,
    resize_labels,
)


def picture(height=24, width=32):
    """Smooth in both directions, so that lossy files stay close to it."""
    rows, columns = np.linspace(0, 200, height)[:, None], np.linspace(20, 250, width)[None]
    red, green = np.broadcast_to(rows, (height, width)), np.broadcast_to(columns, (height, width))
    return np.stack([red, green, 255 - red], axis=-1).round().astype(np.uint8)


@pytest.mark.parametrize(
    ("suffix", "options", "tolerance"),
    [
        ("png", {}, 0),
        ("bmp", {}, 0),
        ("tif", {}, 0),
        ("tif", {"compression": "tiff_lzw"}, 0),
        ("webp", {"lossless": True}, 0),
        ("webp", {"quality": 90}, 16),  # lossy formats halve the resolution of colour
        ("jpg", {"quality": 95}, 12),
    ],
)
def test_formats(tmp_path, suffix, options, tolerance):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(picture()).save(path, **options)
    read = open_image(path)
    assert read.dtype == np.uint8 and read.shape == (24, 32, 3)
    assert np.abs(read.astype(int) - picture()).max() <= tolerance
    np.testing.assert_array_equal(open_image(str(path)), read)
    np.testing.assert_array_equal(open_image(io.BytesIO(path.read_bytes())), read)
    np.testing.assert_array_equal(open_image(Image.open(path)), read)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_exif_orientation(tmp_path, suffix, orientation):
    upright = picture()
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright),
        7: upright[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    options = {"lossless": True} if suffix == "webp" else {}
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif, **options)
    np.testing.assert_array_equal(open_image(path), upright)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_a_broken_exif_block_does_not_hide_the_picture(tmp_path):
    Image.fromarray(picture()).save(tmp_path / "a.jpg", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff\x00\x00")
    assert open_image(tmp_path / "a.jpg").shape == (24, 32, 3)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp"])
def test_grey_becomes_rgb(tmp_path, suffix):
    grey = picture()[..., 1]
    Image.fromarray(grey).save(tmp_path / f"a.{suffix}")
    read = open_image(tmp_path / f"a.{suffix}")
    assert (read[..., :1] == read).all()
    assert np.abs(read[..., 0].astype(int) - grey).max() <= (4 if suffix == "jpg" else 0)


def test_one_bit_is_black_and_white(tmp_path):
    mask = picture()[..., 0] > 100
    Image.fromarray(mask).save(tmp_path / "a.png")
    np.testing.assert_array_equal(open_image(tmp_path / "a.png")[..., 1], mask * 255)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_shows_white(tmp_path, mode):
    image = Image.new("RGBA", (3, 1), (100, 100, 100, 255))
    image.putpixel((1, 0), (100, 100, 100, 0))
    if mode == "RGBA":
        image.putpixel((2, 0), (100, 100, 100, 128))
    (image.quantize(4) if mode == "P" else image.convert(mode)).save(tmp_path / "a.png")
    expected = [100, 255, 177 if mode == "RGBA" else 100]
    np.testing.assert_array_equal(open_image(tmp_path / "a.png")[0, :, 0], expected)


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_cmyk(tmp_path, suffix):
    ink = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    ink.save(tmp_path / f"a.{suffix}")
    assert np.abs(open_image(tmp_path / f"a.{suffix}").astype(int) - (0, 255, 255)).max() <= 3


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize(("top", "depth"), [(250, 255), (1000, 1023), (4000, 4095), (60000, 65535)])
def test_deep_grey_is_scaled_by_its_depth(tmp_path, suffix, top, depth):
    deep = np.linspace(0, top, 256).round().astype(np.uint16).reshape(16, 16)
    Image.fromarray(deep).save(tmp_path / f"a.{suffix}")
    read = open_image(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(read[..., 0], (deep * (255 / depth)).round())


def test_deep_colour_png(tmp_path):
    """16 bits per channel, which PIL cannot write: chunks by hand."""
    deep = (picture().astype(np.uint16) * 257).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in deep)
    write_png(tmp_path / "a.png", 32, 24, depth=16, colour_type=2, data=zlib.compress(rows))
    np.testing.assert_array_equal(open_image(tmp_path / "a.png"), picture())


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.array([[0, 255]], np.uint8), [0, 255]),
        (np.array([[[0], [255]]], np.uint8), [0, 255]),
        (np.array([[False, True]]), [0, 255]),
        (np.array([[0.0, 0.5]]), [0, 128]),
        (np.array([[0.0, 200.0]], np.float32), [0, 200]),
        (np.array([[0, 200]], np.int64), [0, 200]),
        (np.array([[0, 65535]], np.uint16), [0, 255]),
    ],
)
def test_arrays(array, expected):
    np.testing.assert_array_equal(open_image(array)[0, :, 2], expected)


def test_an_array_is_not_changed():
    rgba = np.full((2, 2, 4), 128, np.uint8)
    open_image(rgba)
    assert (rgba == 128).all()


@pytest.mark.parametrize(
    ("array", "match"),
    [
        (np.zeros((3, 8, 8), np.uint8), r"got \(3, 8, 8\); move the channels"),
        (np.zeros((0, 8, 3), np.uint8), r"got \(0, 8, 3\)"),
        (np.zeros((2, 8, 8, 3), np.uint8), r"got \(2, 8, 8, 3\)"),
        (np.full((2, 2), 300.0), "0..1 or 0..255, got 300"),
        (np.full((2, 2), np.nan), "got nan"),
        (np.full((2, 2), -1), "got -1"),
        (None, "expected a path, PIL image or array"),
    ],
)
def test_arrays_refused(array, match):
    with pytest.raises(ImageError, match=match):
        open_image(array)


def test_the_suffix_does_not_matter(tmp_path):
    Image.fromarray(picture()).save(tmp_path / "a.bmp")
    (tmp_path / "a.bmp").rename(tmp_path / "disguised.jpg")
    np.testing.assert_array_equal(open_image(tmp_path / "disguised.jpg"), picture())


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", r"bad\.png: .* empty file \(0 bytes\)"),
        (b"<!DOCTYPE html><html></html>", r"bad\.png: expected a picture .* none"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, r"bad\.png: expected a"),
        (None, r"bad\.png: .* no such file"),
    ],
)
def test_files_refused(tmp_path, content, match):
    if content is not None:
        (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(ImageError, match=match):
        open_image(tmp_path / "bad.png")


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(ImageError, match="got a folder"):
        open_image(tmp_path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "bmp"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.7])
def test_truncated_files_are_refused(tmp_path, suffix, share):
    path = tmp_path / f"a.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ImageError, match=rf"a\.{suffix}: expected a "):
        open_image(path)


def write_png(path, width, height, depth, colour_type, data):
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)),
        (b"IDAT", data),
        (b"IEND", b""),
    ]
    body = b"".join(
        struct.pack(">I", len(value)) + name + value + struct.pack(">I", zlib.crc32(name + value))
        for name, value in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def test_a_decompression_bomb_is_refused_unopened(tmp_path):
    write_png(tmp_path / "bomb.png", 60000, 60000, depth=8, colour_type=2, data=zlib.compress(b"\0" * 1000))
    with pytest.raises(ImageError, match=r"bomb\.png: expected at most \d+ pixels.* tiles"):
        open_image(tmp_path / "bomb.png")


@pytest.mark.parametrize("size", [(24, 32), (7, 9), (50, 31), (48, 64)])
def test_resizing_is_pils(size):
    image = picture()
    by_pil = Image.fromarray(image).resize(size[::-1], Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(resize_image(image, size), by_pil)
    labels = np.random.default_rng(0).integers(0, 200, (24, 32)).astype(np.uint8)
    by_pil = np.asarray(Image.fromarray(labels).resize(size[::-1], Image.Resampling.NEAREST))
    for dtype in (np.uint8, np.int32):
        resized = resize_labels(labels.astype(dtype), size)
        assert resized.dtype == dtype
        np.testing.assert_array_equal(resized, by_pil)
    np.testing.assert_array_equal(resize_labels(np.dstack([labels, labels]), size)[..., 1], by_pil)


@pytest.mark.parametrize("lead", [(), (2,), (2, 3)])
def test_normalise_there_and_back(lead):
    images = np.broadcast_to(picture(), (*lead, 24, 32, 3)).copy()
    tensor = normalise(images)
    assert tensor.dtype == torch.float32 and tensor.shape == (*lead, 3, 24, 32)
    expected = (picture()[..., 1] / 255 - MEAN[1]) / STD[1]
    np.testing.assert_allclose(tensor[(0,) * len(lead)][1], expected, atol=1e-6)
    back = denormalise(tensor).movedim(-3, -1)
    np.testing.assert_allclose(back, images, atol=1e-3)  # float32 of values up to 255
    torch.testing.assert_close(normalise(torch.from_numpy(images)), tensor)


def test_denormalise_clips():
    assert denormalise(torch.full((3, 1, 1), 99.0)).max() == 255
    assert denormalise(torch.full((3, 1, 1), -99.0)).min() == 0


def test_deep_grey_with_a_transparent_value_keeps_its_depth(tmp_path):
    """A PNG may name one grey value as transparent (tRNS)."""
    pixels = np.array([[300, 1500, 3000]], np.uint16)
    Image.fromarray(pixels).save(tmp_path / "plain.png")
    data = (tmp_path / "plain.png").read_bytes()
    chunk = b"tRNS" + struct.pack(">H", 7)
    chunk = struct.pack(">I", 2) + chunk + struct.pack(">I", zlib.crc32(chunk))
    at = data.index(b"IDAT") - 4
    (tmp_path / "named.png").write_bytes(data[:at] + chunk + data[at:])
    np.testing.assert_array_equal(open_image(tmp_path / "named.png"), open_image(tmp_path / "plain.png"))


def test_a_deep_arrays_alpha_has_its_own_depth():
    deep = np.full((2, 2, 4), 2000, np.uint16)  # 12 bits of 16
    deep[..., 3] = 0xFFFF
    np.testing.assert_array_equal(open_image(deep), open_image(np.full((2, 2, 3), 2000, np.uint16)))
