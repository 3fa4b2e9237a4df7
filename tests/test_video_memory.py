"""Memory policies and slots are pure: what they decide follows from moments alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from incontext.palette import Palette
from incontext.video.memory import Fifo, Moment, Selective, distance, look_of, pin
from incontext.video.slots import Slots


def moment(index, ids=(1,), certainty=0.9, look=0, echo=1.0, given=False) -> Moment:
    """Looks are axes: two are as far apart as can be, unless they are the same."""
    direction = np.zeros(8, np.float32)
    direction[look] = 1
    return Moment(index, frozenset(ids), certainty, direction, given, echo)


def run(policy, moments) -> list[int]:
    kept = ()
    for each in moments:
        kept = policy.keep(kept, each)
        assert len(kept) <= policy.size
    return [each.index for each in kept]


def test_fifo_keeps_the_last_whatever_they_show():
    moments = [moment(k, certainty=0.0, ids=()) for k in range(10)]
    assert run(Fifo(3), moments) == [7, 8, 9] and run(Fifo(0), moments) == []
    assert not Fifo(3).asks((), moments[0])


def test_what_stays_is_certain_leads_back_and_is_new():
    policy = Selective(4, recent=0, every=1)
    good = moment(0)
    assert run(policy, [good]) == [0]
    assert run(policy, [moment(0, certainty=0.59)]) == [] and run(policy, [moment(0, echo=0.79)]) == []
    assert run(policy, [moment(0, echo=None)]) == [0]  # nothing was painted that it could lead back to
    assert run(policy, [moment(0, ids=())]) == []
    assert run(policy, [good, moment(1)]) == [0]  # the same look
    assert run(policy, [good, moment(1, look=1)]) == [0, 1]
    assert run(policy, [good, moment(1, ids=(1, 2))]) == [0, 1]  # the same look, but another object
    assert run(policy, [good, moment(1, look=1), moment(2)]) == [0, 1]  # seen before, if not just now
    assert run(replace(policy, every=3), [moment(k, look=k) for k in range(8)]) == [0, 3, 6]
    assert run(Selective(0), [good]) == []


def test_an_uncertain_frame_stands_in_until_there_is_a_certain_one():
    policy, doubtful = Selective(4), [moment(k, certainty=0.3) for k in range(8)]
    assert run(policy, doubtful[:1]) == [0] and run(policy, doubtful) == [7]
    assert run(policy, [*doubtful[:3], moment(3), *doubtful[4:]]) == [3]
    assert run(policy, [doubtful[0], moment(1, ids=())]) == [0] and not policy.asks((), doubtful[0])


def test_the_last_certain_frames_are_remembered_for_a_while():
    policy = Selective(4, recent=2, every=2)
    bad = moment(3, certainty=0.1)
    assert run(policy, [moment(k) for k in range(3)]) == [0, 1, 2]  # the same look: recent ones need not be new
    assert run(policy, [moment(0), moment(1), moment(2), bad, moment(4, ids=())]) == [0, 1, 2]
    assert run(policy, [moment(k, look=k, echo=0.0) for k in range(8)]) == [6, 7]  # none leads back
    assert run(policy, [moment(k, look=k) for k in range(8)]) == [2, 4, 6, 7]
    assert run(Selective(2, recent=2, every=1), [moment(k, look=k) for k in range(8)]) == [6, 7]
    assert [Selective(size).recent for size in (0, 1, 4, 8)] == [0, 1, 2, 4]


def test_an_echo_is_asked_only_of_frames_that_may_stay():
    policy = Selective(4, recent=0, every=2)
    assert policy.asks((), moment(0, echo=None)) and not policy.asks((), moment(1, echo=None))
    assert not policy.asks((), moment(0, certainty=0.1)) and not policy.asks((moment(0),), moment(2))
    assert replace(policy, recent=1).asks((moment(0),), moment(2))  # the one before may be gone by then
    assert not replace(policy, recent=4).asks((), moment(0))


def test_the_most_redundant_moment_goes_and_the_newest_stays():
    looks = [0, 1, 2, 1, 3]  # the fourth looks like the second
    moments = [moment(k, look=look) for k, look in enumerate(looks)]
    assert run(Selective(4, recent=0, every=1, novelty=0), moments) == [0, 2, 3, 4]


def test_the_only_moment_that_shows_an_object_stays():
    moments = [moment(0, ids=(1, 2)), *(moment(k, ids=(1,), look=k % 7) for k in range(1, 40))]
    kept = run(Selective(3, every=1), moments)
    assert 0 in kept and kept[-1] == 39


def test_painted_frames_are_pinned_and_bounded():
    first = [moment(k, ids=(k + 1,), given=True) for k in range(3)]
    later = [moment(k, ids=(1, 2), given=True) for k in range(3, 30)]
    assert [each.index for each in pin([*first, *later], limit=5)] == [0, 1, 2, 28, 29]
    assert len(pin([moment(k, ids=(k + 1,), given=True) for k in range(9)], limit=5)) == 9  # one for each id


def test_looks_are_near_when_objects_are():
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)

    def at(left):
        labels = np.zeros((48, 64), np.int32)
        labels[10:30, left : left + 20] = 1
        return Moment(left, frozenset({1}), 1.0, look_of(image, labels))

    assert (
        distance(at(4), at(4)) == 0 < distance(at(4), at(5)) < 0.2 < distance(at(4), at(16)) < distance(at(4), at(40))
    )
    assert 0.7 < distance(at(4), at(40)) <= 1
    empty = Moment(0, frozenset(), 1.0, look_of(image, np.zeros((48, 64), np.int32)))
    assert distance(empty, empty) == 0


@pytest.mark.parametrize(
    "wrong", [{"size": -1}, {"size": 2.0}, {"recent": 9}, {"novelty": 2}, {"echo": -1}, {"every": 0}]
)
def test_values_out_of_range_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Selective(**wrong)


def test_ids_keep_their_pass_and_colour_when_others_come():
    slots = Slots().grow([7, 3, 9], 2, Palette.for_ids)
    assert slots.passes == ((3,), (7, 9)) and slots.ids == {3, 7, 9}
    grown = slots.grow([3, 1], 2, Palette.for_ids)
    assert grown.palettes[:2] == slots.palettes and grown.passes == ((3,), (7, 9), (1,))
    assert grown.grow([1, 9], 2, Palette.for_ids) is grown


def test_slots_paint_ids_of_all_passes_apart():
    slots = Slots().grow(range(1, 20), 6, Palette.for_ids)
    labels = np.array([[0, -1, 1, 19, 500, 7]])
    painted = slots.paint(labels)[0]
    assert (painted[[0, 1, 4]] == 0).all() and len(np.unique(painted, axis=0)) == 4
    assert not Slots().paint(labels).any()
