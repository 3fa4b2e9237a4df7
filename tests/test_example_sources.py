"""Examples from folders, COCO, labelme and other datasets, and how their classes come together."""

import json

import numpy as np
import pytest
from PIL import Image

from incontext.export import FORMATS, FormatError, LabelledImage, write_indexed
from incontext.image import ImageError
from incontext.labeling.example_sources import open_examples

SIZE = (12, 16)


def labels(*ids):
    made = np.zeros(SIZE, np.int32)
    for place, id in enumerate(ids):
        made[2:6, 1 + 4 * place : 4 + 4 * place] = id
    return made


def save_image(path, level=100):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", SIZE[::-1], (level,) * 3).save(path)


def pair(folder, name="a", *ids, classes=None):
    save_image(folder / f"{name}.jpg")
    write_indexed(folder / f"{name}.png", labels(*ids))
    if classes:
        (folder / "classes.txt").write_text("".join(f"{id} {text}\n" for id, text in classes.items()))
    return folder


def test_folders_of_images_and_masks(tmp_path):
    save_image(tmp_path / "one/images/a.jpg")
    save_image(tmp_path / "one/images/d/a.png")
    write_indexed(tmp_path / "one/masks/a.png", labels(1))
    write_indexed(tmp_path / "one/masks/d/a_mask.png", labels(0, 2))
    (tmp_path / "one/classes.txt").write_text("1 round cell\n2 nucleus\n")
    found = open_examples(tmp_path / "one")
    assert [path.relative_to(tmp_path / "one/images").as_posix() for path in found.paths] == ["a.jpg", "d/a.png"]
    assert found.names == {1: "round cell", 2: "nucleus"} and not found.renumbered
    np.testing.assert_array_equal(found.examples[1].labels, labels(0, 2))
    assert all(example.names == found.names for example in found.examples)

    pair(tmp_path / "two", "a", 3)
    save_image(tmp_path / "two/d/b.PNG")
    write_indexed(tmp_path / "two/d/b_mask.png", labels(4))
    found = open_examples([tmp_path / "two"])
    assert [example.ids for example in found.examples] == [(3,), (4,)]
    assert [path.name for path in found.paths] == ["a.jpg", "b.PNG"] and found.names == {}


def test_one_colour_is_one_class_in_a_folder(tmp_path):
    for name, colours in (("a", [(255, 0, 0)]), ("b", [(0, 255, 0), (255, 0, 0)])):
        save_image(tmp_path / f"{name}.jpg")
        mask = np.zeros((*SIZE, 3), np.uint8)
        for place, colour in enumerate(colours):
            mask[2:6, 1 + 6 * place : 6 + 6 * place] = colour
        Image.fromarray(mask).save(tmp_path / f"{name}_mask.png")
    first, second = open_examples(tmp_path).examples
    assert len(first.ids) == 1 and second.labels[3, 8] == first.ids[0] != second.labels[3, 2]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("1 cell\n7 red blood\n", {1: "cell", 7: "red blood"}),
        ("cell\nred blood\n", {1: "cell", 2: "red blood"}),
        ("background\ncell\n\nred blood", {1: "cell", 2: "red blood"}),
        ("0 background\n2 cell", {2: "cell"}),
    ],
)
def test_classes_txt(tmp_path, text, names):
    pair(tmp_path, "a", 2)
    (tmp_path / "classes.txt").write_text("\ufeff" + text, encoding="utf-8")
    assert open_examples(tmp_path, None if 2 in names else {2: "two"}).names == {2: "two"} | names


@pytest.mark.parametrize("document", [{"1": "a", "2": "b"}, {"a": 1, "b": 2}, ["a", "b"], ["background", "a", "b"]])
def test_classes_json(tmp_path, document):
    pair(tmp_path, "a", 1, 2)
    (tmp_path / "classes.json").write_text(json.dumps(document))
    assert open_examples(tmp_path).names == {1: "a", 2: "b"}


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_is_a_source(tmp_path, format):
    items = [
        LabelledImage("a.jpg", labels(2, 5), {2: "x y", 5: "z"}),
        LabelledImage("d/a.jpg", labels(5), {2: "x y", 5: "z"}),
        LabelledImage("none.jpg", labels(), {2: "x y", 5: "z"}),
    ]
    items = items[:2] if format == "png" else items
    FORMATS[format].finish(items, tmp_path / "set", {2: "x y", 5: "z"})
    for item in items:
        save_image(tmp_path / "set" / "images" / item.file_name)
    found = open_examples(tmp_path / "set")
    assert found.names == {2: "x y", 5: "z"} and len(found.examples) == 2
    for example, item in zip(found.examples, items, strict=False):
        np.testing.assert_array_equal(example.labels, item.labels)


def test_a_coco_file_with_images_in_a_folder_beside(tmp_path):
    document = {
        "images": [{"id": 1, "file_name": "x.jpg", "height": SIZE[0], "width": SIZE[1]}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 9, "segmentation": [[1, 2, 4, 2, 4, 6, 1, 6]]},
            {"id": 2, "image_id": 1, "category_id": 4, "segmentation": {"size": SIZE, "counts": [100, 5, 87]}},
        ],
        "categories": [{"id": 4, "name": "c"}, {"id": 9, "name": "d"}],
    }
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/instances.json").write_text(json.dumps(document))
    with pytest.raises(FormatError, match="expected its image x.jpg"):
        open_examples(tmp_path / "annotations/instances.json")
    save_image(tmp_path / "val/x.jpg")
    found = open_examples(tmp_path / "annotations/instances.json")
    assert found.examples[0].ids == (4, 9) and (found.examples[0].labels == 9).sum() == 12
    save_image(tmp_path / "val/x.jpg")
    Image.new("RGB", (5, 5)).save(tmp_path / "val/x.jpg")
    with pytest.raises(FormatError, match=r"expected the size \(H, W\) \(12, 16\)"):
        open_examples(tmp_path / "annotations/instances.json")


def test_a_folder_with_a_coco_file_of_any_name(tmp_path):
    item = LabelledImage("a.jpg", labels(2), {2: "x"})
    FORMATS["coco"].finish([item], tmp_path, {2: "x"})
    (tmp_path / "annotations.json").rename(tmp_path / "_annotations.coco.json")
    save_image(tmp_path / "a.jpg")
    assert open_examples(tmp_path).names == {2: "x"}
    (tmp_path / "more.json").write_bytes((tmp_path / "_annotations.coco.json").read_bytes())
    with pytest.raises(FormatError, match="found _annotations.coco.json, more.json; give the files themselves"):
        open_examples(tmp_path)
    write_indexed(tmp_path / "a.png", labels(7))
    assert open_examples(tmp_path).examples[0].ids == (7,)  # masks that were painted come first


def test_json_without_labels_is_passed_over(tmp_path):
    folder = pair(tmp_path / "a", "p", 1)
    (folder / "camera.json").write_text('{"lens": 50}')
    assert open_examples(folder).examples[0].ids == (1,)


def test_labels_without_their_images_say_where_these_belong(tmp_path):
    item = LabelledImage("a.jpg", labels(2), {2: "x"})
    for format, missing in (("png", "expected images beside the masks"), ("yolo", "which tells the size, found none")):
        FORMATS[format].finish([item], tmp_path / format, {2: "x"})
        with pytest.raises(FormatError, match=f"{missing}.*move or link .* to .*images"):
            open_examples(tmp_path / format)


def test_one_colour_is_one_class_in_several_folders_or_an_error(tmp_path):
    colours = {"red": (250, 0, 0), "green": (0, 250, 0)}

    def painted(name, *shown):
        mask = np.zeros((*SIZE, 3), np.uint8)
        for number, colour in enumerate(shown):
            mask[2:6, 1 + 6 * number : 6 + 6 * number] = colours[colour]
        save_image(tmp_path / name / "a.jpg")
        Image.fromarray(mask).save(tmp_path / name / "a.png")
        return tmp_path / name

    both, same = painted("both", "red", "green"), painted("same", "red", "green")
    assert [example.ids for example in open_examples([both, same])] == [(1, 2), (1, 2)]
    other = painted("other", "green")
    with pytest.raises(FormatError, match="other: expected the colours of .*both, whose id 1 is .250, 0, 0."):
        open_examples([both, other])
    (other / "classes.txt").write_text("1 leaf\n")
    (both / "classes.txt").write_text("1 berry\n2 leaf\n")
    assert [example.ids for example in open_examples([both, other])] == [(1, 2), (2,)]


def test_255_is_unknown_where_other_masks_hold_ids(tmp_path):
    black_and_white = np.where(labels(1) > 0, 255, 0).astype(np.uint8)

    def add(name, mask):
        save_image(tmp_path / f"{name}.jpg")
        Image.fromarray(mask.astype(np.uint8)).save(tmp_path / f"{name}.png")

    add("a", black_and_white)
    assert open_examples(tmp_path).examples[0].ids == (1,)
    add("b", labels(1, 2))
    with pytest.raises(FormatError, match="a.png: expected at least one object, got 0 and 255 alone"):
        open_examples(tmp_path)


def test_classes_merge_by_name(tmp_path):
    a = pair(tmp_path / "a", "p", 1, 2, classes={1: "cell", 2: "nucleus"})
    b = pair(tmp_path / "b", "q", 1, 2, 3, classes={1: "nucleus", 2: "vessel", 3: "cell"})
    found = open_examples([a, b])
    assert found.names == {1: "cell", 2: "nucleus", 3: "vessel"}
    assert found.renumbered == {str(b): {1: 2, 2: 3, 3: 1}}
    np.testing.assert_array_equal(found.examples[1].labels, labels(2, 3, 1))
    assert open_examples([a, b], {1: "nucleus"}).names == {1: "nucleus", 2: "cell", 3: "vessel"}
    given = open_examples([a, b], {5: "cell"})
    assert given.names[5] == "cell" and given.examples[0].labels[3, 2] == 5


def test_names_fill_in_where_sources_have_none(tmp_path):
    a = pair(tmp_path / "a", "p", 1, 2)
    b = pair(tmp_path / "b", "q", 4, classes={4: "vessel"})
    assert open_examples([a, b]).names == {4: "vessel"}
    assert open_examples([a, b], {1: "cell", 2: "vessel"}).renumbered == {str(b): {4: 2}}


def test_conflicts_are_errors(tmp_path):
    a = pair(tmp_path / "a", "p", 1)
    b = pair(tmp_path / "b", "q", 1, classes={1: "vessel"})
    for order in ([a, b], [b, a]):
        with pytest.raises(FormatError, match="expected a name for id 1, which is 'vessel' elsewhere"):
            open_examples(order)
    with pytest.raises(FormatError, match="calls 'vessel', got 'Gefäß'"):
        open_examples(b, {1: "Gefäß"})
    with pytest.raises(FormatError, match="distinct names"):
        open_examples(a, {1: "x", 2: "x"})
    (b / "classes.txt").write_text("1 x\n1 y\n")
    with pytest.raises(FormatError, match="id 1 is both 'x' and 'y'"):
        open_examples(b)


def test_orphans_and_nothing_are_errors(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FormatError, match="found none"):
        open_examples(tmp_path / "empty")
    with pytest.raises(FormatError, match="there is none"):
        open_examples(tmp_path / "nowhere")
    with pytest.raises(FormatError, match="at least one folder"):
        open_examples([])
    folder = pair(tmp_path / "a", "p", 1)
    for k in range(7):
        save_image(folder / f"alone{k}.jpg")
    with pytest.raises(FormatError, match=r"a mask for every image, found none for alone0\.jpg.* and 2 more"):
        open_examples(folder)
    other = pair(tmp_path / "b", "p", 1)
    write_indexed(other / "q_mask.png", labels(1))
    with pytest.raises(FormatError, match="an image for every mask, found none for q_mask.png"):
        open_examples(other)
    third = pair(tmp_path / "c", "p", 1)
    save_image(third / "p.bmp")
    with pytest.raises(FormatError, match="one image and one mask of this name"):
        open_examples(third)
    with pytest.raises(ImageError, match="all background"):
        open_examples(pair(tmp_path / "d", "p"))
    (tmp_path / "e.json").write_text("{}")
    with pytest.raises(FormatError, match="got other JSON"):
        open_examples(tmp_path / "e.json")
    (tmp_path / "f.json").write_text(json.dumps({"images": [], "annotations": [], "categories": []}))
    with pytest.raises(FormatError, match="at least one object"):
        open_examples(tmp_path / "f.json")
