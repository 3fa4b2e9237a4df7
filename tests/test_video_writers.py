"""What is written can be read again, says the same in every format, and is whole or not there."""

from __future__ import annotations

import csv
import json

import av
import numpy as np
import pytest
from pycocotools import mask as masks
from video_clips import moving

from incontext.image import open_image
from incontext.video.doubts import Watch
from incontext.video.tracked_frame import Extent, TrackedFrame, TrackedVideo
from incontext.video.writers import WRITERS, check_formats

SIZE = (47, 63)  # odd: H.264 wants even


def tracked(count=6, hidden=(), skip=(), certainty=0.9) -> tuple[TrackedVideo, list[TrackedFrame]]:
    frames, truths = moving(count, ids=(1, 40), size=SIZE, hidden=hidden)
    video = TrackedVideo("clip", SIZE, 10.0, tuple(f"{k:05d}" for k in range(count)), {40: "red ball"})
    return video, [
        TrackedFrame(k, 5 * k, k**1.5 / 10, frames[k], truths[k], (1, 40), dict.fromkeys((1, 40), certainty))
        for k in range(count)
        if k not in skip
    ]


def write(name, path, video, frames):
    with WRITERS[name].open(path, video) as writer:
        for frame in frames:
            writer(frame)
    return path


def test_extents_are_counted_in_pixels():
    labels = np.zeros((6, 8), np.int32)
    labels[1:3, 2:6] = 4
    labels[5, 7] = 2
    frame = TrackedFrame(0, 0, 0.0, np.zeros((6, 8, 3), np.uint8), labels, (2, 4), {})
    assert frame.extents == {2: Extent(1, (7, 5, 1, 1), (7.0, 5.0)), 4: Extent(8, (2, 1, 4, 2), (3.5, 1.5))}
    empty = TrackedFrame(0, 0, 0.0, frame.image, np.zeros_like(labels), (2, 4), {})
    assert empty.extents == {}


def test_coco_for_videos(tmp_path):
    video, frames = tracked(hidden={(40, 2)}, skip={4})
    document = json.loads(write("coco", tmp_path / "t.json", video, frames).read_text())
    assert document["videos"][0]["length"] == 6 and document["videos"][0]["file_names"][3] == "clip/00003.jpg"
    assert document["categories"] == [{"id": 1, "name": "object"}, {"id": 2, "name": "red ball"}]
    assert [each["id"] for each in document["annotations"]] == [1, 40]
    ball = document["annotations"][1]
    assert ball["category_id"] == 2 and ball["score"] == 0.9 and ball["iscrowd"] == 0
    assert [each is None for each in ball["segmentations"]] == [False, False, True, False, True, False]
    for frame in frames:
        segmentation = ball["segmentations"][frame.place]
        if segmentation:
            np.testing.assert_array_equal(masks.decode(segmentation), frame.labels == 40)
            assert ball["areas"][frame.place] == (frame.labels == 40).sum() == masks.area(segmentation)
            assert ball["bboxes"][frame.place] == masks.toBbox(segmentation).tolist()


def test_mots(tmp_path):
    video, frames = tracked(hidden={(1, 0)})
    lines = [line.split() for line in write("mots", tmp_path / "t.txt", video, frames).read_text().splitlines()]
    assert len(lines) == 11 and lines[0][:5] == ["0", "1040", "1", "47", "63"] and lines[1][1] == "2001"
    for place, number, _, height, width, counts in lines:
        found = masks.decode({"size": [int(height), int(width)], "counts": counts})
        np.testing.assert_array_equal(found, frames[int(place)].labels == int(number) % 1000)
    frames[0].labels[0, 0] = 1000
    with pytest.raises(ValueError, match="ids from 1 to 999"):
        write("mots", tmp_path / "u.txt", video, [TrackedFrame(**{**vars_of(frames[0])})])
    assert [path.name for path in tmp_path.iterdir()] == ["t.txt"]  # no half of the other


def vars_of(frame: TrackedFrame) -> dict:
    return {name: getattr(frame, name) for name in TrackedFrame.__dataclass_fields__}


def test_the_table_has_a_row_for_each_id_and_frame(tmp_path):
    video, frames = tracked(hidden={(40, 2)})
    with open(write("table", tmp_path / "t.csv", video, frames), newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(int(row["frame"]), int(row["id"])) for row in rows] == [(5 * k, id) for k in range(6) for id in (1, 40)]
    assert rows[5] == {**rows[5], "area": "0", "left": "", "x": "", "certainty": ""} and rows[5]["name"] == "red ball"
    extent = frames[3].extents[40]
    assert rows[7]["area"] == str(extent.area) and rows[7]["x"] == f"{extent.centre[0]:.2f}"
    assert rows[7]["certainty"] == "0.9000" and rows[7]["time"] == "0.5196"


def test_the_overlay_has_every_frame_at_its_time(tmp_path):
    video, frames = tracked()
    with av.open(str(write("overlay", tmp_path / "t.mp4", video, frames))) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        shown = list(container.decode(video=0))
    np.testing.assert_allclose([frame.time for frame in shown], [frame.time for frame in frames], atol=1e-3)
    pixels = shown[2].to_ndarray(format="rgb24")[: SIZE[0], : SIZE[1]].astype(int)
    assert shown[2].height == 48 and shown[2].width == 64
    change, background = np.abs(pixels - frames[2].image).max(-1), frames[2].labels == 0
    assert np.median(change[background]) < 10 < 60 < np.median(change[~background])


def test_the_picture_does_not_grow_with_the_video(tmp_path):
    pages = []
    for count in (4, 3000):
        video, frames = tracked(4, certainty=1.0)
        video = TrackedVideo(video.name, SIZE, 10.0, tuple(map(str, range(count))), video.names)
        long = (TrackedFrame(**{**vars_of(frames[k % 4]), "place": k}) for k in range(count))
        pages.append(open_image(write("picture", tmp_path / f"{count}.png", video, long)))
    assert pages[0].shape == pages[1].shape
    assert (pages[0] == (0, 152, 255)).all(-1).sum() > 500  # the first object's colour


def test_formats_are_named():
    assert check_formats(["coco", "mots", "coco"]) == ("coco", "mots") and check_formats([]) == ()
    with pytest.raises(ValueError, match=r"formats: expected some of .*'overlay'.*got \['avi'\]"):
        check_formats(["avi"])


def test_people_are_sent_to_what_is_odd():
    _, frames = tracked(24, hidden={(40, k) for k in range(12, 20)})
    watch = Watch()
    for frame in frames:
        watch.see(frame)
    found = {(doubt.id, doubt.reason): doubt.place for doubt in watch.doubts if doubt.id == 40}
    assert found[40, "lost"] == 12 and found[40, "returned"] == 20
    assert watch.doubts[0].reason == "lost" and watch.doubts[0].frame == 60


def test_doubts_are_bounded_and_the_strongest_stay():
    _, frames = tracked(2)
    watch = Watch(limit=3)
    for k in range(200):
        changes = {
            "place": k,
            "index": k,
            "certainty": {1: 1.0, 40: 1 - (k % 50) / 100},
            "echo": 0.2 if k == 77 else None,
        }
        watch.see(TrackedFrame(**{**vars_of(frames[0]), **changes}))
        assert len(watch.doubts) <= 3
    assert {doubt.place for doubt in watch.doubts if doubt.reason == "does not lead back"} == {77}
    assert watch.doubts[0].strength == pytest.approx(0.8)
