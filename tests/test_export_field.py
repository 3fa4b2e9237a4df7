"""What is written reads right in the field's own readers, and what theirs write reads right here."""

import json
import warnings

import numpy as np
import pytest
from datasets import NAMES, items, masks, read, write
from PIL import Image, ImageDraw
from scipy import ndimage

from incontext.export import FORMATS, LabelledImage, split_instances
from incontext.export.brush_rle import decode_brush, encode_brush
from incontext.export.cvat import decode_runs, encode_runs
from incontext.types import Segmentation


def dataset():
    return [split_instances(item) for item in items(ignored=False)]


@pytest.fixture
def supervision():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of a missing OpenCV
        return pytest.importorskip("supervision")


@pytest.mark.parametrize("format", ["coco", "coco-polygons"])
def test_pycocotools_reads_coco(tmp_path, capsys, format):
    coco = pytest.importorskip("pycocotools.coco")
    write(format, tmp_path, dataset())
    read_back = coco.COCO(str(tmp_path / "annotations.json"))
    assert {key: value["name"] for key, value in read_back.cats.items()} == NAMES
    for (key, image), item in zip(read_back.imgs.items(), dataset(), strict=True):
        assert (image["file_name"], image["height"], image["width"]) == (item.file_name, *item.size)
        annotations = read_back.loadAnns(read_back.getAnnIds(key))
        found = {(one["category_id"], read_back.annToMask(one).astype(bool).tobytes()) for one in annotations}
        assert found == masks(item)
        for one in annotations:
            rows, columns = np.nonzero(read_back.annToMask(one))
            assert one["area"] == len(rows) and one["iscrowd"] == 0
            assert one["bbox"] == [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]


def test_pycocotools_scores_it_as_perfect(tmp_path, capsys):
    coco, cocoeval = pytest.importorskip("pycocotools.coco"), pytest.importorskip("pycocotools.cocoeval")
    write(
        "coco",
        tmp_path,
        [split_instances(LabelledImage(i.file_name, i.labels, NAMES, {3: 0.5, 7: 0.25, 12: 1})) for i in items()],
    )
    truth = coco.COCO(str(tmp_path / "annotations.json"))
    results = truth.loadRes(json.loads((tmp_path / "annotations.json").read_text())["annotations"])
    evaluation = cocoeval.COCOeval(truth, results, "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1)


def test_supervision_reads_coco(tmp_path, supervision):
    write("coco", tmp_path, dataset()[:1])
    found = supervision.DetectionDataset.from_coco(
        str(tmp_path / "images"), str(tmp_path / "annotations.json"), force_masks=True
    )
    ((_, _, detections),) = list(found)
    names = [found.classes[id] for id in detections.class_id]
    ids = {name: id for id, name in NAMES.items()}
    assert {(ids[name], mask.tobytes()) for name, mask in zip(names, detections.mask, strict=True)} == masks(
        dataset()[0]
    )


def test_supervision_reads_yolo_within_its_rim(tmp_path, supervision):
    """Its polygons include the pixels on their lines, so a mask grows by one pixel to the right and below."""
    item = split_instances(items(holes=False, ignored=False)[0])
    write("yolo", tmp_path, [item])
    found = supervision.DetectionDataset.from_yolo(
        str(tmp_path / "images"), str(tmp_path / "labels"), str(tmp_path / "data.yaml"), force_masks=True
    )
    ((_, _, detections),) = list(found)
    assert found.classes == list(NAMES.values())
    things = sorted(item.objects(), key=lambda thing: -int(thing.mask.sum()))
    assert [found.classes[id] for id in detections.class_id] == [NAMES[thing.id] for thing in things]
    for mask, thing in zip(detections.mask, things, strict=True):
        assert (mask >= thing.mask).all()
        assert (mask <= ndimage.binary_dilation(thing.mask, np.ones((3, 3)))).all()


def test_we_read_what_supervision_writes(tmp_path, supervision):
    labels = np.zeros((40, 50), int)
    labels[5:20, 6:30], labels[25:35, 10:40] = 1, 2
    segmentation = Segmentation(labels, np.ones(labels.shape, np.float32), np.zeros((40, 50, 3), np.uint8), {}, {})
    detections = segmentation.to_supervision()
    detections.class_id -= 1
    (tmp_path / "images").mkdir()
    image = str(tmp_path / "images" / "x.png")
    Image.new("RGB", (50, 40)).save(image)
    theirs = supervision.DetectionDataset(["a b", "c"], {image: np.zeros((40, 50, 3), np.uint8)}, {image: detections})
    theirs.as_coco(annotations_path=str(tmp_path / "annotations.json"))
    theirs.as_yolo(annotations_directory_path=str(tmp_path / "labels"), data_yaml_path=str(tmp_path / "data.yaml"))
    for format in ("coco", "yolo"):
        back = read(format, tmp_path)["x.png"]
        assert back.names == {1: "a b", 2: "c"}
        assert ((back.labels == labels).mean()) > 0.95  # their polygons run through pixel centres


def test_supervision_detections():
    pytest.importorskip("supervision")
    labels = np.zeros((6, 8), int)
    labels[1:3, 2:5], labels[5, 7] = 4, 9
    segmentation = Segmentation(
        labels, np.ones((6, 8), np.float32), np.zeros((6, 8, 3), np.uint8), {4: 0.5, 9: 1}, {4: "x"}
    )
    found = segmentation.to_supervision()
    assert found.class_id.tolist() == [4, 9] and found.confidence.tolist() == [0.5, 1]
    assert found.data["class_name"].tolist() == ["x", "class 9"]
    np.testing.assert_array_equal(found.mask, [labels == 4, labels == 9])
    assert found.xyxy[0].tolist() == [2, 1, 4, 2]
    nothing = Segmentation(labels * 0, np.ones((6, 8), np.float32), np.zeros((6, 8, 3), np.uint8))
    assert len(nothing.to_supervision()) == 0


def test_label_studio_runs_by_hand():
    """One foreground pixel of two: four values 0, then four values 255, in the stream that Label Studio defines."""
    bits = f"{8:032b}" + "00111" + "0010001101111111" + "10001100000000" + "10001111111111"
    bits += "0" * (-len(bits) % 8)
    expected = [int(bits[k : k + 8], 2) for k in range(0, len(bits), 8)]
    assert encode_brush(np.array([[False, True]])) == expected
    single = f"{4:032b}" + "00111" + "0010001101111111" + "000011" + "00000000" * 3 + "11111111"
    single += "0" * (-len(single) % 8)
    rle = [int(single[k : k + 8], 2) for k in range(0, len(single), 8)]
    np.testing.assert_array_equal(decode_brush(rle, (1, 1)), [[True]])
    with pytest.raises(ValueError, match="ends early"):
        decode_brush(rle[:-2], (1, 1))
    with pytest.raises(ValueError, match="not 4 x 2 x 1"):
        decode_brush(rle, (2, 1))


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (300, 400)])
def test_runs_are_round_trips(size):
    mask = np.random.default_rng(0).random(size) < 0.5
    mask[: size[0] // 2] = False  # a run of more than 2^16 values
    for each in (mask, ~mask, mask & False, mask | True):
        np.testing.assert_array_equal(decode_brush(encode_brush(each), size), each)
        np.testing.assert_array_equal(decode_runs(encode_runs(each), size), each)


def test_cvat_runs_as_its_documentation_has_them():
    mask = np.array([[0, 0, 0, 1, 1], [1, 1, 1, 0, 0]], bool)
    assert encode_runs(mask) == "3, 5, 2" and encode_runs(~mask) == "0, 3, 5, 2"


def test_foreign_cvat(tmp_path):
    (tmp_path / "annotations.xml").write_text(
        """<?xml version="1.0" encoding="utf-8"?><annotations><version>1.1</version><meta><job><labels>
        <label><name>b</name><attributes/></label><label><name>a</name></label></labels></job></meta>
        <image id="0" name="x.jpg" width="10" height="8">
        <box label="a" xtl="1" ytl="1" xbr="4" ybr="3" z_order="1"><attribute name="q">1</attribute></box>
        <polygon label="b" points="0,0;10,0;10,8;0,8" z_order="0"/>
        <ellipse label="a" cx="7" cy="5" rx="2" ry="2" z_order="2"/>
        <tag label="b"/><polyline label="a" points="0,0;5,5"/></image></annotations>"""
    )
    (found,) = FORMATS["cvat"].read(tmp_path)
    assert found.names == {1: "b", 2: "a"}
    expected = np.ones((8, 10), int)
    expected[1:3, 1:4] = 2
    y, x = np.indices((8, 10)) + 0.5
    expected[(x - 7) ** 2 + (y - 5) ** 2 < 4] = 2
    np.testing.assert_array_equal(found.labels, expected)


def test_foreign_label_studio(tmp_path):
    def result(kind, **value):
        return {"type": kind, "original_width": 20, "original_height": 10, "value": value | {kind: ["a"]}}

    tasks = [
        {
            "id": 7,
            "data": {"image": "/data/upload/3/1a2b3c-my%20photo.jpg"},
            "annotations": [
                {"result": [result("rectanglelabels", x=50, y=0, width=50, height=100, rotation=0)]},
                {"result": [], "was_cancelled": True},
            ],
            "predictions": [{"result": [result("polygonlabels", points=[[0, 0], [9, 0], [9, 9]])]}],
        }
    ]
    (tmp_path / "export.json").write_text(json.dumps(tasks))
    (found,) = FORMATS["label-studio"].read(tmp_path / "export.json")
    assert found.file_name == "my photo.jpg"
    np.testing.assert_array_equal(found.labels, np.repeat([[0, 1]], 10, 1) * np.ones((10, 1), int))


def test_labelme_masks_are_what_labelme_pastes(tmp_path):
    """labelme pastes a mask between its two points, both included, and draws polygons with their rim."""
    item = dataset()[0]
    write("labelme", tmp_path, [item])
    found = np.zeros(item.size, int)
    import base64
    import io

    for shape in json.loads((tmp_path / "a.json").read_text())["shapes"]:
        id = next(id for id, name in NAMES.items() if name == shape["label"])
        if shape["shape_type"] == "mask":
            (x1, y1), (x2, y2) = np.array(shape["points"]).astype(int)
            mask = np.array(Image.open(io.BytesIO(base64.b64decode(shape["mask"])))).astype(bool)
            assert mask.shape == (y2 - y1 + 1, x2 - x1 + 1)
            np.testing.assert_array_equal(mask, (item.labels == id)[y1 : y2 + 1, x1 : x2 + 1])
        else:
            canvas = Image.new("L", item.size[::-1])
            ImageDraw.Draw(canvas).polygon([tuple(p) for p in shape["points"]], fill=1, outline=1)
            found[np.array(canvas) > 0] = id
    wrong = (found != item.labels) & (item.labels == 7)
    assert not wrong.any()


def test_foreign_labelme(tmp_path):
    shapes = [
        {"label": "_background_", "points": [[0, 0], [9, 0], [9, 9]], "shape_type": "polygon"},
        {"label": "b", "points": [[4, 3], [1, 1]], "shape_type": "rectangle"},
        {"label": "a", "points": [[7, 7], [9, 7]], "shape_type": "circle", "group_id": 1},
        {"label": "a", "points": [[8, 0], [10, 0], [10, 2], [8, 2]], "group_id": 1},
        {"label": "b", "points": [[1, 1], [2, 2]], "shape_type": "line"},
        {"label": "__ignore__", "points": [[0, 9], [10, 9], [10, 10], [0, 10]], "shape_type": "polygon"},
    ]
    document = {"shapes": shapes, "imagePath": "..\\pics\\x.jpg", "imageHeight": 10, "imageWidth": 10}
    (tmp_path / "x.json").write_text(json.dumps(document))
    (found,) = FORMATS["labelme"].read(tmp_path)
    assert found.names == {1: "a", 2: "b"} and found.file_name == "x.jpg"
    assert len(found.instance_classes) == 2 and (found.labels[9] == -1).all()
    assert (found.labels == 2).sum() == 6 and (found.labels[:2, 8:] == 1).all() and found.labels[7, 7] == 1


def test_datumaro_and_cvat_label_maps(tmp_path):
    for folder in ("SegmentationClass", "ImageSets/Segmentation"):
        (tmp_path / folder).mkdir(parents=True)
    Image.fromarray(np.array([[0, 1, 2]], np.uint8)).save(tmp_path / "SegmentationClass/x.png")
    (tmp_path / "ImageSets/Segmentation/default.txt").write_text("x\n")
    (tmp_path / "labelmap.txt").write_text(
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:9,8,7::\ndog:50,60,70::\n"
    )
    (found,) = FORMATS["voc"].read(tmp_path)
    assert found.names == {1: "cat", 2: "dog"} and found.labels.tolist() == [[0, 1, 2]]
    (tmp_path / "labelmap.txt").unlink()
    (found,) = FORMATS["voc"].read(tmp_path)
    assert found.name(1) == "aeroplane" and found.name(15) == "person" and found.file_name == "x.jpg"
