"""Every format is a round trip, but for what it says that it cannot hold."""

import json
from dataclasses import replace

import numpy as np
import pytest
from datasets import NAMES, items, masks, read, write
from PIL import Image

from incontext.export import FORMATS, FormatError, LabelledImage, LabelledObject, split_instances
from incontext.export.file_names import LabelFiles
from incontext.types import IGNORE

WITH_IGNORED = {"png", "voc", "labelme"}
WITH_HOLES = set(FORMATS) - {"yolo"}
WITH_SCORES = {"coco", "coco-polygons", "coco-panoptic", "labelme", "label-studio"}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("split", [False, True])
def test_round_trip(tmp_path, format, split):
    dataset = items(holes=format in WITH_HOLES, ignored=format in WITH_IGNORED)
    if split:
        dataset = [split_instances(item) for item in dataset]
    found = read(format, write(format, tmp_path, dataset))
    assert set(found) == {item.file_name for item in dataset}
    for item in dataset:
        back = found[item.file_name]
        np.testing.assert_array_equal(back.labels, item.labels)
        assert {id: back.name(id) for id in back.ids} == {id: NAMES[id] for id in item.ids}
        if split:
            assert masks(back) == masks(item)
            if format in WITH_SCORES:
                assert sorted(back.instance_scores.values()) == sorted(item.instance_scores.values())


@pytest.mark.parametrize("format", FORMATS)
def test_an_unannounced_class_and_missing_names(tmp_path, format):
    labels = np.zeros((9, 9), int)
    labels[1:3, 1:3], labels[5:8, 5:8] = 2, 9
    write(format, tmp_path, [LabelledImage("x.png", labels)])
    back = read(format, tmp_path)["x.png"]
    np.testing.assert_array_equal(back.labels, labels)
    assert [back.name(id) for id in back.ids] == ["class 2", "class 9"]


@pytest.mark.parametrize("format", FORMATS)
def test_an_empty_dataset(tmp_path, format):
    FORMATS[format].finish([], tmp_path, {})
    assert (tmp_path / FORMATS[format].document).is_file()
    assert not list(tmp_path.rglob(".*")), "drafts are left"


@pytest.mark.parametrize("format", sorted(set(FORMATS) - {"yolo"}))
def test_names_that_differ_in_their_suffix_only(tmp_path, format):
    dataset = [replace(items()[0], file_name="d/a.png"), replace(items()[2], file_name="d/a.jpg")]
    if format == "labelme":
        write(format, tmp_path, dataset)
    else:
        FORMATS[format].finish(dataset, tmp_path, NAMES)
    found = read(format, tmp_path)
    for item in dataset:
        np.testing.assert_array_equal(found[item.file_name].labels, item.labels)


@pytest.mark.parametrize("format", ["png", "labelme"])
def test_an_image_is_written_alone(tmp_path, format):
    item = split_instances(items()[1])
    FORMATS[format].write_image(item, tmp_path)
    (found,) = FORMATS[format].read(tmp_path)
    if format == "png":  # without its list, a mask does not know its image's suffix
        found = replace(found, file_name="sub/a.jpg")
    assert found.file_name == item.file_name and len(masks(found)) == len(masks(item))


@pytest.mark.parametrize(
    "format, draft, lists",
    [
        ("labelme", ".a.0123456789ab.json", []),
        ("yolo", "labels/.a.0123456789ab.txt", []),
        ("png", "masks/.a.0123456789ab.png", ["images.csv"]),
        ("voc", "SegmentationClass/.a.0123456789ab.png", ["ImageSets/Segmentation/trainval.txt"]),
        ("voc", "ImageSets/Segmentation/.trainval.0123456789ab.txt", []),
    ],
)
def test_what_a_killed_run_left_is_passed_over(tmp_path, format, draft, lists):
    write(format, tmp_path, items())
    for name in lists:
        (tmp_path / name).unlink()
    (tmp_path / draft).write_text("{cut")
    assert len(read(format, tmp_path)) == 4


def test_images_that_were_missing_are_found_once_they_are_there(tmp_path):
    write("yolo", tmp_path, items())
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    with pytest.raises(FormatError, match="move or link"):
        read("yolo", tmp_path)
    (tmp_path / "elsewhere").rename(tmp_path / "images")
    assert len(read("yolo", tmp_path)) == 4


def test_coco_ids_stay_when_written_again(tmp_path):
    documents = []
    for _ in range(2):
        write("coco", tmp_path, items())
        documents.append(json.loads((tmp_path / "annotations.json").read_text()))
    assert documents[0] == documents[1]
    assert [category["id"] for category in documents[0]["categories"]] == [3, 7, 12, 40]
    assert [image["id"] for image in documents[0]["images"]] == [1, 2, 3, 4]
    assert [each["id"] for each in documents[0]["annotations"]] == list(range(1, 10))


def test_coco_polygons_are_polygons_where_they_can_be(tmp_path):
    write("coco-polygons", tmp_path, [split_instances(items()[0])])
    kinds = [
        type(each["segmentation"]) for each in json.loads((tmp_path / "annotations.json").read_text())["annotations"]
    ]
    assert kinds.count(dict) == 1 and kinds.count(list) == 5


def test_categories_from_zero_move_up(tmp_path):
    document = {
        "images": [{"id": 0, "file_name": "x.jpg", "height": 4, "width": 5}],
        "annotations": [{"id": 0, "image_id": 0, "category_id": 0, "segmentation": [[1, 1, 3, 1, 3, 3, 1, 3]]}],
        "categories": [{"id": 0, "name": "a"}, {"id": 1, "name": "b"}],
    }
    (tmp_path / "c.json").write_text(json.dumps(document))
    (found,) = FORMATS["coco"].read(tmp_path / "c.json")
    assert found.ids == (1,) and found.names == {1: "a", 2: "b"} and (found.labels > 0).sum() == 4


def test_small_objects_lie_on_large_ones_in_coco(tmp_path):
    large, small = np.zeros((2, 8, 8), bool)
    large[1:7, 1:7], small[2:4, 2:4] = True, True
    item = LabelledImage.from_objects("x.jpg", (8, 8), [LabelledObject(1, large), LabelledObject(2, small)], {})
    assert item.instance_classes == {1: 1, 2: 2} and (item.labels == 2).sum() == 4
    hidden = LabelledImage.from_objects("x.jpg", (8, 8), [LabelledObject(2, small), LabelledObject(1, large)], {})
    assert hidden.instance_classes == {1: 1} and hidden.ids == (1,)


def test_yolo_says_what_it_loses(tmp_path, caplog):
    dataset = items()
    joined = dataset[0].labels == 12
    joined[28, 20] = True  # one object in two parts
    labels = np.where(joined, 12, dataset[0].labels)
    in_parts = LabelledImage(
        "p.jpg", labels, instances=joined.astype(int) + 2 * ((labels > 0) & ~joined & (labels == 3))
    )
    write("yolo", tmp_path, [*dataset, in_parts, replace(dataset[0], file_name="a.png")])
    assert "4 holes are filled" in caplog.text and "1 images lose their ignored pixels" in caplog.text
    assert "1 parts became objects" in caplog.text and "1 images are left out" in caplog.text
    (tmp_path / "images/a.png").unlink()
    back = read("yolo", tmp_path)["a.jpg"]
    hole = (slice(6, 9), slice(8, 12))
    assert set(np.unique(back.labels[hole])) == {3, 7}  # filled, and the object in it is still there
    back.labels[hole] = dataset[0].labels[hole]
    np.testing.assert_array_equal(back.labels, dataset[0].labels)
    assert (tmp_path / "labels/sub/b c, d.txt").read_text() == ""


def test_voc_keeps_ignored_pixels_and_refuses_ids_above_254(tmp_path):
    write("voc", tmp_path, [split_instances(items()[1])])
    for folder in ("SegmentationClass", "SegmentationObject"):
        with Image.open(tmp_path / folder / "sub/a.png") as image:
            assert image.mode == "P"
            np.testing.assert_array_equal(np.asarray(image) == 255, items()[1].labels == IGNORE)
    with pytest.raises(ValueError, match="up to 254, got 300"):
        FORMATS["voc"].finish([LabelledImage("x.jpg", np.full((3, 3), 300))], tmp_path / "new", {})


def test_voc_keeps_the_largest_254_objects(tmp_path, caplog):
    labels = np.zeros((40, 60), int)
    labels[::2, ::2] = 5  # 600 objects
    labels[30, 1] = 5  # which joins two of them
    item = split_instances(LabelledImage("x.jpg", labels))
    write("voc", tmp_path, [item, items()[0]])
    assert "objects are left out" in caplog.text
    with Image.open(tmp_path / "SegmentationObject/x.png") as image:
        assert image.mode == "P" and np.asarray(image)[30, 0] not in (0, 255)
        assert set(np.unique(image)) == {0, *range(1, 255), 255}
        np.testing.assert_array_equal(np.asarray(image) > 0, labels > 0)  # the others are no background
    back = read("voc", tmp_path)
    np.testing.assert_array_equal(back["x.jpg"].labels, labels)
    assert len(back["x.jpg"].instance_classes) == 254 and len(back) == 2


def test_panoptic_ids_are_base_256(tmp_path):
    labels = np.zeros((40, 40), int)
    labels[::2, ::2] = 5  # 400 objects
    write("coco-panoptic", tmp_path, [split_instances(LabelledImage("x.jpg", labels))])
    document = json.loads((tmp_path / "panoptic.json").read_text())
    (annotation,) = document["annotations"]
    pixels = np.asarray(Image.open(tmp_path / "panoptic" / annotation["file_name"])).astype(int)
    ids = pixels[..., 0] + 256 * pixels[..., 1] + 65536 * pixels[..., 2]
    assert len(annotation["segments_info"]) == 400 and set(np.unique(ids)) == {0, *range(1, 401)}
    for info in annotation["segments_info"]:
        rows, columns = np.nonzero(ids == info["id"])
        assert info["area"] == len(rows) and info["bbox"] == [columns.min(), rows.min(), 1, 1]
    assert document["categories"][-1] == {"id": 5, "name": "class 5", "supercategory": "", "isthing": 1}


def test_labels_refuse_what_no_format_could_hold():
    labels = np.ones((4, 4), int)
    for name in ("/a.jpg", "../a.jpg", "", "a/../../b.jpg"):
        with pytest.raises(ValueError, match="file_name"):
            LabelledImage(name, labels)
    with pytest.raises(ValueError, match="inside its own class, but object 1"):
        LabelledImage("a.jpg", np.array([[1, 2]]), instances=np.array([[1, 1]]))
    with pytest.raises(ValueError, match="inside its own class"):
        LabelledImage("a.jpg", np.array([[1, 0]]), instances=np.array([[1, 2]]))
    with pytest.raises(ValueError, match="inside its own class"):
        LabelledImage("a.jpg", np.array([[1]]), instances=np.array([[1]]), instance_classes={1: 2})
    with pytest.raises(ValueError, match=r"labels \(H, W\)"):
        LabelledImage("a.jpg", np.ones((2, 2, 2), int))


def test_splitting_by_connected_parts():
    split = split_instances(items()[0])
    assert split.instance_classes == {1: 3, 2: 7, 3: 7, 4: 7, 5: 7, 6: 12}
    assert split.instance_scores == {1: 0.5, 2: 0.25, 3: 0.25, 4: 0.25, 5: 0.25}
    np.testing.assert_array_equal(split.instances > 0, split.labels > 0)
    large = split_instances(items()[0], min_area=2)
    assert large.instance_classes == {1: 3, 2: 7, 3: 12}
    np.testing.assert_array_equal(large.instances > 0, large.labels > 0)
    assert (items()[0].labels > 0).sum() - (large.labels > 0).sum() == 3


def test_label_files_never_collide():
    files = LabelFiles(".png")
    names = ["a.jpg", "A.png", "a.png", "a-png.jpg", "d/a.jpg", "a.jpg"]
    claimed = [files.claim(name) for name in names]
    assert claimed[0] == claimed[-1] == "a.png" and claimed[4] == "d/a.png"
    assert len({name.casefold() for name in claimed}) == 5


BROKEN = {
    "coco": ("annotations.json", {"images": [{"id": 1}], "annotations": [], "categories": []}),
    "coco-panoptic": ("panoptic.json", {"images": []}),
    "labelme": ("a.json", {"shapes": [{"label": "x"}], "imagePath": "a.jpg", "imageHeight": 3, "imageWidth": 3}),
    "label-studio": ("tasks.json", [{"data": {"image": "a.jpg"}}]),
    "yolo": ("data.yaml", ["no", "names"]),
}


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_missing_or_broken_is_one_clear_error(tmp_path, format):
    with pytest.raises(FormatError, match=r"expected .*(found none|cannot be read)"):
        list(FORMATS[format].read(tmp_path / "nothing"))
    root = write(format, tmp_path / "whole", items())
    for file in sorted(path for path in root.rglob("*") if path.is_file() and "images" not in path.parts):
        content = file.read_bytes()
        for bad in (b"", content[: len(content) // 2], b"\x00\xff{"):
            file.write_bytes(bad)
            try:
                list(FORMATS[format].read(root))
            except FormatError as error:
                assert "expected" in str(error) and str(root) in str(error)
        file.write_bytes(content)
    if format in BROKEN:
        name, document = BROKEN[format]
        (tmp_path / "bad/labels").mkdir(parents=True)
        (tmp_path / "bad/labels/a.txt").write_text("0 0.5 0.5 0.1 0.1\n")
        (tmp_path / "bad" / name).write_text(json.dumps(document))
        with pytest.raises(FormatError, match="expected"):
            list(FORMATS[format].read(tmp_path / "bad"))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"segmentation": []}, "got a box only"),
        ({"segmentation": {"size": [9, 9], "counts": [81]}}, r"size \[9, 9\]"),
        ({"segmentation": {"size": [4, 5], "counts": [7]}}, "runs of 7 pixels"),
        ({"image_id": 9}, "an image with id 9"),
    ],
)
def test_coco_refuses(tmp_path, change, match):
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[1, 1, 3, 1, 3, 3]], "bbox": [1, 1, 2, 2]}
    document = {
        "images": [{"id": 1, "file_name": "x.jpg", "height": 4, "width": 5}],
        "annotations": [annotation | change],
        "categories": [{"id": 1, "name": "a"}],
    }
    (tmp_path / "annotations.json").write_text(json.dumps(document))
    with pytest.raises(FormatError, match=match):
        list(FORMATS["coco"].read(tmp_path))
