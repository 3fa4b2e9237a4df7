"""The tracker: ids stay, memory is bounded, and it goes on from any state as if it had never stopped."""

from __future__ import annotations

import gc
import itertools
import tracemalloc

import numpy as np
import pytest
import torch
from fake_models import ColourMatcher, MaskCopier, example
from predictions import predictor, same
from random_models import TINY_CACHED, random_model
from video_clips import moving

from incontext.pack.compiling import compile_pack
from incontext.types import IGNORE
from incontext.video.memory import Fifo, Selective
from incontext.video.tracker import RestoredMoment, Tracker


def accuracy(found, truth) -> float:
    return float((found == truth).mean())


def test_objects_keep_their_ids_from_the_first_frame_to_the_last():
    frames, truths = moving(12, ids=(3, 200))
    tracker = Tracker(predictor(), memory=4, names={3: "cell"})
    results = list(tracker.propagate(frames, truths[0]))
    assert len(results) == 12 and tracker.ids == (3, 200) and tracker.state.index == 11
    np.testing.assert_array_equal(results[0].labels, truths[0])
    assert results[0].scores == {3: 1.0, 200: 1.0} and (results[0].confidence == 1).all()
    for result, truth in zip(results, truths, strict=True):
        assert accuracy(result.labels, truth) > 0.93 and result.ids == (3, 200)
        assert result.names == {3: "cell"} and all(0 < score <= 1 for score in result.scores.values())


def test_an_object_may_leave_stay_hidden_and_return():
    frames, truths = moving(30, hidden={(2, k) for k in range(8, 24)})
    for memory in (Fifo(3), Selective(3, every=1)):
        results = list(Tracker(predictor(), memory=memory).propagate(frames, truths[0]))
        assert [2 in result.ids for result in results] == [2 in np.unique(truth) for truth in truths]
        assert accuracy(results[-1].labels, truths[-1]) > 0.93


def test_objects_of_several_passes_keep_their_ids():
    frames, truths = moving(5, ids=(1, 5, 9))
    model = ColourMatcher(ids_per_pass=2)
    results = list(Tracker(predictor(model), memory=2).propagate(frames, truths[0]))
    assert [accuracy(result.labels, truth) > 0.9 for result, truth in zip(results, truths, strict=True)] == [True] * 5


def test_memory_is_bounded_and_holds_small_frames():
    frames, truths = moving(30, size=(96, 128), ids=(1, 2, 3))
    for policy in (Fifo(4), Selective(4, every=1, novelty=0)):
        tracker = Tracker(predictor(MaskCopier()), memory=policy)
        for index in range(60):
            tracker.step(frames[index % 30], truths[0] if index == 0 else None)
            state = tracker.state
            assert len(state.moments) <= 5 and set(state.shown) == {each.index for each in state.moments}
        assert state.moments[0].given and state.moments[0].index == 0
        assert {each.size for each in state.shown.values()} == {tracker.predictor.model.config.image_size}


@pytest.mark.slow
def test_ten_thousand_frames_take_no_more_memory_than_a_thousand():
    frames, truths = moving(30)
    tracker = Tracker(predictor(random_model(TINY_CACHED)), memory=Fifo(4))
    stream = tracker.propagate(itertools.cycle(frames), truths[0])
    sizes = []
    tracemalloc.start()
    for index in range(10_001):
        next(stream)
        if index in (1000, 10_000):
            gc.collect()
            sizes.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert sizes[1] - sizes[0] < 200_000  # bytes


def test_a_model_sees_the_painted_frame_and_the_memory_and_nothing_else():
    frames, truths = moving(6)
    model = ColourMatcher()
    tracker = Tracker(predictor(model), memory=Fifo(2))
    list(tracker.propagate(frames, truths[0]))
    assert [call["images"].shape[1] for call in model.calls] == [1, 2, 3, 3, 3]
    model.calls.clear()
    list(Tracker(predictor(model), memory=0).propagate(frames, truths[0]))
    assert [call["images"].shape[1] for call in model.calls] == [1] * 5


def test_colours_survive_memory():
    """What memory shows is painted in the palette's own colours, not in those that the model put out."""
    frames, truths = moving(4)
    model = ColourMatcher()
    tracker = Tracker(predictor(model), memory=Fifo(3))
    list(tracker.propagate(frames, truths[0]))
    last = model.calls[-1]["targets"][0]  # (N, 3, h, w)
    colours = [torch.unique(each.flatten(1).round(decimals=4), dim=1).T for each in last]
    assert all(torch.equal(each, colours[0]) and len(each) == 3 for each in colours)


def test_a_frame_that_does_not_lead_back_stays_out():
    """A model that copies masks is certain and wrong: what it makes of a frame with other objects leads nowhere."""
    frames, truths = moving(8)
    wrong = np.roll(truths[0], 30, axis=1)

    class Drifter(MaskCopier):
        def paint(self, query, images, targets, query_target):
            return targets[:, -1].roll(9, dims=-1)

    tracker = Tracker(predictor(Drifter()), memory=Selective(4, recent=0, every=1, novelty=0))
    list(tracker.propagate(frames, wrong))
    assert [each.index for each in tracker.state.moments] == [0] and tracker.echo < 0.9
    faithful = Tracker(predictor(), memory=Selective(4, recent=0, every=1, novelty=0))
    list(faithful.propagate(frames, truths[0]))
    assert len(faithful.state.moments) == 5 and faithful.echo > 0.9


def test_new_objects_and_corrections_may_come_at_any_frame():
    frames, truths = moving(9, ids=(1, 2))
    tracker = Tracker(predictor(), memory=Fifo(3))
    for index, (frame, truth) in enumerate(zip(frames, truths, strict=True)):
        mask = {0: np.where(truth == 1, 1, 0), 4: np.where(truth == 2, 2, 0)}.get(index)
        result = tracker.step(frame, mask)
        if index >= 4:
            assert accuracy(result.labels, truth) > 0.93, index
    assert tracker.state.slots.passes == ((1,), (2,))
    corrected = np.where(truths[8] == 1, 2, np.where(truths[8] == 2, 1, 0))
    result = tracker.step(frames[8], corrected, index=8)
    np.testing.assert_array_equal(result.labels, corrected)
    assert all(each.given for each in tracker.state.moments)  # what was wrong is forgotten


def test_what_a_mask_leaves_open_is_followed():
    frames, truths = moving(4)
    tracker = Tracker(predictor(), memory=Fifo(2))
    tracker.step(frames[0], truths[0])
    mask = np.full_like(truths[1], IGNORE)
    mask[truths[1] == 2] = 2
    result = tracker.step(frames[1], mask)
    assert accuracy(result.labels, truths[1]) > 0.93 and result.scores[2] == 1.0
    gone = tracker.step(frames[2], np.where(truths[2] == 2, 2, 0), ids=(1, 2))
    assert gone.ids == (2,)


def test_both_ways_from_a_frame_in_the_middle():
    frames, truths = moving(11)
    found = list(Tracker(predictor(), memory=2).propagate_both(frames, {4: truths[4], 8: truths[8]}))
    assert [place for place, _ in found] == [4, 5, 6, 7, 8, 9, 10, 3, 2, 1, 0]
    assert all(accuracy(result.labels, truths[place]) > 0.93 for place, result in found)
    with pytest.raises(ValueError, match="places from 0 to 10"):
        Tracker(predictor()).propagate_both(frames, {11: truths[0]})


def test_painted_frames_that_are_known_beforehand_share_their_passes():
    frames, truths = moving(6, hidden={(2, 0)})
    tracker = Tracker(predictor(), memory=Selective(3, every=1, novelty=0))
    found = dict(tracker.propagate_both(frames, {0: truths[0], 3: truths[3]}))
    assert tracker.state.slots.passes == ((1, 2),)
    assert all(accuracy(found[k].labels, truths[k]) > 0.93 for k in range(6))


def test_an_object_too_thin_to_be_seen_costs_no_other(caplog):
    frames, truths = moving(3, ids=(1,), size=(320, 320))
    mask = truths[0].copy()
    mask[300, 3] = 2
    model = ColourMatcher(ids_per_pass=1)
    results = list(Tracker(predictor(model), memory=2).propagate(frames, mask))
    assert "ids [2] are too thin" in caplog.text
    assert all(accuracy(result.labels, truth) > 0.97 for result, truth in zip(results[1:], truths[1:], strict=True))


def test_examples_from_elsewhere_need_no_mask():
    frames, truths = moving(5)
    tracker = Tracker(predictor(), memory=Fifo(2), examples=[example([1, 2], names={1: "left"})])
    results = list(tracker.propagate(frames))
    assert all(accuracy(result.labels, truth) > 0.93 for result, truth in zip(results, truths, strict=True))
    assert results[0].names == {1: "left"}


def test_a_pack_needs_no_mask_and_newcomers_join_it():
    frames, truths = moving(4)
    model = random_model(TINY_CACHED)
    engine = predictor(model)
    pack = compile_pack(model, [example([1, 2], names={1: "left", 2: "right"})], name="sides")
    tracker = Tracker(engine, memory=Fifo(2), examples=pack)
    first = tracker.step(frames[0])
    same(first, engine.predict(frames[0], pack))
    assert first.names == {1: "left", 2: "right"}
    tracker.step(frames[1], np.where(truths[1] == 1, 7, 0))
    assert tracker.state.slots.passes == ((1, 2), (7,)) and tracker.ids == (1, 2, 7)
    assert set(tracker.step(frames[2]).ids) <= {1, 2, 7}


def test_any_iterator_works_and_nothing_is_read_ahead():
    frames, truths = moving(3)
    taken = []

    def camera():
        while True:
            taken.append(len(taken))
            yield frames[len(taken) % 3]

    stream = Tracker(predictor(), memory=2).propagate(camera(), {2: truths[0]})
    first = [next(stream) for _ in range(2)]
    assert taken == [0, 1] and all(not result.labels.any() and not result.confidence.any() for result in first)
    assert next(stream).ids == (1, 2) and taken == [0, 1, 2]


@pytest.mark.parametrize("policy", [Fifo(2), Selective(3, every=2, certainty=0, echo=0, novelty=0)])
def test_a_restored_tracker_goes_on_as_if_it_had_never_stopped(policy):
    frames, truths = moving(10, size=(40, 52))
    engine = predictor(random_model(TINY_CACHED))
    whole = Tracker(engine, memory=policy)
    results = []
    for index, frame in enumerate(frames):
        results.append(whole.step(frame, truths[0] if index == 0 else None))
        if index == 5:
            passes, moments = whole.state.slots.passes, whole.state.moments
    restored = Tracker(engine, memory=policy)
    restored.restore(
        5,
        passes,
        [
            RestoredMoment(
                each.index, frames[each.index], results[each.index].labels, each.certainty, each.given, each.echo
            )
            for each in moments
        ],
    )
    for index in range(6, 10):
        same(restored.step(frames[index]), results[index], confidence=0)


def test_an_example_is_encoded_once():
    frames, truths = moving(8)
    model, count = random_model(TINY_CACHED), []
    engine = predictor(model)
    encode = engine.model.encode_prompt
    engine.model.encode_prompt = lambda *args, **options: count.append(args[0].shape[1]) or encode(*args, **options)
    list(Tracker(engine, memory=Fifo(3)).propagate(frames, truths[0]))
    assert count == [1] * 7  # the painted frame, and each that entered before the last step


def test_joined_memory_equals_memory_encoded_at_once():
    frames, truths = moving(5)
    engine = predictor(random_model(TINY_CACHED))
    tracker = Tracker(engine, memory=Fifo(3))
    list(tracker.propagate(frames[:4], truths[0]))
    shown = [tracker.state.shown[each.index] for each in tracker.state.moments]
    same(tracker.step(frames[4]), engine.predict(frames[4], shown))


def test_what_is_missing_or_wrong_is_named():
    frames, truths = moving(2)
    tracker = Tracker(predictor())
    with pytest.raises(ValueError, match="expected a mask with the first frame"):
        tracker.step(frames[0])
    with pytest.raises(ValueError, match="labels: expected shape"):
        tracker.step(frames[0], truths[0][:-1])
    with pytest.raises(TypeError, match="read_frames"):
        tracker.propagate("clip.mp4", truths[0])
    with pytest.raises(ValueError, match="propagate: expected a mask"):
        tracker.propagate(frames)
    with pytest.raises(ValueError, match="size"):
        Tracker(predictor(), memory=-1)
