"""Reading masks of every kind: palettes, grey, one bit, deep, colours, soft edges, transparency, JPEG."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from incontext.image import ImageError, find_colours, open_labels
from incontext.palette import voc_colours
from incontext.types import IGNORE

RED, GREEN, BLUE, PURPLE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (128, 0, 128), (255, 255, 255)
SIZE = 160


def drawing(colours, scale=1, background=(0, 0, 0)):
    """Overlapping discs, so that every pair of colours meets somewhere."""
    image = Image.new("RGB", (SIZE * scale, SIZE * scale), background)
    draw = ImageDraw.Draw(image)
    for k, colour in enumerate(colours):
        x, y = 20 + 37 * k % 70, 15 + 29 * k % 80
        draw.ellipse([x * scale, y * scale, (x + 50) * scale, (y + 50) * scale], fill=colour)
    return image


def truth(colours, scale=1, background=(0, 0, 0)):
    """Index into (background, *colours): (H, W)."""
    pixels = np.asarray(drawing(colours, scale, background))[scale // 2 :: scale, scale // 2 :: scale].astype(int)
    table = np.array([background, *colours])
    return ((pixels[:, :, None] - table) ** 2).sum(axis=-1).argmin(axis=-1)


def saved(image, **options):
    """As a file's content, read back by PIL."""
    buffer = io.BytesIO()
    image.save(buffer, **options)
    return Image.open(buffer)


def jpeg(image, quality=90, **options):
    return saved(image, format="JPEG", quality=quality, **options)


def agreement(labels, expected):
    """The least IoU over the expected ids; the ids must be the same."""
    assert set(np.unique(labels)) == set(np.unique(expected))
    pairs = [(labels == i, expected == i) for i in np.unique(expected)]
    return min((a & b).sum() / (a | b).sum() for a, b in pairs)


def test_palette_images_give_indices_not_colours(tmp_path):
    indices = np.array([[0, 1, 2, 19]], np.uint8)
    image = Image.fromarray(indices)
    image.putpalette([9, 9, 9] * 256)
    image.save(tmp_path / "m.png")
    np.testing.assert_array_equal(open_labels(tmp_path / "m.png"), indices)
    image.save(tmp_path / "m.png", transparency=0)
    np.testing.assert_array_equal(open_labels(tmp_path / "m.png"), indices)


@pytest.mark.parametrize("voc", [True, False])
@pytest.mark.parametrize(("values", "expected"), [([0, 3, 255], [0, 3, IGNORE]), ([0, 0, 255], [0, 0, None])])
def test_255_in_palette_images(voc, values, expected):
    image = Image.fromarray(np.array([values], np.uint8))
    image.putpalette(voc_colours().tobytes() if voc else list(range(256)) * 3)
    expected = [(IGNORE if voc else 1) if value is None else value for value in expected]
    np.testing.assert_array_equal(open_labels(image)[0], expected)


def test_black_and_white_palettes_in_either_order():
    for palette, values in (([0, 0, 0, *WHITE], [0, 1]), ([*WHITE, 0, 0, 0], [1, 0])):
        image = Image.fromarray(np.array([values], np.uint8))
        image.putpalette(palette)
        np.testing.assert_array_equal(open_labels(image), [[0, 1]])


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 1, 2, 254], [0, 1, 2, 254]),
        ([0, 255, 255, 0], [0, 1, 1, 0]),
        ([0, 1, 2, 255], [0, 1, 2, IGNORE]),
        ([255, 255, 255, 255], [1, 1, 1, 1]),
        ([0, 128, 128, 0], [0, 128, 128, 0]),
    ],
)
def test_grey_ids_and_binary(tmp_path, suffix, values, expected):
    grey = np.repeat(np.array([values], np.uint8), 8, axis=0)
    Image.fromarray(grey).save(tmp_path / f"m.{suffix}")
    np.testing.assert_array_equal(open_labels(tmp_path / f"m.{suffix}")[3], expected)
    np.testing.assert_array_equal(open_labels(grey)[3], expected)
    np.testing.assert_array_equal(open_labels(np.dstack([grey] * 3))[3], expected)  # grey that is stored as RGB


def test_grey_ids_are_exact_where_thin_objects_touch():
    ids = np.zeros((64, 64), np.uint8)
    for k in range(40):  # each line lies between a smaller and a larger id, as a blend would
        ids[k + 5, 4:60] = k + 1
    np.testing.assert_array_equal(open_labels(ids), ids)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_deep_grey_ids(tmp_path, suffix):
    for values, expected in (([0, 300, 65535], [0, 300, IGNORE]), ([0, 65535, 65535], [0, 1, 1])):
        Image.fromarray(np.array([values], np.uint16)).save(tmp_path / f"m.{suffix}")
        np.testing.assert_array_equal(open_labels(tmp_path / f"m.{suffix}")[0], expected)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
def test_one_bit(tmp_path, suffix):
    mask = np.arange(20).reshape(4, 5) % 3 == 0
    Image.fromarray(mask).save(tmp_path / f"m.{suffix}")
    np.testing.assert_array_equal(open_labels(tmp_path / f"m.{suffix}"), mask)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.array([[False, True]]), [0, 1]),
        (np.array([[0, 255]]), [0, 255]),  # signed integers are labels already
        (np.array([[IGNORE, 70000]]), [IGNORE, 70000]),
        (np.array([[0.2, 0.5]]), [0, 1]),
        (np.array([[0.0, 7.0]]), [0, 7]),
        (np.array([[0.0, 255.0]]), [0, 1]),
        (np.array([[[0], [3]]], np.uint8), [0, 3]),
    ],
)
def test_arrays(array, expected):
    labels = open_labels(array)
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels[0], expected)


@pytest.mark.parametrize("array", [np.array([[0.5, 3.0]]), np.array([[-2, 1]]), np.array([[np.nan, 1.0]])])
def test_arrays_refused(array):
    with pytest.raises(ImageError, match="expected"):
        open_labels(array)


def test_exif_orientation_turns_masks_too(tmp_path):
    ids = np.arange(12, dtype=np.uint8).reshape(3, 4)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(ids).save(tmp_path / "m.png", exif=exif)
    np.testing.assert_array_equal(open_labels(tmp_path / "m.png"), np.rot90(ids, -1))


@pytest.mark.parametrize("options", [{"format": "PNG"}, {"format": "BMP"}, {"format": "WEBP", "lossless": True}])
@pytest.mark.parametrize(
    ("colours", "ids"),
    [
        ((RED, GREEN, BLUE), (1, 2, 3)),
        ((BLUE, RED), (2, 1)),  # numbered by colour, not by place
        (((3, 0, 0), (1, 0, 0), (2, 0, 0)), (1, 3, 2)),
        (((128, 0, 0), (0, 128, 0), (128, 64, 128)), (1, 2, 21)),  # VOC's colours have VOC's ids
        (((128, 0, 0), (224, 224, 192)), (1, IGNORE)),
    ],
)
def test_colours(colours, ids, options):
    expected = np.array([0, *ids])[truth(colours)]
    np.testing.assert_array_equal(open_labels(saved(drawing(colours), **options)), expected)


def test_white_paper_is_background():
    colours = (RED, BLUE)
    np.testing.assert_array_equal(open_labels(drawing(colours, background=WHITE)), truth(colours, background=WHITE))


def test_white_is_an_object_beside_black():
    labels = open_labels(drawing((WHITE, RED)))
    np.testing.assert_array_equal(labels, truth((WHITE, RED)))


def test_without_black_or_white_every_colour_is_an_object():
    assert set(np.unique(open_labels(drawing((RED, BLUE), background=(90, 90, 40))))) == {1, 2, 3}


def test_tiny_and_thin_objects_keep_their_colour():
    pixels = np.asarray(drawing((RED,))).copy()
    pixels[150, 3], pixels[140, 5:90] = GREEN, BLUE
    labels = open_labels(pixels)
    assert set(np.unique(labels)) == {0, 1, 2, 3}
    assert (labels == 2).sum() == 1 and (labels == 3).sum() == 85


SOFT = {
    "anti-aliased": lambda c: drawing(c, 4).resize((SIZE, SIZE), Image.Resampling.BOX),
    "lanczos": lambda c: drawing(c, 4).resize((SIZE, SIZE), Image.Resampling.LANCZOS),
    "blurred": lambda c: drawing(c).filter(ImageFilter.GaussianBlur(1)),
    "jpeg 95": lambda c: jpeg(drawing(c), 95, subsampling=0),
    "jpeg 85": lambda c: jpeg(drawing(c), 85),
    "jpeg 60": lambda c: jpeg(drawing(c), 60),
    "jpeg as png": lambda c: np.asarray(jpeg(drawing(c), 85)),
    "soft jpeg": lambda c: jpeg(drawing(c, 4).resize((SIZE, SIZE), Image.Resampling.BOX), 90),
    "webp": lambda c: saved(drawing(c), format="WEBP", quality=90),
}


@pytest.mark.parametrize("make", SOFT.values(), ids=SOFT)
@pytest.mark.parametrize(
    "colours",
    [(WHITE,), (RED,), (RED, GREEN, BLUE), (RED, PURPLE, BLUE), ((128, 0, 0), (0, 128, 0), (128, 128, 0))],
    ids=["white", "red", "rgb", "purple", "voc"],
)
def test_soft_edges_make_no_classes(colours, make):
    """Purple lies just between red and blue: their seam must not turn into it."""
    assert agreement(open_labels(make(colours)), truth(colours, 4)) > 0.9


def test_an_edge_between_red_and_blue_is_never_purple():
    big = Image.new("RGB", (640, 640))
    draw = ImageDraw.Draw(big)
    draw.polygon([(40, 40), (300, 40), (360, 400), (40, 400)], fill=RED)
    draw.polygon([(300, 40), (600, 40), (600, 400), (360, 400)], fill=BLUE)
    draw.rectangle([40, 480, 600, 600], fill=PURPLE)
    labels = open_labels(big.resize((160, 160), Image.Resampling.BOX))
    assert set(np.unique(labels)) == {0, 1, 2, 3}
    assert not (labels[:110] == 2).any()  # red 1, purple 2, blue 3


def test_soft_grey_levels_keep_their_ids():
    colours = ((85, 85, 85), (170, 170, 170))
    labels = open_labels(drawing(colours, 4).resize((SIZE, SIZE), Image.Resampling.BOX).convert("L"))
    assert agreement(labels, np.array([0, 85, 170])[truth(colours, 4)]) > 0.9
    assert set(np.unique(open_labels(jpeg(drawing(colours).convert("L"))))) == {
        0,
        1,
        2,
    }  # levels drift: counted


def test_jpeg_black_and_white_without_a_pure_white():
    mask = drawing(((254, 254, 254),)).convert("L")
    np.testing.assert_array_equal(open_labels(jpeg(mask, 100)), truth((WHITE,)))


def test_a_black_jpeg_is_empty_and_jpeg_ids_are_refused():
    assert not open_labels(jpeg(Image.new("L", (64, 64)))).any()
    for mode in ("L", "RGB"):
        with pytest.raises(ImageError, match="JPEG loses ids; save masks as PNG"):
            open_labels(jpeg(drawing(((4, 4, 4), (9, 9, 9))).convert(mode), 95))


def disc(colour, alpha):
    """A disc of one colour, transparent around it."""
    rows, columns = np.indices((64, 64))
    distance = np.hypot(rows - 32, columns - 30)
    opacity = np.clip((20 - distance) * alpha, 0, 255)
    return np.dstack([np.broadcast_to(colour, (64, 64, 3)), opacity]).astype(np.uint8), distance < 20


@pytest.mark.parametrize("alpha", [1e6, 128], ids=["hard", "soft"])
@pytest.mark.parametrize("colour", [RED, WHITE, (0, 0, 0)], ids=["red", "white", "black"])
def test_transparent_is_background(tmp_path, colour, alpha):
    image, inside = disc(colour, alpha)
    Image.fromarray(image).save(tmp_path / "m.png")
    labels = open_labels(tmp_path / "m.png")
    assert agreement(labels, inside.astype(int)) > 0.9
    np.testing.assert_array_equal(open_labels(image), labels)


def test_transparent_grey_and_opaque_colours():
    image, inside = disc(WHITE, 1e6)
    np.testing.assert_array_equal(open_labels(Image.fromarray(image).convert("LA")), inside)
    opaque = np.dstack([np.asarray(drawing((RED, BLUE))), np.full((SIZE, SIZE), 255, np.uint8)])
    np.testing.assert_array_equal(open_labels(opaque), truth((RED, BLUE)))


def test_cmyk_masks():
    labels = open_labels(saved(drawing((RED, BLUE)).convert("CMYK"), format="TIFF"))
    np.testing.assert_array_equal(labels, truth((RED, BLUE)))


def test_find_colours_joins_masks():
    first, second, grey = drawing((RED,)), jpeg(drawing((GREEN, RED)), 90), np.eye(4, dtype=np.uint8)
    table = find_colours([first, grey, second])
    assert list(table) == [0, 1, 2] and table[1] == RED  # the exact red, and the JPEG's red is the same
    assert set(np.unique(open_labels(second, colours=table))) == {0, 1, 2}
    np.testing.assert_array_equal(open_labels(grey, colours=table), grey)
    assert find_colours([grey]) == {}


def test_a_table_may_name_background_and_ignore():
    labels = open_labels(drawing((RED, GREEN, BLUE)), colours={0: RED, 5: GREEN, IGNORE: BLUE, 9: (0, 0, 0)})
    np.testing.assert_array_equal(labels, np.array([9, 0, 5, IGNORE])[truth((RED, GREEN, BLUE))])


def test_a_colour_outside_the_table_is_refused():
    with pytest.raises(ImageError, match=r"1: \(255, 0, 0\).*got \(0, 0, 255\) in \d+ pixels"):
        open_labels(drawing((RED, BLUE)), colours={1: RED})


def photograph():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8))
    return np.asarray(noise.resize((200, 150), Image.Resampling.BICUBIC))


@pytest.mark.parametrize(
    "make", [Image.fromarray, lambda a: jpeg(Image.fromarray(a)), lambda a: a, lambda a: a[..., 0]]
)
def test_a_photograph_is_no_mask(make):
    with pytest.raises(ImageError, match="as in a photograph; give the mask"):
        open_labels(make(photograph()))


def test_too_many_colours(tmp_path):
    rows, columns = np.indices((17, 17))
    pixels = np.stack([rows * 15, columns * 15, rows * 0 + 200], axis=-1).astype(np.uint8)
    Image.fromarray(pixels).resize((136, 136), Image.Resampling.NEAREST).save(tmp_path / "m.png")
    with pytest.raises(ImageError, match=r"m\.png: expected a mask with at most 255 colours"):
        open_labels(tmp_path / "m.png")


@pytest.mark.parametrize(
    ("content", "match"), [(b"", "empty file"), (b"GIF? no", "none"), (b"\x89PNG\r\n\x1a\n", "expected a")]
)
def test_broken_files_are_refused(tmp_path, content, match):
    (tmp_path / "m.png").write_bytes(content)
    with pytest.raises(ImageError, match=match):
        open_labels(tmp_path / "m.png")


DATA = Path(os.environ.get("INCONTEXT_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.mark.skipif(not DATA.is_dir(), reason="needs real masks: set INCONTEXT_DATA")
def test_real_id_masks_are_read_exactly():
    """Thin vessels, touching segments, instances: nothing of it may be taken for a blend."""
    files = [path for folder in sorted(DATA.glob("*/*/masks*")) for path in sorted(folder.glob("*.png"))[:3]]
    assert files
    for path in files:
        values = np.asarray(Image.open(path)).astype(np.int32)
        ids = np.setdiff1d(values, [0, 255])
        expected = np.where(values == 255, IGNORE if len(ids) else 1, values)
        np.testing.assert_array_equal(open_labels(path), expected, err_msg=str(path))
