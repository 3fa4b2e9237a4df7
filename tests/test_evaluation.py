"""Baselines, protocols and reports on tiny folders."""

import argparse
import json
import math

import numpy as np
import pytest
from PIL import Image, ImageFilter

from incontext import labelled_folders
from incontext.cli import demo, evaluate
from incontext.evaluation import (
    CopyBaseline,
    Episode,
    NearestBaseline,
    Report,
    Score,
    SetError,
    across_images,
    evaluate_folders,
    find_sets,
    first_frame,
    rendered,
    score_episodes,
    within_image,
)
from incontext.evaluation.folders import Selecting
from incontext.evaluation.report import agreement, aligned, markdown, save
from incontext.evaluation.vos_videos import folder_videos
from incontext.export import write_indexed
from incontext.image import open_labels
from incontext.types import IGNORE, Example, Segmentation

RED, BLUE, GREY = (200, 20, 20), (20, 20, 200), (120, 120, 120)


def picture(labels: np.ndarray) -> np.ndarray:
    """Grey background, id 1 red, id 2 blue, whatever else green."""
    image = np.empty((*labels.shape, 3), np.uint8)
    image[:] = (20, 200, 20)
    for id, colour in ((0, GREY), (1, RED), (2, BLUE)):
        image[labels == id] = colour
    return image


def write(folder, name: str, labels: np.ndarray, images="images") -> None:
    for part in (images, "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(labels)).save(folder / images / f"{name}.png")
    Image.fromarray(labels.astype(np.uint8)).save(folder / "masks" / f"{name}.png")


def block(size, *boxes) -> np.ndarray:
    labels = np.zeros(size, np.int32)
    for id, top, left, bottom, right in boxes:
        labels[top:bottom, left:right] = id
    return labels


@pytest.fixture
def data(tmp_path):
    for i in range(4):
        write(tmp_path / "shapes", f"{i}", block((12, 16), (1, i, 0, i + 6, 6), (2, 4, 8, 10, 14)))
    write(tmp_path / "shapes", "only1", block((12, 16), (1, 0, 0, 6, 6)))
    (tmp_path / "shapes" / "classes.txt").write_text("1 left thing\n2 right thing\n")
    write(tmp_path / "bsds500_tiny", "a", block((12, 16), (7, 0, 0, 6, 16), (9, 6, 0, 12, 16)))
    for i in range(3):
        write(tmp_path / "clips" / "one", f"{i:05}", block((12, 16), (1, 2, 2 + i, 8, 8 + i)), images="frames")
    return tmp_path


def test_copy_resizes_the_mask():
    example = Example(picture(block((4, 4))), block((4, 4), (3, 0, 0, 2, 4)))
    found = CopyBaseline().predict(np.zeros((8, 6, 3), np.uint8), [example])
    assert np.array_equal(found.labels, block((8, 6), (3, 0, 0, 4, 6)))
    assert found.ids == (3,)


def test_copy_lets_examples_vote_and_the_first_breaks_a_tie():
    masks = [block((1, 4), (1, 0, 0, 1, 2)), block((1, 4), (2, 0, 1, 1, 3)), block((1, 4), (2, 0, 1, 1, 2))]
    examples = [Example(picture(m), m) for m in masks]
    query = np.zeros((1, 4, 3), np.uint8)
    assert CopyBaseline().predict(query, examples[:2]).labels.tolist() == [[1, 1, 0, 0]]
    assert CopyBaseline().predict(query, examples).labels.tolist() == [[0, 2, 0, 0]]


def test_nearest_finds_moved_objects_by_colour():
    shown, hidden = (
        block((12, 16), (1, 0, 0, 6, 6), (2, 4, 8, 10, 14)),
        block((12, 16), (2, 0, 0, 6, 6), (1, 4, 8, 10, 14)),
    )
    found = NearestBaseline().predict(picture(hidden), [Example(picture(shown), shown)])
    assert np.array_equal(found.labels, hidden)
    assert found.confidence.min() >= 0 and found.confidence.max() <= 1


def test_nearest_uses_position_where_colours_agree():
    labels = block((8, 8), (1, 0, 0, 8, 4))
    flat = np.full((8, 8, 3), 90, np.uint8)
    assert np.array_equal(NearestBaseline().predict(flat, [Example(flat, labels)]).labels, labels)


def test_nearest_pools_all_examples_and_skips_ignored_pixels():
    first, second = block((8, 8), (1, 0, 0, 4, 8)), block((8, 8), (2, 4, 0, 8, 8))
    wrong = np.full((8, 8), IGNORE)
    examples = [
        Example(picture(first), first),
        Example(picture(second), second),
        Example(picture(second), wrong),
    ]
    both = block((8, 8), (1, 0, 0, 4, 8), (2, 4, 0, 8, 8))
    assert np.array_equal(NearestBaseline().predict(picture(both), examples).labels, both)


def test_baselines_want_examples():
    for baseline in (CopyBaseline(), NearestBaseline()):
        with pytest.raises(ValueError, match="at least one example"):
            baseline.predict(np.zeros((4, 4, 3), np.uint8), [])


def test_sets_are_found_with_their_names(data):
    sets = {s.name: s for s in find_sets(data)}
    assert list(sets) == ["bsds500_tiny", "clips", "shapes"]
    assert sets["shapes"].names == {1: "left thing", 2: "right thing"}
    assert [item.name for item in sets["shapes"].items] == ["0", "1", "2", "3", "only1"]
    assert [(video, len(frames)) for video, frames in sets["clips"].videos] == [("one", 3)]
    assert [s.name for s in find_sets(data / "shapes")] == ["shapes"]
    with pytest.raises(SetError, match="no set named nothing; there are"):
        find_sets(data, ["nothing"])
    with pytest.raises(SetError, match="is not a folder"):
        find_sets(data / "absent")


def test_255_is_ignored(tmp_path):
    labels = block((4, 4), (1, 0, 0, 2, 2), (255, 2, 2, 4, 4))
    write(tmp_path / "s", "a", labels)
    (item,) = find_sets(tmp_path)[0].items
    assert np.array_equal(item.open_labels(), np.where(labels == 255, IGNORE, labels))
    assert item.ids == (1,)


def test_in_16_bits_255_is_an_id(tmp_path):
    labels = block((4, 4), (300, 0, 0, 2, 2), (255, 2, 2, 4, 4), (IGNORE, 0, 3, 1, 4))
    (tmp_path / "deep" / "images").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "deep" / "images" / "a.png")
    write_indexed(tmp_path / "deep" / "masks" / "a.png", labels)
    (item,) = find_sets(tmp_path)[0].items
    assert np.array_equal(item.open_labels(), labels)


def test_all_masks_of_a_set_tell_what_255_means(tmp_path):
    drawn, empty = block((12, 16), (255, 2, 2, 8, 8)), block((12, 16))
    for name, labels in (("a", empty), ("b", drawn), ("c", drawn)):
        write(tmp_path / "drawn", name, labels)
        write(tmp_path / "ids", name, labels)
        write(tmp_path / "clips" / "one", name, labels, images="frames")
    write(tmp_path / "ids", "d", block((12, 16), (3, 0, 0, 6, 6)))
    clips, of_ids, black_and_white = (find_sets(tmp_path, [name])[0] for name in ("clips", "ids", "drawn"))
    for items in (black_and_white.items, clips.videos[0][1]):
        assert [item.ids for item in items] == [(), (1,), (1,)]
        assert np.array_equal(items[1].open_labels(), drawn > 0)
    assert [item.ids for item in of_ids.items] == [(), (), (), (3,)]
    assert np.array_equal(of_ids.items[1].open_labels(), np.where(drawn == 255, IGNORE, 0))
    assert folder_videos(tmp_path / "clips")[0].truth("b").max() == 1
    assert len(list(across_images(black_and_white, 1))) == 2
    soft = Image.fromarray(np.uint8(block((96, 96), (255, 20, 20, 70, 70)))).filter(ImageFilter.GaussianBlur(2))
    soft.save(tmp_path / "drawn" / "masks" / "b.png")
    assert [item.ids for item in find_sets(tmp_path, ["drawn"])[0].items] == [(), (1,), (1,)]


def test_masks_are_not_opened_twice_where_the_first_one_tells(tmp_path, monkeypatch):
    for number in range(5):
        write(tmp_path / "s", f"{number}", block((12, 16), (1, 0, 0, 6, 6), (255, 8, 8, 12, 16)))
    opened = []
    monkeypatch.setattr(labelled_folders, "open_labels", lambda mask: opened.append(mask.stem) or open_labels(mask))
    items = find_sets(tmp_path)[0].items
    assert not opened and [item.ids for item in items] == [(1,)] * 5 and opened == ["0"]
    (tmp_path / "s" / "masks" / "0.png").write_bytes(b"broken")
    again = find_sets(tmp_path)[0].items
    assert again[3].ids == (1,)
    with pytest.raises(SetError, match=r"0\.png: expected a mask of ids, but it cannot be read"):
        again[0].open_labels()


def test_across_images_the_query_is_never_an_example_and_the_truth_does_not_depend_on_shots(data):
    source = find_sets(data, ["shapes"])[0]
    one, four = (list(across_images(source, k, seed=3)) for k in (1, 4))
    assert [e.name for e in one] == ["0", "1", "2", "3", "only1"]
    for a, b in zip(one, four, strict=True):
        assert np.array_equal(a.truth, b.truth) and np.array_equal(a.examples[0].image, b.examples[0].image)
        assert len(a.examples) == 1 and len(b.examples) == 4
        assert not any(np.array_equal(e.image, b.image) for e in b.examples)
        assert a.ids == a.examples[0].ids
        assert set(np.unique(a.truth)) - {0, IGNORE} <= set(a.ids)
        assert all(set(e.ids) & set(b.ids) for e in b.examples)
    limited = list(across_images(source, 1, seed=3, limit=2))
    assert [e.name for e in limited] == ["0", "2"]
    assert np.array_equal(limited[1].examples[0].image, one[2].examples[0].image)


def test_what_the_first_example_does_not_show_is_not_asked_for(tmp_path):
    write(tmp_path / "s", "query", block((6, 6), (1, 0, 0, 3, 3), (2, 3, 3, 6, 6)))
    write(tmp_path / "s", "example", block((6, 6), (1, 0, 0, 3, 3)))
    episodes = {e.name: e for e in across_images(find_sets(tmp_path)[0], 1)}
    assert episodes["query"].ids == (1,)
    assert np.array_equal(episodes["query"].truth, block((6, 6), (1, 0, 0, 3, 3)))


def test_within_an_image_the_halves_are_disjoint_and_share_segments(data):
    (episode,) = within_image(find_sets(data, ["bsds500_tiny"])[0])
    assert episode.image.shape == (12, 8, 3)  # top and bottom share nothing, left and right everything
    assert episode.ids == (1, 2)
    assert np.array_equal(episode.truth, block((12, 8), (1, 0, 0, 6, 8), (2, 6, 0, 12, 8)))


def test_video_takes_the_first_frame(data):
    episodes = list(first_frame(find_sets(data, ["clips"])[0]))
    assert [(e.name, e.group) for e in episodes] == [("one/00001", "one"), ("one/00002", "one")]
    assert np.array_equal(episodes[0].examples[0].labels, block((12, 16), (1, 2, 2, 8, 8)))


def test_rendered_episodes_share_their_examples():
    first, second = rendered("kinds", queries=2, shots=2, seed=1, size=(48, 48))
    assert first.examples is second.examples and len(first.examples) == 2
    assert first.examples[0].names[1] == "sphere"
    assert not np.array_equal(first.image, second.image)


class Oracle:
    """Knows the truth of the pictures above, and keeps what it was asked."""

    def __init__(self) -> None:
        self.calls = []

    def predict(self, image, examples, *, ensemble=None) -> Segmentation:
        self.calls.append((len(examples), ensemble))
        labels = np.zeros(image.shape[:2], np.int32)
        for id, colour in ((1, RED), (2, BLUE)):
            if any(id in e.ids for e in examples):
                labels[(image == colour).all(axis=-1)] = id
        return Segmentation(labels, np.ones(labels.shape, np.float32), image)


def test_folders_score_by_hand(data):
    oracle = Oracle()
    report = evaluate_folders(data, {"oracle": oracle}, shots=(2, 1), sets=["shapes", "clips"], samples=2)
    scores = {(s.set, s.method, s.shots): s for s in report.scores}
    assert scores["shapes", "oracle", 1].miou == 1.0
    assert scores["shapes", "oracle", 2].parts == {"left thing": 1.0, "right thing": 1.0}
    assert scores["shapes", "oracle", 1].queries == 5
    assert scores["clips", "oracle", 1].miou == 1.0 and scores["clips", "oracle", 1].queries == 2
    assert ("clips", "oracle", 2) not in scores
    # the object moves 1 and 2 columns of 6: J is the mean of 5/7 and 4/8
    assert scores["clips", "copy", 1].parts == {"one": pytest.approx((5 / 7 + 4 / 8) / 2)}
    assert {n for n, _ in oracle.calls} == {1, 2} and {e for _, e in oracle.calls} == {"feature"}
    assert report.mean("oracle", 1) == 1.0
    assert math.isnan(report.mean("oracle", 2))  # one of the sets has no two shots
    assert report.mean("oracle", 2, "across") == 1.0
    assert len([s for s in report.samples if s.set == "shapes"]) == 2


def test_video_frames_where_the_object_is_gone_and_nothing_is_painted_count_as_right():
    example = Example(picture(block((4, 4), (1, 0, 0, 2, 2))), block((4, 4), (1, 0, 0, 2, 2)))
    gone = Episode("f", picture(block((4, 4))), block((4, 4)), (example,), (1,), group="v")
    scores, _ = score_episodes("s", "video", iter([gone]), {"oracle": Oracle()})
    assert scores[0].miou == 1.0


def test_within_is_recognised_by_name(data):
    report = evaluate_folders(data, sets=["bsds500_tiny"], shots=(1, 4))
    assert [(s.protocol, s.method, s.shots) for s in report.scores] == [
        ("within", "copy", 1),
        ("within", "nearest", 1),
    ]


def test_bad_shots_and_nothing_to_run(data):
    with pytest.raises(ValueError, match="from 1 on"):
        evaluate_folders(data, shots=(0, 1))
    with pytest.raises(ValueError, match="nothing to evaluate"):
        evaluate_folders(data, baselines=False)


def test_methods_are_compared_with_each_other(data):
    models = {"one": CopyBaseline(), "two": CopyBaseline(), "three": NearestBaseline()}
    compared = {"two": "one", "three": "one"}
    report = evaluate_folders(data, models, sets=["shapes"], baselines=False, compared=compared)
    alike = {score.method: (score.same_pixels, score.same_masks) for score in report.scores}
    assert alike["two"] == (1, 1)
    assert all(0 <= value < 1 for value in alike["three"])
    assert all(math.isnan(value) for value in alike["one"])
    first, second = agreement(report)
    assert first == "two, 1 shot: 100.00 of pixels are labelled alike; IoU of masks 100.00, at least 100.00 (shapes)"
    assert second.startswith("three, 1 shot: ")


def test_examples_can_be_chosen_for_each_query(data):
    pools = []

    def last(image, pool, count):
        pools.append(len(pool))
        return list(pool[-count:])

    class Noting(CopyBaseline):
        def __init__(self):
            self.shown = []

        def predict(self, image, examples, **how):
            self.shown.append(examples)
            return super().predict(image, examples, **how)

    drawn, chosen = Noting(), Noting()
    methods = {"drawn": drawn, "chosen": Selecting(chosen, 3, last)}
    evaluate_folders(data, methods, sets=["shapes"], shots=(1,), baselines=False)
    episodes = list(across_images(find_sets(data, ["shapes"])[0], 3))
    assert pools == [3] * len(episodes)
    for episode, one, other in zip(episodes, drawn.shown, chosen.shown, strict=True):
        assert np.array_equal(one[0].image, episode.examples[0].image)
        assert np.array_equal(other[0].image, episode.examples[2].image)


def test_reports_are_aligned_and_saved(tmp_path):
    scores = [
        Score("cells", "across", "copy", 1, 10, 0.25, 0.2, {"nucleus": 0.25}, 0.01),
        Score("cells", "across", "copy", 4, 10, 0.5, 0.4, {"nucleus": 0.5}, 0.01),
        Score("clips", "video", "copy", 1, 3, math.nan, math.nan, {}, 0.01),
    ]
    report = Report(scores, settings={"seed": 0})
    lines = aligned(report).splitlines()
    assert lines[0].split() == ["set", "examples", "from", "queries", "copy", "1", "copy", "4"]
    assert lines[2].split() == ["cells", "other", "images", "10", "25.0", "50.0"]
    assert lines[3].split() == ["clips", "first", "frame", "3", "-", "-"]
    assert len({len(line) for line in lines}) == 1
    assert markdown(report).splitlines()[2] == "| cells | other images | 10 | 25.0 | 50.0 |"
    paths = save(report, tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "results.csv",
        "results.json",
        "results.md",
    ]
    saved = json.loads(paths[0].read_text())
    assert saved["scores"][0]["miou"] == 0.25 and saved["scores"][2]["miou"] is None
    assert paths[1].read_text().splitlines()[1].startswith("cells,across,copy,1,10,0.25000")


def _parse(module, *words):
    parser = argparse.ArgumentParser()
    module.add_parser(parser.add_subparsers())
    return parser.parse_args([str(word) for word in words])


def test_eval_folders_prints_a_table_and_writes_results_and_pictures(data, tmp_path, capsys):
    out = tmp_path / "out"
    words = (
        "eval",
        "folders",
        data,
        "--shots",
        "1,2",
        "--sets",
        "shapes,clips",
        "--model",
        "none",
        "-o",
        out,
    )
    args = _parse(evaluate, *words)
    assert args.run(args) == 0
    assert "copy 2" in capsys.readouterr().out
    names = sorted(p.name for p in out.iterdir())
    assert names == ["clips.png", "results.csv", "results.json", "results.md", "shapes.png"]


def test_eval_folders_refuses_wrong_shots(data, capsys):
    with pytest.raises(SystemExit):
        _parse(evaluate, "eval", "folders", data, "--shots", "1,zero")
    assert "expected whole numbers from 1 on" in capsys.readouterr().err


def test_demo_writes_scenes_masks_and_scores(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("incontext.model.zoo.load_model", lambda *names: None)
    monkeypatch.setattr("incontext.predictor.Predictor", lambda model, device: NearestBaseline())
    args = _parse(demo, "demo", "-o", tmp_path, "--queries", 1, "--shots", 1, "--tasks", "shadows,kinds", "--size", 48)
    assert args.run(args) == 0
    out = capsys.readouterr().out
    assert "shadows" in out and str(tmp_path / "contact-sheet.png") in out
    saved = json.loads((tmp_path / "results.json").read_text())
    assert {(s["set"], s["method"]) for s in saved["scores"]} == {
        (task, method) for task in ("shadows", "kinds") for method in ("model", "copy", "nearest")
    }
    files = {p.name for p in (tmp_path / "kinds").iterdir()}
    assert {
        "example-1.png",
        "example-1-mask.png",
        "query-1.png",
        "query-1-mask.png",
        "query-1-truth.png",
    } <= files
