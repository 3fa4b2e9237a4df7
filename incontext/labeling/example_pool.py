"""A large pool of examples, of which every query is shown the few that help it most."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from incontext.labeling.embedding import Embedder, centred
from incontext.predictor import Predictor
from incontext.types import Example

RELEVANCE = 0.7
"""What resembling the query weighs in a choice; the rest is what differing from the examples chosen before weighs."""

COVERAGE = 0.3
"""What showing all classes of the pool weighs, on the same scale: an example that shows none of those left adds 0."""


class ExamplePool:
    """Examples with their embeddings.

    Attributes:
        examples: in the user's order.
    """

    def __init__(
        self,
        predictor: Predictor,
        examples: Sequence[Example],
        *,
        embedder: Embedder | None = None,
        progress: Callable[[Iterable], Iterable] = iter,
    ) -> None:
        """Embeds the pool, once.

        Args:
            predictor: its model encodes the images.
            examples: at least one.
            embedder: embeds the pool, and may keep what it has embedded for later; one of its own by default.
            progress: wraps the loop over the examples.

        Raises:
            ValueError: there is no example.
        """
        if not examples:
            raise ValueError("expected at least one example in the pool, got none")
        self.examples = tuple(examples)
        self._embedder = Embedder(predictor) if embedder is None else embedder
        # The queries of a job come once each: only the pool is worth keeping.
        self._query_embedder = Embedder(predictor)
        vectors, _ = self._embedder.embed([example.image for example in self.examples], progress=progress)
        self._centre = vectors.mean(axis=0)
        self._vectors = centred(vectors, self._centre)
        ids = sorted({id for example in self.examples for id in example.ids})
        self._shows = np.array([np.isin(ids, example.ids) for example in self.examples]).reshape(len(examples), -1)

    def pick(self, image: Any, k: int) -> list[Example]:
        """The examples to show beside a query.

        Args:
            image: the query: path, PIL image or array.
            k: how many.

        Returns:
            k examples, or all where there are no more, the most useful one first. The same for the same query,
            whatever was asked before.

        Raises:
            ImageError: the image cannot be read.
            ValueError: k is below 1.
        """
        if k < 1:
            raise ValueError(f"k: expected 1 example or more, got {k}")
        vectors, errors = self._query_embedder.embed([image])
        for error in errors.values():
            raise error
        relevance = self._vectors @ centred(vectors[0], self._centre)
        return [self.examples[index] for index in pick(relevance, self._vectors, self._shows, k)]


def pick(relevance: np.ndarray, vectors: np.ndarray, shows: np.ndarray, k: int) -> list[int]:
    """Chooses examples one by one: maximal marginal relevance (Carbonell and Goldstein 1998), with classes.

    Each is the one with the most of: how much it resembles the query, how little it resembles those chosen before,
    and what part of the classes that are still missing it shows.

    Args:
        relevance: float (n,), similarity of each example to the query, -1..1.
        vectors: float (n, D), of unit length: how the examples resemble each other.
        shows: bool (n, C): which example shows which class.
        k: how many.

    Returns:
        min(k, n) indexes, the best first; of equals the one that comes first.
    """
    chosen: list[int] = []
    nearest = np.zeros(len(relevance))
    missing = np.ones(shows.shape[1], bool)
    free = np.ones(len(relevance), bool)
    for _ in range(min(k, len(relevance))):
        new = shows[:, missing].sum(axis=1) / max(1, shows.shape[1])
        value = RELEVANCE * relevance - (1 - RELEVANCE) * nearest + COVERAGE * new
        best = int(np.where(free, value, -np.inf).argmax())
        similar = vectors @ vectors[best]
        nearest = np.maximum(nearest, similar) if chosen else similar
        free[best] = False
        missing &= ~shows[best]
        chosen.append(best)
    return chosen
