"""Which images to paint first: the few that stand for the whole folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from incontext.labeling.embedding import centred

_CANDIDATES = 2000  # images that may be suggested; of more, evenly spread ones are tried
_BLOCK = 1024  # images whose similarities to all candidates are held at once


@dataclass(frozen=True)
class Suggestion:
    """An image to paint.

    Attributes:
        index: of the image.
        share: part of the folder that resembles it more than any other suggestion, or than what is painted already,
            0..1.
        stands_for: indexes of the images that it stands for, the most similar first, without itself.
    """

    index: int
    share: float
    stands_for: tuple[int, ...]


def suggest(vectors: np.ndarray, k: int, *, painted: np.ndarray | None = None) -> list[Suggestion]:
    """Chooses the images whose examples should help the others most.

    Greedy k-medoids: each suggestion is the image that brings the whole folder closest to what is painted then.
    So the first few of many suggestions are the suggestions for few. Unlike farthest points (k-centre), it leaves
    outliers for later: an image that resembles no other is a poor example.

    Args:
        vectors: float (n, D), embeddings of the images; see `incontext.labeling.embedding`.
        k: how many to suggest.
        painted: float (m, D), embeddings of images that have masks already.

    Returns:
        k suggestions, or as many as there are images, the most useful one first. Deterministic; of equals the first.

    Raises:
        ValueError: k is below 1, or there is no image.
    """
    if k < 1 or not len(vectors):
        raise ValueError(f"expected at least one image and k of 1 or more, got {len(vectors)} images and k = {k}")
    centre = vectors.mean(axis=0)
    vectors = centred(vectors, centre)
    count = min(len(vectors), _CANDIDATES)
    candidates = np.arange(count) * len(vectors) // count
    nearest = np.full(len(vectors), -1.0)
    if painted is not None and len(painted):
        nearest = (vectors @ centred(painted, centre).T).max(axis=1)
    before = nearest.copy()
    chosen: list[int] = []
    for _ in range(min(k, count)):
        gains = _gains(vectors, candidates, nearest)
        gains[np.isin(candidates, chosen)] = -np.inf
        best = int(candidates[gains.argmax()])
        chosen.append(best)
        nearest = np.maximum(nearest, vectors @ vectors[best])
    similar = vectors @ vectors[chosen].T  # (n, k)
    owner = np.where(similar.max(axis=1) >= before, similar.argmax(axis=1), -1)
    owner[chosen] = np.arange(len(chosen))
    return [
        Suggestion(index, float((owner == number).mean()), _members(similar[:, number], owner == number, index))
        for number, index in enumerate(chosen)
    ]


def _gains(vectors: np.ndarray, candidates: np.ndarray, nearest: np.ndarray) -> np.ndarray:
    """How much closer the folder comes with each candidate: float (candidates,)."""
    gains = np.zeros(len(candidates))
    for start in range(0, len(vectors), _BLOCK):
        rows = slice(start, start + _BLOCK)
        similar = vectors[rows] @ vectors[candidates].T
        gains += np.maximum(similar - nearest[rows, None], 0).sum(axis=0)
    return gains


def _members(similar: np.ndarray, owned: np.ndarray, index: int) -> tuple[int, ...]:
    members: Sequence[int] = np.flatnonzero(owned)
    return tuple(int(i) for i in sorted(members, key=lambda i: -similar[i]) if i != index)
