"""Foreign layouts become packs: COCO, panoptic, VOC, ADE and DAVIS, in miniature."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from small_sets import write

from incontext.cli.main import main
from incontext.palette import voc_colours
from incontext.picture_file import ImageError
from incontext.training.coco_sources import PanopticMap
from incontext.training.devkit_sources import davis_items, voc_items
from incontext.training.pack import Pack
from incontext.training.pack_writer import SIDES, fit_side, limit_sets, pack_folders, write_pack
from incontext.training.sources import list_sets, stack_objects

SIZE = (24, 32)


def picture(seed):
    return np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), np.uint8)


def indexed(path, ids):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(ids)
    image.putpalette(voc_colours().tobytes())
    image.save(path)


@pytest.fixture
def ids():
    """Class 3 and class 7, an ignored corner."""
    ids = np.zeros(SIZE, np.uint8)
    ids[2:12, 4:14] = 3
    ids[14:22, 18:30] = 7
    ids[:2, -2:] = 255
    return ids


def test_coco_instances(tmp_path, capsys):
    pytest.importorskip("pycocotools")
    from pycocotools import mask as rle

    square = [4, 2, 14, 2, 14, 12, 4, 12]  # x, y
    second = np.zeros(SIZE, bool)
    second[6:20, 10:28] = True
    packed = rle.encode(np.asfortranarray(second.astype(np.uint8)))
    packed["counts"] = packed["counts"].decode()
    crowd = np.zeros(SIZE, np.uint8)
    crowd[22:, :] = 1
    runs = [int(n) for n in np.diff(np.flatnonzero(np.diff(np.r_[2, crowd.T.ravel(), 2])))]
    content = {
        "images": [{"id": 5, "file_name": "a.png"}, {"id": 6, "file_name": "empty.png"}],
        "categories": [{"id": 1, "name": "one"}, {"id": 90, "name": "ninety"}],
        "annotations": [
            {"image_id": 5, "category_id": 90, "segmentation": [square]},
            {"image_id": 5, "category_id": 1, "segmentation": packed},
            {"image_id": 5, "category_id": 1, "iscrowd": 1, "segmentation": {"size": list(SIZE), "counts": runs}},
        ],
    }
    write(tmp_path / "images" / "a.png", picture(0))
    (tmp_path / "a.json").write_text(json.dumps(content))
    command = ["train", "pack", "--coco", "mine", str(tmp_path / "a.json"), str(tmp_path / "images")]
    assert main([*command, "-o", str(tmp_path / "a.pack")]) == 0
    record = Pack(tmp_path / "a.pack")[0]
    truth = np.where(crowd, 255, 0)
    truth[second] = 1
    truth[2:12, 4:14] = 90  # the smaller lies on top
    assert np.array_equal(record.labels, truth)
    assert np.array_equal(np.unique(record.instances), [0, 1, 2, 255])
    assert np.array_equal(record.instances == 2, truth == 90)
    content["annotations"][0].pop("segmentation")
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert main([*command, "-o", str(tmp_path / "b.pack")]) == 2
    assert "has no segmentation" in capsys.readouterr().err


def test_coco_panoptic(tmp_path):
    numbers = np.zeros(SIZE, np.int64)
    numbers[:8], numbers[8:16], numbers[16:, :10], numbers[16:, 10:20] = 70000, 300, 5, 6
    colours = np.stack([numbers % 256, numbers // 256 % 256, numbers // 65536], -1).astype(np.uint8)
    write(tmp_path / "maps" / "a.png", colours)
    write(tmp_path / "images" / "a.jpg", picture(1))
    segments = [
        {"id": 70000, "category_id": 400},
        {"id": 300, "category_id": 2},
        {"id": 5, "category_id": 2},
        {"id": 6, "category_id": 2, "iscrowd": 1},
    ]
    content = {
        "images": [{"id": 1, "file_name": "a.jpg"}],
        "categories": [{"id": 2, "isthing": 1}, {"id": 400, "isthing": 0}],
        "annotations": [{"image_id": 1, "file_name": "a.png", "segments_info": segments}],
    }
    (tmp_path / "p.json").write_text(json.dumps(content))
    sources = ["pan", str(tmp_path / "p.json"), str(tmp_path / "maps"), str(tmp_path / "images")]
    assert main(["train", "pack", "--panoptic", *sources, "-o", str(tmp_path / "p.pack")]) == 0
    record = Pack(tmp_path / "p.pack")[0]
    expected = np.zeros(SIZE, np.uint8)  # ids beyond a byte: categories are numbered in their order
    expected[:8], expected[8:16], expected[16:, :10], expected[16:, 10:20] = 2, 1, 1, 255
    assert np.array_equal(record.labels, expected)
    assert np.array_equal(record.instances > 0, expected != np.where(expected == 2, 2, 0))
    assert len(np.unique(record.instances)) == 4  # background, two things, the crowd


def test_a_broken_panoptic_map_is_named(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)).save(path)
    path.write_bytes(b"xx\0\1".join(path.read_bytes().rsplit(b"IDAT", 2)))  # which Pillow calls a syntax error
    with pytest.raises(ImageError, match="a.png: expected a whole PNG picture, got a damaged or truncated one"):
        PanopticMap(path, [], {}, frozenset())((200, 300))


def test_voc(tmp_path, ids):
    write(tmp_path / "JPEGImages" / "x.jpg", picture(2))
    indexed(tmp_path / "SegmentationClass" / "x.png", ids)
    indexed(
        tmp_path / "SegmentationObject" / "x.png", np.where(ids == 7, 2, np.where(ids == 3, 1, ids)).astype(np.uint8)
    )
    (tmp_path / "ImageSets" / "Segmentation").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Segmentation" / "train.txt").write_text("x\n\n")
    pack = write_pack(voc_items("voc", tmp_path, "train"), tmp_path / "voc.pack")
    assert np.array_equal(pack[0].labels, ids)
    assert np.array_equal(pack[0].instances == 2, ids == 7)
    with pytest.raises(ValueError, match=r"val.txt: no such list.*\['train'\]"):
        voc_items("voc", tmp_path, "val")


def test_ade(tmp_path, ids):
    write(tmp_path / "images" / "training" / "x.jpg", picture(3))
    write(tmp_path / "annotations" / "training" / "x.png", np.where(ids == 255, 150, ids).astype(np.uint8))
    assert main(["train", "pack", "--ade", "ade", str(tmp_path), "training", "-o", str(tmp_path / "ade.pack")]) == 0
    assert np.array_equal(Pack(tmp_path / "ade.pack")[0].labels, np.where(ids == 255, 150, ids))
    assert main(["train", "pack", "--ade", "ade", str(tmp_path), "train", "-o", str(tmp_path / "no.pack")]) == 2


@pytest.mark.parametrize("layout", ["480p/", ""])
def test_davis(tmp_path, ids, layout):
    for video in ("a", "b"):
        for frame in range(5):
            write(tmp_path / f"JPEGImages/{layout}{video}/{frame:05}.jpg", picture(frame))
            if frame != 3:
                indexed(tmp_path / f"Annotations/{layout}{video}/{frame:05}.png", np.roll(ids, frame, 1))
    (tmp_path / "ImageSets" / "2017").mkdir(parents=True)
    (tmp_path / "ImageSets" / "2017" / "train.txt").write_text("b\n")
    out = tmp_path / "davis.pack"
    assert main(["train", "pack", "--davis", "davis", str(tmp_path), "train", "--every", "2", "-o", str(out)]) == 0
    pack = Pack(out)
    assert [pack.name(index) for index in range(len(pack))] == ["davis/b-00000", "davis/b-00002"]
    assert pack.video(0) == "b" and pack.traits("davis").segments
    assert np.array_equal(pack[1].labels, np.roll(ids, 2, 1))
    assert len(davis_items("davis", tmp_path, "all")) == 8
    with pytest.raises(ValueError, match="expected a list"):
        davis_items("davis", tmp_path, "val")


def test_more_objects_than_ids():
    masks = [np.zeros((20, 20), bool) for _ in range(300)]
    for number, mask in enumerate(masks):
        mask.flat[number] = True
    masks[0][:, -1] = True  # the largest
    labels, instances = stack_objects(masks, [4] * 300, np.zeros((20, 20), bool), (20, 20))
    assert instances[0, 0] == 1 and (instances == 255).sum() == 46 and instances[instances != 255].max() == 254
    assert (labels == 4).sum() == (instances > 0).sum()


def test_a_budget_decides_on_the_side(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(6):
        image = Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8)).resize((400, 300), Image.BICUBIC)
        write(tmp_path / "set" / "images" / f"{number}.png", np.asarray(image))
    items = list_sets(tmp_path)["set"]
    sizes = {}
    for budget in (20_000, 60_000):
        side = fit_side(items, budget)
        sizes[budget] = side
        assert pack_folders(tmp_path, tmp_path / "p.pack", side=side).path.stat().st_size <= budget
        larger = SIDES[SIDES.index(side) + 1]
        assert pack_folders(tmp_path, tmp_path / "q.pack", side=larger).path.stat().st_size > 0.9 * budget
    assert sizes[20_000] < sizes[60_000]
    with pytest.raises(ValueError, match="do not fit"):
        fit_side(items, 1000)
    assert [item.name for item in limit_sets(items, 3)] == ["0", "2", "5"]
