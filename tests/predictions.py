"""Short ways to predictors and inputs, and what makes two segmentations the same."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from fake_models import ColourMatcher
from random_models import TINY, random_model

from incontext.model.seggpt import SegGPT
from incontext.predictor import Predictor


def predictor(model=None, **options) -> Predictor:
    return Predictor(model or ColourMatcher(), device="cpu", **options)


def tiny(**changes) -> SegGPT:
    return random_model(dataclasses.replace(TINY, **changes))


def photo(size=(40, 52), seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def same(a, b, confidence=1e-5):
    np.testing.assert_array_equal(a.labels, b.labels)
    np.testing.assert_allclose(a.confidence, b.confidence, atol=confidence)
    np.testing.assert_allclose(a.painting.astype(int), b.painting.astype(int), atol=1)  # rounding at .5
    assert a.scores.keys() == b.scores.keys() and a.names == b.names
    assert all(a.scores[id] == pytest.approx(b.scores[id], abs=confidence) for id in a.scores)
