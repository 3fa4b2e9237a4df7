"""Risk-coverage curves have the areas that can be computed by hand, and the protocol never shows a query."""

from __future__ import annotations

import argparse
import json

import numpy as np
import pytest
from fake_models import ColourMatcher, blocks, scene
from predictions import predictor
from small_sets import write

from incontext.cli.evaluate_risk import add_risk_parser
from incontext.evaluation.risk import CHANCE, SIZE, Judged, RiskReport, Trust, judge_episodes, painted_once, risk_curve
from incontext.evaluation.risk_report import aligned, save
from incontext.labelled_folders import SetError, find_sets
from incontext.types import Segmentation


def report(scores, risks, jobs=None) -> RiskReport:
    jobs = jobs or ["a"] * len(risks)
    rows = enumerate(zip(jobs, scores, risks, strict=True))
    return RiskReport.of("masks", [Judged(job[0], job, str(k), r, {"mine": s}) for k, (job, s, r) in rows])


def test_curve_by_hand():
    curve = risk_curve([0.9, 0.1, 0.5], [0.0, 0.8, 0.4])
    np.testing.assert_allclose(curve.coverage, [1 / 3, 2 / 3, 1])
    np.testing.assert_allclose(curve.risk, [0, 0.2, 0.4])
    assert curve.area == pytest.approx(0.2)
    assert risk_curve([0.1, 0.9, 0.5], [0.0, 0.8, 0.4]).area == pytest.approx((0.8 + 0.6 + 0.4) / 3)


def test_ties_are_the_mean_over_all_orders():
    generator = np.random.default_rng(0)
    risks = generator.random(6)
    scores = [1, 1, 1, 0, 0, 0]
    areas = []
    for _ in range(4000):
        shuffled = np.array(scores) + generator.random(6) * 1e-6
        areas.append(risk_curve(shuffled, risks).area)
    assert risk_curve(scores, risks).area == pytest.approx(np.mean(areas), abs=0.005)


def test_gain_runs_from_chance_to_perfect():
    risks = [0.1, 0.9, 0.4, 0.7, 0.2]
    assert report([-r for r in risks], risks).gains("mine")["a"] == pytest.approx(1)
    assert report([1.0] * 5, risks).gains("mine")["a"] == pytest.approx(0)
    assert report(risks, risks).gains("mine")["a"] < 0
    assert report([1, 2], [0.3, 0.3]).gains("mine") == {}  # no room
    assert report([1.0] * 5, risks).areas(CHANCE)["a"] == pytest.approx(np.mean(risks))
    with pytest.raises(ValueError, match="masks to judge"):
        RiskReport.of("masks", [])


def test_a_score_that_knows_which_job_is_easy_sorts_none():
    risks, jobs = [0.0, 0.2, 0.8, 1.0], ["easy", "easy", "hard", "hard"]
    one = report([1, 1, 0, 0], risks, jobs)
    assert one.gains("mine") == {"e": pytest.approx(0), "h": pytest.approx(0)}
    assert report([1, 0, 1, 0], risks, jobs).gains("mine") == {"e": pytest.approx(1), "h": pytest.approx(1)}


def test_sets_count_alike_and_so_do_the_jobs_of_a_set():
    """Set v has three videos, one of them sorted well; set w one job, sorted well."""
    jobs = ["v1", "v1", "v2", "v2", "v3", "v3", "w", "w"]
    risks, scores = [0.0, 1.0] * 4, [1, 0, 0.5, 0.5, 0.5, 0.5, 1, 0]
    one = report(scores, risks, jobs)
    assert one.gains("mine") == {"v": pytest.approx(1 / 3), "w": pytest.approx(1)}
    row = next(row for row in one.table() if row["score"] == "mine")
    assert row["gain"] == pytest.approx(2 / 3, abs=1e-5)
    # v1 and w: risk 0, then 0.5; v2 and v3: 0.5 all along
    assert row["aurc"] == pytest.approx(((0.25 + 2 * 0.5) / 3 + 0.25) / 2, abs=1e-5)
    np.testing.assert_allclose(one.risk_at("mine", np.array([0.5, 1.0])), [(2 / 6 + 0) / 2, 0.5])


def test_bad_found():
    risks = [0.9] * 2 + [0.1] * 8
    assert risk_curve([0] * 2 + [1] * 8, risks).bad_found == pytest.approx(1)
    assert risk_curve([1] * 2 + [0] * 8, risks).bad_found == pytest.approx(0)
    assert risk_curve([1] * 10, risks).bad_found == pytest.approx(0.2)  # chance finds what it looks at
    assert np.isnan(risk_curve([1, 2], [0.1, 0.1]).bad_found)


def test_refuses_what_cannot_be_sorted():
    for scores, risks in (([], []), ([1], [0.1, 0.2]), ([float("nan")], [0.1])):
        with pytest.raises(ValueError, match="as many scores"):
            risk_curve(scores, risks)


@pytest.fixture
def source(tmp_path):
    for number in range(6):
        labels = blocks((1, 2) if number % 2 else (1, 3), seed=number)
        write(tmp_path / "set" / "images" / f"{number}.png", scene(labels, (1, 2, 3)))
        write(tmp_path / "set" / "masks" / f"{number}.png", labels.astype(np.uint8))
    return find_sets(tmp_path)[0]


def test_the_same_examples_for_all_and_never_a_query(source):
    episodes = list(painted_once(source, 2, seed=3))
    shown = {id(example) for episode in episodes for example in episode.examples}
    assert len(episodes) == 4 and len(shown) == 2
    assert episodes[0].ids == (1, 2, 3)  # the two that are drawn show all classes between them
    for episode in episodes:
        assert all((episode.image != example.image).any() for example in episode.examples)
    again = list(painted_once(source, 2, seed=3, limit=2))
    assert [each.name for each in again] == [episodes[0].name, episodes[2].name]
    with pytest.raises(SetError, match="more than 6"):
        list(painted_once(source, 6))


def test_classes_that_nobody_shows_are_not_asked_for(source):
    for episode in painted_once(source, 1):
        assert set(np.unique(episode.truth)) <= {0, *episode.ids} and len(episode.ids) == 2


def test_judges_masks_and_images(source):
    one = predictor(ColourMatcher())

    def judge(image, examples):
        found = one.predict(image, examples)
        spoiled = np.where(found.labels == 2, 0, found.labels)  # this model never finds class 2
        found = Segmentation(spoiled, found.confidence, found.painting)
        return found, {"mine": Trust(0.5, {id: id / 10 for id in found.ids})}

    masks, images = judge_episodes("set", painted_once(source, 2, seed=3), judge)
    assert (
        len(images) == 4
        and {each.job for each in images} == {"set"}
        and {mask.scores["mine"] for mask in masks} == {0.1, 0.3}
    )
    assert all(mask.risk < 0.2 and mask.scores.keys() == {"mine", SIZE} for mask in masks)
    # An image that holds class 2 loses half of its IoU by missing it.
    assert sum(image.risk > 0.45 for image in images) >= 1 and {image.scores["mine"] for image in images} == {0.5}


def test_table_json_and_chart(tmp_path):
    pytest.importorskip("matplotlib")
    one = report([0.9, 0.1, 0.5], [0.0, 0.8, 0.4])
    assert [row["score"] for row in one.table()][-1] == CHANCE
    text = aligned([one])
    assert "mine" in text and "20.0" in text
    files = save([one], tmp_path, {"seed": 0})
    stored = json.loads(files[0].read_text())
    assert stored["settings"] == {"seed": 0} and len(stored["results"]["masks"]) == 3
    assert {row["score"]: row["aurc"] for row in stored["scores"]["masks"]}["mine"] == pytest.approx(0.2)
    assert files[1].read_bytes().startswith(b"\x89PNG")


def test_the_command(tmp_path, monkeypatch, capsys):
    for number in range(5):
        labels = blocks((1, 2), seed=number)
        write(tmp_path / "data" / "set" / "images" / f"{number}.png", scene(labels))
        write(tmp_path / "data" / "set" / "masks" / f"{number}.png", labels.astype(np.uint8))
    monkeypatch.setattr("incontext.model.zoo.load_model", lambda name: ColourMatcher())
    parser = argparse.ArgumentParser()
    add_risk_parser(parser.add_subparsers())
    options = ["--shots", "2", "--recolourings", "1", "-o", str(tmp_path / "out")]
    args = parser.parse_args(["risk", str(tmp_path / "data"), *options])
    assert args.run(args) == 0
    printed = capsys.readouterr().out
    assert "6 masks" in printed and "3 images" in printed and SIZE in printed
    stored = json.loads((tmp_path / "out" / "risk.json").read_text())
    kinds = {"mean confidence", "score", "wholeness", "agreement", "trust without views", "trust"}
    assert {row["score"] for row in stored["scores"]["images"]} == kinds | {"chance", "perfect order", SIZE}
    assert len(stored["settings"]["temperatures"]) == 1  # fitted once: all queries share their examples
    args = parser.parse_args(["risk", str(tmp_path / "data"), "--shots", "0"])
    with pytest.raises(ValueError, match="at least 1"):
        args.run(args)
