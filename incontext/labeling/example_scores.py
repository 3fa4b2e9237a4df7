"""Which of the user's examples help, which harm, and which few of them do best.

Everything is measured on the examples themselves: each is predicted from others and compared with its own mask.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from incontext.labeling.left_out import LeftOut

MOST = 48
"""More examples than this are a pool to pick from for every query (see `example_pool`), not a prompt."""

HARM = 0.005
"""How much the IoU of the others must rise without an example, on average, for it to count as harmful."""

_FINALISTS = 12  # examples that the search goes on with after its first step
_LEAST_QUERIES = 4
_GAIN = 0.002  # IoU that another example must add


@dataclass(frozen=True)
class ExampleScore:
    """What one example is worth.

    Attributes:
        iou: how well the others predict it, 0..1. Low: it shows something else than they do, or its mask is wrong.
        effect: what it adds to the IoU of others, on average, when all the rest are shown too; negative if it
            harms. nan with fewer than three examples, where without it nothing would be left to compare.
        hurt: part of the others that are predicted better without it, 0..1; nan likewise.
    """

    iou: float
    effect: float
    hurt: float

    @property
    def harmful(self) -> bool:
        """Whether the others do better without it: clearly on average, and in more than half of the cases."""
        return self.effect < -HARM and self.hurt > 0.5

    @property
    def helpful(self) -> bool:
        """Whether the others do worse without it: clearly on average, and not in less than half of the cases."""
        return self.effect > HARM and self.hurt < 0.5


@dataclass(frozen=True)
class ExampleReport:
    """Scores of all examples, and the best subset that was found.

    Attributes:
        scores: one for each example.
        iou: mean of their `iou`: what all of them together reach.
        subset: indexes of the examples to use, the most useful first; all where no fewer that were tried do as well.
        subset_iou: what they reach, estimated on the same queries. It is the best of many tries, so a little high.
        predictions: how many were made.
    """

    scores: tuple[ExampleScore, ...]
    iou: float
    subset: tuple[int, ...]
    subset_iou: float
    predictions: int

    def is_odd(self, index: int) -> bool:
        """Whether the others predict an example so badly, below half of the median, that its mask may be wrong, or
        that it shows something of its own."""
        return self.scores[index].iou < 0.5 * float(np.median([score.iou for score in self.scores]))


@dataclass(frozen=True)
class Plan:
    """How the predictions are spent.

    Attributes:
        count: examples.
        effect_queries: on how many others each example's effect is measured.
        subset_queries: on how many examples each candidate subset is measured.
        size: of the largest subset that is tried.
    """

    count: int
    effect_queries: int
    subset_queries: int
    size: int

    @classmethod
    def of(cls, count: int, *, budget: int = 1000, size: int = 8) -> Plan:
        """Shares out a number of predictions.

        Args:
            count: examples, 2 to `MOST`.
            budget: predictions; every question is put to at least four queries, though, which sets a minimum.
            size: of the largest subset to try.

        Raises:
            ValueError: a number is out of its range.
        """
        if not 2 <= count <= MOST:
            raise ValueError(
                f"expected 2 to {MOST} examples to compare, got {count}; "
                "of a larger pool let every query pick its own examples (incontext label --select)"
            )
        if budget < 1 or size < 1:
            raise ValueError(f"expected a budget and a size of at least 1, got {budget} and {size}")
        size = min(size, count - 1)
        tries = count + min(_FINALISTS, count) * (size - 1)
        effect = min(count - 1, max(_LEAST_QUERIES, (budget // 2 - count) // count)) if count > 2 else 0
        return cls(count, effect, min(count, max(_LEAST_QUERIES, budget // 2 // tries)), size)

    @property
    def predictions(self) -> int:
        """The most that will be made."""
        tries = self.count + min(_FINALISTS, self.count) * (self.size - 1)
        return self.count + self.count * self.effect_queries + tries * self.subset_queries


def score_examples(left_out: LeftOut, plan: Plan, *, done: Callable[[], object] = lambda: None) -> ExampleReport:
    """Scores examples by leaving them out.

    Args:
        left_out: the examples, and what predicts them.
        plan: for that many examples.
        done: called after each prediction, at most `plan.predictions` times.

    Returns:
        The report. The same for the same examples in the same order.
    """
    everyone = range(plan.count)
    whole = np.array(left_out.ious([(query, everyone) for query in everyone], done=done))
    scores = []
    for index in everyone:
        changes = np.array([math.nan])
        if plan.effect_queries:
            queries = _spread([query for query in everyone if query != index], plan.effect_queries)
            rest = [other for other in everyone if other != index]
            changes = whole[queries] - left_out.ious([(query, rest) for query in queries], done=done)
        hurt = float((changes < 0).mean()) if plan.effect_queries else math.nan
        scores.append(ExampleScore(float(whole[index]), float(changes.mean()), hurt))
    subset, gain = _search(left_out, plan, whole, done)
    if gain < 0:
        subset, gain = tuple(everyone), 0.0
    return ExampleReport(tuple(scores), float(whole.mean()), subset, float(whole.mean()) + gain, left_out.predictions)


def _search(
    left_out: LeftOut, plan: Plan, whole: np.ndarray, done: Callable[[], object]
) -> tuple[tuple[int, ...], float]:
    """Greedy forward selection: the subset, and what it adds to the IoU that all examples reach.

    Images differ in difficulty, and an example is no query for itself, so subsets are compared by how each query
    differs from what all the others reach on it.
    """
    queries = _spread(list(range(plan.count)), plan.subset_queries)

    def gain(subset: tuple[int, ...]) -> float:
        tasks = [(query, subset) for query in queries if set(subset) != {query}]
        ious = left_out.ious(tasks, done=done)
        return float(np.mean([iou - whole[query] for iou, (query, _) in zip(ious, tasks, strict=True)]))

    singles = {(index,): gain((index,)) for index in range(plan.count)}
    finalists = [subset[0] for subset in sorted(singles, key=lambda subset: -singles[subset])][:_FINALISTS]
    best, best_gain = (finalists[0],), singles[finalists[0],]
    while len(best) < plan.size:
        larger = {(*best, index): gain((*best, index)) for index in finalists if index not in best}
        if not larger:
            break
        winner = max(larger, key=lambda subset: larger[subset])
        if larger[winner] < best_gain + _GAIN:
            break
        best, best_gain = winner, larger[winner]
    return best, best_gain


def _spread(items: Sequence[int], count: int) -> list[int]:
    """At most `count` of the items, evenly spaced."""
    count = min(count, len(items))
    return [items[k * len(items) // count] for k in range(count)]
