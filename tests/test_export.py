"""Files out: whole or not at all, readable back, and good to look at."""

import os
import stat

import numpy as np
import pytest
from PIL import Image

from incontext.atomic import replacing
from incontext.export import (
    Card,
    contact_sheet,
    display_colour,
    lay_out,
    overlay,
    write_image,
    write_indexed,
)
from incontext.export.lettering import lettering
from incontext.image import open_image, open_labels
from incontext.palette import voc_colours
from incontext.types import IGNORE, Example, Segmentation


def grey(size=(30, 40), level=100):
    return np.full((*size, 3), level, np.uint8)


def square(size=(30, 40), id=1):
    labels = np.zeros(size, np.int32)
    labels[8:22, 10:30] = id
    return labels


@pytest.mark.parametrize("values", [[0, 1, 2], [0, 7, 254, IGNORE], [0, 300, 65534, IGNORE], [IGNORE, 0], [0]])
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_indexed_pngs_are_a_round_trip(tmp_path, values, dtype):
    labels = np.array(values, dtype)[np.random.default_rng(0).integers(0, len(values), (20, 30))]
    write_indexed(tmp_path / "deep" / "m.png", labels)
    np.testing.assert_array_equal(open_labels(tmp_path / "deep" / "m.png"), labels)


def test_indexed_pngs_follow_voc(tmp_path):
    labels = np.array([[0, 1, 15, IGNORE]], np.int32)
    write_indexed(tmp_path / "m.png", labels)
    with Image.open(tmp_path / "m.png") as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image), [[0, 1, 15, 255]])
        np.testing.assert_array_equal(np.asarray(image.convert("RGB"))[0], voc_colours()[[0, 1, 15, 255]])
    as_colours = open_image(tmp_path / "m.png")  # and what another program turned to RGB reads the same
    np.testing.assert_array_equal(open_labels(as_colours), labels)
    write_indexed(tmp_path / "m.png", labels + 300)
    with Image.open(tmp_path / "m.png") as image:
        np.testing.assert_array_equal(np.asarray(image), [[300, 301, 315, 299]])


@pytest.mark.parametrize(
    ("name", "labels", "match"),
    [
        ("m.jpg", square(), r"m\.jpg: expected a file that ends in \.png"),
        ("m.png", square() * 1.0, "integer labels"),
        ("m.png", square()[None], r"\(1, 30, 40\)"),
        ("m.png", square() - 2, "got -2 to -1"),
        ("m.png", square(id=65535), "renumber"),
    ],
)
def test_indexed_pngs_refuse(tmp_path, name, labels, match):
    with pytest.raises(ValueError, match=match):
        write_indexed(tmp_path / name, labels)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("suffix", "tolerance"), [("png", 0), ("bmp", 0), ("tif", 0), ("jpg", 2), ("webp", 2)])
def test_images_are_written(tmp_path, suffix, tolerance):
    for image in (grey(), grey()[..., 0]):
        write_image(tmp_path / f"a.{suffix}", image)
        assert np.abs(open_image(tmp_path / f"a.{suffix}").astype(int) - 100).max() <= tolerance
    assert [path.name for path in tmp_path.iterdir()] == [f"a.{suffix}"]


@pytest.mark.parametrize(
    ("name", "image", "match"),
    [("a.xyz", grey(), "suffix"), ("a", grey(), "suffix"), ("a.png", grey().astype(float), "uint8")],
)
def test_images_refuse(tmp_path, name, image, match):
    with pytest.raises(ValueError, match=match):
        write_image(tmp_path / name, image)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as draft:
        draft.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    with replacing(path) as draft:
        assert draft.parent == tmp_path and draft.suffix == ".txt"
        draft.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_written_files_have_ordinary_permissions(tmp_path):
    write_indexed(tmp_path / "m.png", square())
    (tmp_path / "plain").touch()
    assert stat.S_IMODE((tmp_path / "m.png").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_overlay_tints_outlines_and_leaves_the_rest():
    image, labels = grey(), square()
    before = image.copy()
    drawn = overlay(image, labels, colours={1: (200, 0, 0)}, opacity=0.5)
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(drawn[15, 20], [150, 50, 50])
    np.testing.assert_array_equal(drawn[8, 20], [200, 0, 0])
    assert (drawn[labels == 0] == 100).all()
    plain = overlay(image, labels, colours={1: (200, 0, 0)}, opacity=0.5, outline=False)
    np.testing.assert_array_equal(plain[8, 20], [150, 50, 50])


def test_overlay_hatches_what_is_ignored():
    drawn = overlay(grey(), square(id=IGNORE))
    inside = drawn[square() > 0][:, 0]
    assert set(inside) == {100, 194}
    assert (drawn[square() == 0] == 100).all()


def test_overlay_refuses():
    with pytest.raises(ValueError, match=r"\(30, 40\) like the image, got \(30, 41\)"):
        overlay(grey(), square((30, 41)))
    with pytest.raises(ValueError, match="opacity"):
        overlay(grey(), square(), opacity=2)


def test_display_colours_can_be_told_apart():
    colours = np.array([display_colour(i) for i in range(25)], float)
    gaps = np.linalg.norm(colours[:, None] - colours[None], axis=-1)[np.triu_indices(25, k=1)]
    assert gaps.min() > 45
    assert display_colour(1) == display_colour(1) and len(display_colour(10**9)) == 3


def segmentation(size=(30, 40), id=1):
    return Segmentation(square(size, id), np.ones(size, np.float32), grey(size), {id: 0.75}, {id: "cell"})


def holds(sheet, colour):
    return (sheet == np.array(colour, np.uint8)).all(axis=-1).any()


def test_a_contact_sheet_shows_examples_and_results():
    example = Example(grey(level=60), square(id=2), {2: "dish"})
    sheet = contact_sheet([example], [(grey(level=200), segmentation())], title="Page", height=120, width=700)
    assert sheet.dtype == np.uint8 and sheet.ndim == 3 and sheet.shape[1] <= 700
    for colour in ((60, 60, 60), (200, 200, 200), display_colour(1), display_colour(2)):
        assert holds(sheet, colour)
    titled = contact_sheet(
        [example],
        [(grey(level=200), segmentation())],
        title="Page",
        result_titles=["a.png"],
        height=120,
        width=700,
    )
    assert titled.shape[0] > sheet.shape[0]


def test_letters_that_no_font_has_are_spelled_without_accents(monkeypatch):
    text, font = lettering("cell 1…", 15)
    assert text == "cell 1…" and font is lettering("nucleus", 15)[1]
    monkeypatch.setattr("incontext.export.lettering._OTHERS", ())
    assert lettering("Größe, café, \u03b1, \u7d30", 15) == ("Gro?e, cafe, ?, ?", font)


def test_letters_come_from_a_font_that_has_them():
    path = pytest.importorskip("matplotlib").get_data_path() + "/fonts/ttf/DejaVuSans.ttf"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("incontext.export.lettering._OTHERS", ("no such font.ttf", path))
        text, font = lettering("Größe \u03b1", 15)
    assert text == "Größe \u03b1" and font.getname()[0] == "DejaVu Sans"


def test_a_contact_sheet_draws_truths_and_stops_at_its_limit():
    results = [(grey(level=200), segmentation())] * 5
    truths = [square(id=4)] + [None] * 4
    sheet = contact_sheet([], results, truths=truths, limit=1, height=120)
    assert holds(sheet, display_colour(4))
    assert contact_sheet([], results, limit=5, height=120).shape[0] >= sheet.shape[0]


def test_extreme_cards_fit():
    cards = [
        Card(
            [grey((3, 900))],
            "a very long title " * 20,
            [(display_colour(i), f"name {i}") for i in range(1, 90)],
        ),
        Card([grey((900, 3)), grey((900, 900))], "tall", [((1, 2, 3), "w" * 400)]),
        Card([grey((1, 1))] * 3),
    ]
    sheet = lay_out([("Heading " * 40, "note " * 90, cards)], title="title " * 90, width=600)
    assert sheet.shape[1] <= 600
    assert holds(sheet, (1, 2, 3))


def test_an_empty_page_is_still_a_page():
    assert contact_sheet([], [], title="Nothing").shape[2] == 3
    assert contact_sheet([], []).shape[2] == 3
    nothing = Segmentation(square(id=0), np.ones((30, 40), np.float32), grey())
    assert contact_sheet([], [(grey(), nothing)]).shape[0] > 200
