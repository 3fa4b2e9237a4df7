"""Examples and segmentations: what they accept, what they refuse, and how they open files."""

import numpy as np
import pytest
from PIL import Image

from incontext.image import ImageError
from incontext.types import IGNORE, Example, Segmentation


def grey(size=(6, 8)):
    return np.full((*size, 3), 127, np.uint8)


def halves(size=(6, 8), id=1):
    labels = np.zeros(size, np.int32)
    labels[:, : size[1] // 2] = id
    return labels


def test_ids_and_size():
    labels = halves(id=7)
    labels[0, -1], labels[1, -1] = 3, IGNORE
    example = Example(grey(), labels, {3: "cell"})
    assert example.ids == (3, 7)
    assert example.size == (6, 8)
    assert "ids=(3, 7)" in repr(example)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.uint16, np.int64])
def test_labels_become_int32(dtype):
    example = Example(grey(), halves().astype(dtype))
    assert example.labels.dtype == np.int32
    assert example.ids == (1,)


def test_values_are_frozen():
    with pytest.raises(AttributeError):
        Example(grey(), halves()).labels = halves()


@pytest.mark.parametrize(
    ("image", "labels", "error", "match"),
    [
        (grey().astype(np.float32), halves(), TypeError, "uint8 array .* got float32"),
        ("a.jpg", halves(), TypeError, "got str"),
        (grey()[..., 0], halves(), ValueError, r"\(H, W, 3\), got \(6, 8\)"),
        (grey(), halves((5, 8)), ValueError, r"\(6, 8\) like the image, got \(5, 8\)"),
        (grey(), halves().astype(float), TypeError, "integer array .* got float64"),
        (grey(), halves() - 2, ValueError, "from -2 to -1"),
    ],
)
def test_example_refuses(image, labels, error, match):
    with pytest.raises(error, match=match):
        Example(image, labels)


def test_names_need_ids():
    with pytest.raises(TypeError, match="'cell'"):
        Example(grey(), halves(), {"cell": 1})


def test_segmentation():
    labels = halves(id=2)
    result = Segmentation(labels, np.ones((6, 8)), grey(), {2: np.float32(0.5)}, {2: "cell"})
    assert result.ids == (2,)
    assert result.confidence.dtype == np.float32
    assert result.scores == {2: 0.5}
    np.testing.assert_array_equal(result.mask(2), labels == 2)
    assert not result.mask(9).any()


@pytest.mark.parametrize(
    ("labels", "confidence", "error", "match"),
    [
        (halves((5, 8)), np.ones((6, 8)), ValueError, "labels"),
        (halves(), np.ones((5, 8)), ValueError, "confidence"),
        (halves(), np.ones((6, 8), int), TypeError, "confidence"),
    ],
)
def test_segmentation_refuses(labels, confidence, error, match):
    with pytest.raises(error, match=match):
        Segmentation(labels, confidence, grey())


def test_open_reads_files(tmp_path):
    Image.fromarray(grey()).save(tmp_path / "a.png")
    Image.fromarray((halves() * 255).astype(np.uint8)).save(tmp_path / "m.png")
    example = Example.open(tmp_path / "a.png", tmp_path / "m.png", names={1: "cell"})
    np.testing.assert_array_equal(example.image, grey())
    np.testing.assert_array_equal(example.labels, halves())
    assert example.names == {1: "cell"}


def test_open_takes_arrays_and_pil_images():
    example = Example.open(Image.fromarray(grey()), halves().astype(bool))
    assert example.ids == (1,)


def test_open_refuses_an_empty_mask(tmp_path):
    Image.new("L", (8, 6)).save(tmp_path / "m.png")
    with pytest.raises(ImageError, match=r"m\.png: expected at least one object"):
        Example.open(grey(), tmp_path / "m.png")


def test_open_says_both_sizes(tmp_path):
    Image.fromarray(grey()).save(tmp_path / "a.png")
    Image.fromarray(halves((6, 9)).astype(np.uint8)).save(tmp_path / "m.png")
    with pytest.raises(ImageError, match=r"m\.png: .*8 x 6 .*a\.png, got 9 x 6; export"):
        Example.open(tmp_path / "a.png", tmp_path / "m.png")


def test_open_explains_a_mask_on_its_side(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(grey()).save(tmp_path / "a.jpg", exif=exif)
    Image.fromarray(halves().astype(np.uint8)).save(tmp_path / "m.png")
    with pytest.raises(ImageError, match="6 x 8 .* got 8 x 6; it lies on its side: EXIF"):
        Example.open(tmp_path / "a.jpg", tmp_path / "m.png")
    turned = np.rot90(halves(), -1).astype(np.uint8)
    assert Example.open(tmp_path / "a.jpg", turned).size == (8, 6)


def test_open_many_gives_one_colour_one_id(tmp_path):
    red, green = (250, 10, 10), (10, 250, 10)
    both, alone = np.zeros((6, 8, 3), np.uint8), np.zeros((6, 8, 3), np.uint8)
    both[:, :3], both[:, 5:] = red, green
    alone[:, :3] = green
    first, second = Example.open_many([(grey(), both), (grey(), alone)])
    assert first.ids == (1, 2)
    assert second.ids == (2,)  # alone, the mask would number its only colour 1
    assert Example.open(grey(), alone).ids == (1,)
    assert Example.open(grey(), alone, colours={5: green}).ids == (5,)
