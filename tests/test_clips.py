"""Rendered clips: the truth is exact, everything announced happens; and ids are counted right on them."""

import numpy as np
import pytest

from incontext.evaluation.clip_scores import IdCounts, clip_table, count_ids, random_clips, score_clips
from incontext.scenes.clips import EVENTS, render_clip


def clip(seed=0, **changes):
    options = {"size": (96, 120), "frames": 24, "objects": 4, **changes}
    return render_clip(np.random.default_rng(seed), **options)


def areas(labels, id):
    return (labels == id).sum(axis=(1, 2))


def test_equal_generators_give_equal_clips():
    a, b, c = clip(3), clip(3), clip(4)
    assert np.array_equal(a.frames, b.frames) and np.array_equal(a.labels, b.labels)
    assert not np.array_equal(a.frames, c.frames)
    assert a.frames.shape == (24, 96, 120, 3) and a.frames.dtype == np.uint8 and a.labels.dtype == np.int32


@pytest.mark.parametrize("objects", [1, 2, 7, 20])
def test_every_object_is_seen_first(objects):
    shown = clip(5, objects=objects, frames=8)
    assert np.unique(shown.labels[0]).tolist() == list(range(objects + 1))


@pytest.mark.parametrize("objects", range(9, 21))
def test_where_there_is_little_room_shapes_are_smaller(objects):
    for seed in range(2):
        shown = render_clip(np.random.default_rng([0, objects, seed]), size=(64, 64), frames=8, objects=objects)
        assert len(np.unique(shown.labels[0])) == objects + 1


@pytest.mark.parametrize("seed", range(4))
def test_what_is_announced_happens(seed):
    shown = clip(seed)
    assert [event for event, _ in shown.events] == list(EVENTS)
    for event, ids in shown.events:
        seen = [areas(shown.labels, id) for id in ids]
        if event == "crossing":  # the higher id covers the lower one for a while
            covered = seen[0].argmin()
            assert seen[0][covered] < 0.5 * seen[0].max()
            assert min(seen[0][:covered].max(), seen[0][covered:].max()) > 0.5 * seen[0].max()
        else:  # gone for a while, and back
            gone = np.flatnonzero(seen[0] == 0)
            assert len(gone) >= 3 and seen[0][0] > 0
            assert seen[0][gone[-1] + 1 :].max(initial=0) > 0


def test_labels_are_where_the_picture_moves():
    """Away from every shape and pillar the picture stands still; inside a shape it is not the ground."""
    shown = clip(1, objects=2, events=())
    never = (shown.labels == 0).all(axis=0)
    inner = never & ~np.roll(~never, (1, 1), (0, 1)) & ~np.roll(~never, (-1, -1), (0, 1))
    assert (shown.frames[:, inner].astype(int).std(axis=0) < 25).mean() > 0.95
    here, elsewhere = shown.labels[0] == 1, shown.labels[-1] == 0
    both = here & elsewhere
    assert np.abs(shown.frames[0][both].astype(int) - shown.frames[-1][both]).max() > 40


def test_what_cannot_be_drawn_is_refused():
    for changes, message in (({"objects": 21}, "1 to 20"), ({"frames": 2}, "8 frames"), ({"events": ["jump"]}, "jump")):
        with pytest.raises(ValueError, match=message):
            clip(**changes)


def strip(*rows):
    """Frames of 3 x 8 pixels from one row each."""
    return [np.repeat([row], 3, axis=0) for row in rows]


def test_ids_are_counted_by_hand():
    truth = strip(
        [1, 1, 0, 2, 2, 0, 0, 0], [0, 1, 1, 2, 2, 0, 0, 0], [0, 0, 0, 2, 2, 1, 1, 0], [2, 2, 0, 0, 0, 0, 0, 0]
    )
    perfect = IdCounts(switches=0, lost=0, ghosts=0, visible=5, hidden=1)
    assert count_ids(truth, truth) == perfect
    swapped = [truth[0], *strip([0, 2, 2, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 2, 2, 0], [1, 1, 0, 0, 0, 0, 0, 0])]
    # Both switch once, and stay switched. Object 1 is gone in the last frame while its id is still painted.
    assert count_ids(swapped, truth) == IdCounts(switches=2, lost=0, ghosts=1, visible=5, hidden=1)
    nothing = [truth[0], *[np.zeros((3, 8), int)] * 3]
    assert count_ids(nothing, truth) == IdCounts(switches=0, lost=5, ghosts=0, visible=5, hidden=1)


def test_slivers_are_not_asked_for():
    truth = strip([1, 1, 1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0])
    assert count_ids([truth[0], truth[1] * 0], truth) == IdCounts()


def test_a_tracker_that_knows_and_one_that_stands_still():
    clips = list(random_clips(3, 1, size=(64, 64), frames=8))
    (only,) = clips
    knows = score_clips(3, clips, lambda frames, given: list(only.labels))
    assert (knows.j, knows.f, knows.counts.switches, knows.counts.lost) == (1, 1, 0, 0)
    still = score_clips(3, clips, lambda frames, given: [given[0] for _ in frames])
    assert still.j < 0.7 and still.counts.lost > 0
    assert [row[:3] for row in clip_table({"a": [knows]})[1:]] == [["a", "3", "0"]]
