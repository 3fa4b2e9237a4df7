"""Segmentations go into datasets, one by one or many at once."""

import numpy as np
import pytest

import incontext as ic
from incontext.export import FORMATS


def segmentation(id=1, name="cell", size=(12, 16), score=0.5):
    labels = np.zeros(size, np.int32)
    labels[2:5, 3:9], labels[8:10, 3:9] = id, id
    return ic.Segmentation(labels, np.ones(size, np.float32), np.zeros((*size, 3), np.uint8), {id: score}, {id: name})


@pytest.mark.parametrize("format", sorted(set(FORMATS) - {"yolo"}))
def test_one_by_one_is_all_at_once(tmp_path, format):
    names = ["a.jpg", "d/a.jpg", "b.png"]
    for name in names:
        ic.write_dataset(segmentation(), tmp_path / "one", file_name=name, format=format)
    ic.write_dataset((segmentation() for _ in names), tmp_path / "all", file_name=names, format=format)
    found = [list(ic.read_dataset(tmp_path / folder, format=format)) for folder in ("one", "all")]
    for items in found:
        assert sorted(item.file_name for item in items) == sorted(names)
        for item in items:
            np.testing.assert_array_equal(item.labels, segmentation().labels)
            assert item.name(1) == "cell"


@pytest.mark.parametrize("format", sorted(set(FORMATS) - {"yolo"}))
def test_images_of_one_stem_stay_apart_when_others_join(tmp_path, format):
    heights = {"a.jpg": 12, "a.png": 13, "b.jpg": 14}
    for names in (["a.jpg", "a.png"], ["b.jpg"], ["a.jpg"], ["a.png"]):
        given = [segmentation(size=(heights[name], 16)) for name in names]
        ic.write_dataset(given, tmp_path, file_name=names, format=format)
    found = [(item.file_name, item.size[0]) for item in ic.read_dataset(tmp_path, format=format)]
    assert sorted(found) == sorted(heights.items())


def test_masks_that_change_their_image_are_read_first(tmp_path):
    names = ["x.jpg", "y.jpg"]
    ic.write_dataset([segmentation(), segmentation(size=(13, 16))], tmp_path, file_name=names, format="png")
    (tmp_path / "images.csv").write_text("image,mask\nx.jpg,y.png\ny.jpg,x.png\n")
    ic.write_dataset(segmentation(), tmp_path, file_name="z.jpg", format="png")
    found = {item.file_name: item.size[0] for item in ic.read_dataset(tmp_path, format="png")}
    assert found == {"x.jpg": 13, "y.jpg": 12, "z.jpg": 12}


def test_an_image_is_replaced_and_classes_merge_by_name(tmp_path):
    ic.write_dataset(segmentation(), tmp_path, file_name="a.jpg")
    ic.write_dataset(segmentation(id=5, name="cell"), tmp_path, file_name="b.jpg")
    ic.write_dataset(segmentation(id=1, name="nucleus"), tmp_path, file_name="c.jpg")
    ic.write_dataset(segmentation(score=0.75), tmp_path, file_name="a.jpg", instances=True)
    found = {item.file_name: item for item in ic.read_dataset(tmp_path)}
    assert {name: item.ids for name, item in found.items()} == {"a.jpg": (1,), "b.jpg": (1,), "c.jpg": (2,)}
    assert found["a.jpg"].names == {1: "cell", 2: "nucleus"}
    assert found["a.jpg"].instance_scores == {1: 0.75, 2: 0.75} and found["b.jpg"].instance_scores == {1: 0.5}


@pytest.mark.parametrize("format", ["png", "voc"])
def test_objects_of_an_earlier_mask_are_forgotten(tmp_path, format):
    ic.write_dataset(segmentation(), tmp_path, file_name="a.jpg", format=format, instances=True)
    assert next(ic.read_dataset(tmp_path, format=format)).instances is not None
    ic.write_dataset(segmentation(size=(14, 20)), tmp_path, file_name="a.jpg", format=format)
    ic.write_dataset(segmentation(), tmp_path, file_name="b.jpg", format=format, instances=True)
    found = {item.file_name: item.instances for item in ic.read_dataset(tmp_path, format=format)}
    assert found["a.jpg"] is None and found["b.jpg"].max() == 2


def test_it_refuses(tmp_path):
    with pytest.raises(ValueError, match="expected one of coco, .*got 'cocoa'"):
        ic.write_dataset(segmentation(), tmp_path, file_name="a.jpg", format="cocoa")
    with pytest.raises(ValueError, match="expected one of coco"):
        ic.read_dataset(tmp_path, format="cocoa")
    with pytest.raises(ValueError, match="zip"):
        ic.write_dataset([segmentation()] * 2, tmp_path, file_name=["a.jpg"])
    assert not list(tmp_path.iterdir())
