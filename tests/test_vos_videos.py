"""Official layouts, which frames count, tracking that resumes, and archives for the servers."""

import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from incontext.cli.main import main
from incontext.evaluation import tables
from incontext.evaluation.vos_report import VosRun, compare, overall, per_video
from incontext.evaluation.vos_scores import score_folder, score_video, summarise
from incontext.evaluation.vos_tracking import track_videos, zip_submission
from incontext.evaluation.vos_videos import (
    VideoError,
    choose,
    davis_videos,
    folder_videos,
    open_videos,
    seen_categories,
    youtube_videos,
)
from incontext.export import write_indexed

SIZE = (20, 30)


def labels(*boxes):
    """Boxes as (id, left column): 6 x 6 each, in a row of their own."""
    mask = np.zeros(SIZE, np.int32)
    for id, left in boxes:
        mask[2 + 7 * (id - 1) : 8 + 7 * (id - 1), left : left + 6] = id
    return mask


def write_video(images, masks, truth):
    """Writes frames, and the annotations that are not None."""
    for number, mask in enumerate(truth):
        name = f"{number:05}"
        images.mkdir(parents=True, exist_ok=True)
        shown = labels((1, 0)) if mask is None else mask
        Image.fromarray(np.stack([80 * np.maximum(shown, 0)] * 3, -1).astype(np.uint8)).save(images / f"{name}.jpg")
        if mask is not None:
            write_indexed(masks / f"{name}.png", mask)


TRUTH = [labels((1, t), (2, 12)) for t in range(6)]


@pytest.fixture
def davis(tmp_path):
    root = tmp_path / "DAVIS"
    write_video(root / "JPEGImages/480p/walk", root / "Annotations/480p/walk", TRUTH)
    for year in (2016, 2017):
        (root / f"ImageSets/{year}").mkdir(parents=True)
        (root / f"ImageSets/{year}/val.txt").write_text("walk\n")
    return root


@pytest.fixture
def youtube(tmp_path):
    """Object 2 appears at frame 2. Two categories, one of which training shows."""
    root = tmp_path / "ytvos"
    truth = [labels((1, t)) if t < 2 else labels((1, t), (2, 12)) for t in range(6)]
    write_video(root / "valid/JPEGImages/v", root / "valid/Annotations/v", truth)
    objects = {"1": {"category": "dog", "frames": ["00000"]}, "2": {"category": "zebra", "frames": ["00002"]}}
    (root / "valid/meta.json").write_text(json.dumps({"videos": {"v": {"objects": objects}}}))
    (root / "train").mkdir()
    (root / "train/meta.json").write_text(json.dumps({"videos": {"t": {"objects": {"1": {"category": "dog"}}}}}))
    return root


def results(truth):
    return lambda name: truth[int(name)]


def test_davis_scores_the_frames_between_the_first_and_the_last(davis):
    (video,) = davis_videos(davis)
    asked = []
    wrong = [TRUTH[0] * 0, *TRUTH[1:5], TRUTH[5] * 0]  # only the frames that do not count are wrong
    scores = score_video(video, lambda name: asked.append(name) or wrong[int(name)])
    assert asked == ["00001", "00002", "00003", "00004"]
    assert [(s.id, s.frames, s.j.mean, s.f.mean) for s in scores] == [(1, 4, 1, 1), (2, 4, 1, 1)]


def test_scores_by_hand(davis):
    """Object 1 stays where it was, object 2 is lost from frame 3 on."""
    (video,) = davis_videos(davis)
    found = [labels((1, 0), (2, 12)) if t < 3 else labels((1, 0)) for t in range(6)]
    one, two = score_video(video, results(found))
    ious = [(6 - t) / (6 + t) for t in range(1, 5)]  # two boxes of width 6, t columns apart
    assert one.j.mean == pytest.approx(np.mean(ious))
    assert one.j.recall == 1 / 4  # 5/7; 4/8 and less do not count
    assert two.j.mean == two.f.mean == 0.5 and two.j.decay == 1
    total = summarise([one, two])
    assert total.jf == pytest.approx((one.jf + two.jf) / 2)


def test_davis_2016_is_one_object_and_void_is_background_in_2017(davis):
    mask = labels((1, 0), (2, 12))
    mask[15:, 20:] = -1  # 255 in the file
    write_indexed(davis / "Annotations/480p/walk/00000.png", mask)
    (multi,), (single,) = davis_videos(davis), davis_videos(davis, year=2016)
    assert sorted(np.unique(multi.truth("00000"))) == [0, 1, 2]
    assert np.array_equal(single.truth("00000"), (mask != 0).astype(int))
    assert list(single.starts) == [1]


def test_davis_2016_lists_pairs_of_files(davis):
    for path in (davis / "ImageSets").glob("*/*.txt"):
        path.unlink()
    (davis / "ImageSets/480p").mkdir()
    lines = [f"/JPEGImages/480p/walk/{t:05}.jpg /Annotations/480p/walk/{t:05}.png" for t in range(6)]
    (davis / "ImageSets/480p/val.txt").write_text("\n".join(lines))
    assert [video.name for video in davis_videos(davis, year=2016)] == ["walk"]


def test_objects_that_come_later_are_given_and_scored_later(youtube):
    (video,) = youtube_videos(youtube)
    given = video.given()
    assert list(given) == [0, 2]
    assert np.array_equal(given[2], labels((2, 12)))  # the new object alone
    truth = [video.truth(name) for name in video.annotated]
    scores = score_video(video, results(truth))
    assert [(s.id, s.category, s.frames) for s in scores] == [(1, "dog", 4), (2, "zebra", 2)]


def test_what_is_published_for_a_server_is_not_scored(youtube, tmp_path, capsys):
    """Annotations of the frames where an object appears, of that object alone."""
    write_video(youtube / "valid/JPEGImages/w", tmp_path / "made/w", TRUTH)
    for name, mask in (("00000", labels((1, 0))), ("00002", labels((2, 12))), ("00004", labels((2, 20)) // 2 * 3)):
        write_indexed(youtube / f"valid/Annotations/w/{name}.png", mask)
    (youtube / "valid/meta.json").unlink()
    whole, published = videos = youtube_videos(youtube)
    assert whole.scorable and not published.scorable and len(published.starts) == 3
    for name in whole.annotated:
        write_indexed(tmp_path / f"made/v/{name}.png", whole.truth(name))
    scores, failures = score_folder(videos, tmp_path / "made")
    assert {score.video for score in scores} == {"v"} and not failures
    assert main(["eval", "ytvos", str(youtube), "--results", str(tmp_path / "made")]) == 0
    assert "not scored, annotated only where objects appear: w" in capsys.readouterr().err


def test_overall_means_over_seen_and_unseen(youtube):
    (video,) = youtube_videos(youtube)
    found = [labels((1, t)) for t in range(6)]  # the zebra is never found
    run = VosRun("x", tuple(score_video(video, results(found))))
    numbers = overall(run, seen_categories(youtube))
    assert numbers == {"G": 0.5, "J seen": 1, "F seen": 1, "J unseen": 0, "F unseen": 0}


def test_mose_needs_no_meta(youtube):
    (youtube / "valid/meta.json").unlink()
    (video,) = youtube_videos(youtube / "valid")
    assert video.starts == {1: "00000", 2: "00002"} and not video.categories


def test_labelled_folders_are_videos_too(tmp_path):
    write_video(tmp_path / "set/walk/frames", tmp_path / "set/walk/masks", TRUTH)
    assert [video.name for video in folder_videos(tmp_path / "set")] == ["walk"]
    (video,) = open_videos(davis_videos, tmp_path / "set", year=2017, split="val")
    assert len(video.frames) == 6 and video.annotated[0] == "00000"


def copy_first(frames, given):
    """A tracker that leaves everything where it was given."""
    held = np.zeros(SIZE, np.int32)
    for place, _ in enumerate(frames):
        if place in given:
            held = np.where(given[place] > 0, given[place], held)
        yield held


def test_tracking_writes_all_frames_and_goes_on_after_a_kill(davis, tmp_path):
    (davis / "ImageSets/2017/val.txt").write_text("walk\nrun\n")
    write_video(davis / "JPEGImages/480p/run", davis / "Annotations/480p/run", TRUTH)
    videos, out, tracked = davis_videos(davis), tmp_path / "out", []

    def killed_in_the_second(frames, given):
        tracked.append(1)
        if len(tracked) == 2:
            raise KeyboardInterrupt
        return copy_first(frames, given)

    with pytest.raises(KeyboardInterrupt):
        list(track_videos(videos, killed_in_the_second, out, {"memory": 1}))
    done = list(track_videos(videos, killed_in_the_second, out, {"memory": 1}))
    assert len(tracked) == 3  # the first video once, the second twice
    assert [(each.video, each.frames, each.error) for each in done] == [("walk", 6, ""), ("run", 6, "")]
    scores, failures = score_folder(videos, out)
    assert len(scores) == 4 and not failures
    with pytest.raises(VideoError, match="same settings"):
        list(track_videos(videos, copy_first, out, {"memory": 2}))


def test_a_bad_video_does_not_stop_the_others(davis, tmp_path):
    (davis / "ImageSets/2017/val.txt").write_text("bad\nwalk\n")
    write_video(davis / "JPEGImages/480p/bad", davis / "Annotations/480p/bad", TRUTH)
    (davis / "JPEGImages/480p/bad/00003.jpg").write_bytes(b"no picture")
    bad, good = track_videos(davis_videos(davis), copy_first, tmp_path / "out", {})
    assert "00003" in bad.error and not good.error


@pytest.mark.parametrize("top, first", [("", "walk/00000.png"), ("Annotations", "Annotations/walk/00000.png")])
def test_archive_for_a_server(davis, tmp_path, top, first):
    videos = davis_videos(davis)
    list(track_videos(videos, copy_first, tmp_path / "out", {}))
    with zipfile.ZipFile(zip_submission(tmp_path / "out", videos, tmp_path / "out.zip", top)) as archive:
        assert archive.namelist()[0] == first and len(archive.namelist()) == 6
        with Image.open(archive.open(first)) as mask:
            assert mask.mode == "P" and np.array_equal(np.asarray(mask), TRUTH[0])


def test_errors_say_what_is_missing(davis, tmp_path):
    videos = davis_videos(davis)
    write_indexed(tmp_path / "small/walk/00001.png", np.zeros((5, 5), np.int32))
    assert "truth's size" in score_folder(videos, tmp_path / "small")[1]["walk"]
    assert "found no file" in score_folder(videos, tmp_path / "nothing")[1]["walk"]
    with pytest.raises(VideoError, match="no video named swim; there are walk"):
        choose(videos, ["swim"])
    with pytest.raises(VideoError, match="expected DAVIS with"):
        davis_videos(tmp_path)
    with pytest.raises(VideoError, match="JPEGImages and Annotations, or"):
        open_videos(youtube_videos, tmp_path / "small", split="valid")


def test_tables_have_a_row_for_each_run_and_video(davis):
    (video,) = davis_videos(davis)
    run = VosRun("selective 8", tuple(score_video(video, results(TRUTH))), frames=6, seconds=2)
    assert compare([run])[1] == [
        "selective 8",
        "1",
        "2",
        "100.0",
        "100.0",
        "100.0",
        "0.0",
        "100.0",
        "100.0",
        "0.0",
        "3.00",
    ]
    assert [row[:3] for row in per_video(run)[1:]] == [["walk", "2", "100.0"], ["all objects", "2", "100.0"]]
    assert len({len(line) for line in tables.align(compare([run])).splitlines()}) == 1


def test_results_made_elsewhere_are_scored_without_a_model(davis, capsys):
    assert main(["eval", "davis", str(davis), "--results", str(davis / "Annotations/480p")]) == 0
    assert "100.0" in capsys.readouterr().out
    assert main(["eval", "davis", str(davis), "--results", str(davis / "ImageSets")]) == 1
