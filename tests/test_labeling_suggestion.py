"""Suggestions stand for groups, largest first, and complement what is painted."""

from __future__ import annotations

import numpy as np
import pytest

import incontext.labeling.suggestion as suggestion
from incontext.labeling.suggestion import suggest


def groups(sizes=(30, 20, 10), seed=0, spread=0.15) -> tuple[np.ndarray, np.ndarray]:
    """Vectors around orthogonal axes, shuffled; and the group of each."""
    generator = np.random.default_rng(seed)
    group = generator.permutation(np.repeat(np.arange(len(sizes)), sizes))
    return np.eye(6)[group] + generator.normal(0, spread, (len(group), 6)), group


def test_one_of_each_group_with_its_share():
    vectors, group = groups()
    found = suggest(vectors, 3)
    assert sorted(group[each.index] for each in found) == [0, 1, 2]
    for each in found:
        assert each.share == pytest.approx((group == group[each.index]).mean(), abs=0.05)
        assert each.index not in each.stands_for
        assert all(group[member] == group[each.index] for member in each.stands_for[:5])
    assert sum(each.share for each in found) == pytest.approx(1)


def test_the_first_of_many_are_the_suggestions_for_few():
    vectors, _ = groups(seed=1)
    many = [each.index for each in suggest(vectors, 6)]
    assert [each.index for each in suggest(vectors, 2)] == many[:2] and len(set(many)) == 6


def test_an_outlier_is_no_suggestion():
    vectors, group = groups((30, 30))
    vectors = np.vstack([vectors, [[0, 0, 0, 0, 0, 9]]])
    assert 60 not in [each.index for each in suggest(vectors, 2)]


def test_complements_what_is_painted():
    vectors, group = groups((30, 20))
    painted = vectors[group == 0][:2]
    assert group[suggest(vectors, 1, painted=painted)[0].index] == 1
    assert group[suggest(vectors, 1, painted=vectors[group == 1][:2])[0].index] == 0


def test_is_close_to_the_best_of_many_random_choices():
    vectors, _ = groups((12, 11, 9, 5), seed=3, spread=0.4)
    unit = vectors - vectors.mean(0)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)

    def closeness(chosen):
        return (unit @ unit[chosen].T).max(1).mean()

    generator = np.random.default_rng(0)
    random = max(closeness(generator.choice(len(vectors), 4, replace=False)) for _ in range(100))
    assert closeness([each.index for each in suggest(vectors, 4)]) >= 0.95 * random


def test_large_folders_are_cut_to_candidates_and_blocks(monkeypatch):
    vectors, group = groups()
    whole = [group[each.index] for each in suggest(vectors, 3)]
    monkeypatch.setattr(suggestion, "_BLOCK", 7)
    assert [group[each.index] for each in suggest(vectors, 3)] == whole
    monkeypatch.setattr(suggestion, "_CANDIDATES", 20)
    assert sorted(group[each.index] for each in suggest(vectors, 3)) == [0, 1, 2]


def test_limits():
    vectors, _ = groups((2, 1))
    assert len(suggest(vectors, 99)) == 3
    for bad in (lambda: suggest(vectors, 0), lambda: suggest(vectors[:0], 1)):
        with pytest.raises(ValueError, match="at least one image"):
            bad()
