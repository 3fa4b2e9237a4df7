"""Episodes: examples, a query, and the truth. How they are drawn is the protocol, so it is written down here.

Across images (sets whose images share classes). For each query, the pool is every other image that shows
all of the query's classes, or, where there are fewer than 16, the 16 that show most of them (ties at
random). Examples are drawn from the pool without replacement, and beyond it in the same order of
preference. What is asked for is what the first example shows: other ids are background in the truth and in
the further examples, and images that show none of it are no examples. So the first example and the truth of
a query are the same for every number of shots: more shots only add knowledge.

Within an image (sets whose ids mean nothing across images, such as BSDS500's segments). The image is cut
into two halves, left and right or top and bottom, whichever shares more; one is the example, the other
the query, so no pixel of the query is ever shown with its label. What is asked for is each segment that
covers at least 1% of both halves, up to the eight largest; only one shot exists.

Video. The first frame with its mask is the example for all later frames of its video, each segmented on
its own.

Scenes. Examples and queries are rendered scenes that hold something for the task.

All draws come from a seed and the set's and item's names: the limit, the order and other sets change nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from incontext.labelled_folders import ImageSet, Item, SetError, VideoSet
from incontext.scenes import TASKS, render_scene, task_labels
from incontext.types import IGNORE, Example

_POOL = 16
_SHARED = 0.01  # least share of a half that a segment covers
_SEGMENTS = 8


@dataclass(frozen=True, eq=False)
class Episode:
    """One unit of an evaluation.

    Attributes:
        name: of the query.
        image: uint8 (H, W, 3), the query.
        truth: int32 (H, W), what is asked for; `IGNORE` where unknown.
        examples: in the order of preference; the first k are the k-shot episode.
        ids: what is asked for, ids >= 1.
        group: the video's name, else "".
    """

    name: str
    image: np.ndarray
    truth: np.ndarray
    examples: tuple[Example, ...]
    ids: tuple[int, ...]
    group: str = ""


def across_images(source: ImageSet, shots: int, *, seed: int = 0, limit: int | None = None) -> Iterator[Episode]:
    """Episodes whose examples are other images of the set.

    Args:
        source: at least two images with something in them.
        shots: most examples per query; fewer where the set has fewer images.
        seed: of the draws.
        limit: most queries, spread evenly over the set.

    Raises:
        SetError: fewer than two images have something in them.
    """
    items = [item for item in source.items if item.ids]
    if len(items) < 2:
        raise SetError(f"{source.name}: expected at least two images with labelled objects; got {len(items)}")
    for query in spread(items, limit):
        order = _preference(query, items, _generator(seed, source.name, query.name))
        ids = set(order[0].ids)
        telling = [item for item in order if ids & set(item.ids)][:shots]
        examples = [Example(*_only(item, ids), names=_named(source.names, ids)) for item in telling]
        image, truth = _only(query, ids)
        yield Episode(query.name, image, truth, tuple(examples), tuple(sorted(ids)))


def _preference(query: Item, items: list[Item], generator: np.random.Generator) -> list[Item]:
    """The other items in the order in which they serve as examples for the query."""
    others = [items[i] for i in generator.permutation(len(items)) if items[i].name != query.name]
    shared = {item.name: len(set(item.ids) & set(query.ids)) for item in others}
    others.sort(key=lambda item: -shared[item.name])
    full = sum(count == len(query.ids) for count in shared.values())
    pool = min(max(full, _POOL), len(others))
    useful = [item for item in others[:pool] if shared[item.name]] or others[:1]
    chosen = [useful[i] for i in generator.permutation(len(useful))]
    taken = {item.name for item in chosen}
    return chosen + [item for item in others if item.name not in taken]


def within_image(source: ImageSet, *, seed: int = 0, limit: int | None = None) -> Iterator[Episode]:
    """Episodes whose example is the other half of the query's image; images without a shared segment are
    skipped."""
    for item in spread(list(source.items), limit):
        image, labels = item.open_pair()
        generator = _generator(seed, source.name, item.name)
        height, width = labels.shape
        cuts = [
            (np.s_[:, : width // 2], np.s_[:, width - width // 2 :]),
            (np.s_[: height // 2], np.s_[height - height // 2 :]),
        ]
        shared = [_shared_segments(labels[first], labels[second]) for first, second in cuts]
        best = int(np.argmax([sum(s.values()) for s in shared]))
        ids = sorted(shared[best], key=lambda id: -shared[best][id])[:_SEGMENTS]
        if not ids:
            continue
        example, query = cuts[best] if generator.random() < 0.5 else cuts[best][::-1]
        # ids grow with the size, small numbers whatever the set calls its segments
        small = np.zeros_like(labels)
        for number, id in enumerate(ids, start=1):
            small[labels == id] = number
        small[labels == IGNORE] = IGNORE
        shown = Example(np.ascontiguousarray(image[example]), np.ascontiguousarray(small[example]))
        yield Episode(
            item.name,
            np.ascontiguousarray(image[query]),
            np.ascontiguousarray(small[query]),
            (shown,),
            tuple(range(1, len(ids) + 1)),
        )


def _shared_segments(first: np.ndarray, second: np.ndarray) -> dict[int, float]:
    """id -> its smaller share of the two halves, for the segments that matter in both."""
    shares = {}
    for id in np.intersect1d(first, second):
        share = min(float((first == id).mean()), float((second == id).mean()))
        if id > 0 and share >= _SHARED:
            shares[int(id)] = share
    return shares


def first_frame(source: VideoSet, *, limit: int | None = None) -> Iterator[Episode]:
    """Episodes whose example is the first frame of the query's video; `limit` counts frames per video."""
    for video, frames in source.videos:
        image, labels = frames[0].open_pair()
        ids = tuple(int(i) for i in np.unique(labels) if i > 0)
        if not ids:
            continue
        shown = Example(image, labels, names=_named(source.names, set(ids)))
        for frame in spread(list(frames[1:]), limit):
            yield Episode(f"{video}/{frame.name}", *_only(frame, set(ids)), (shown,), ids, group=video)


def rendered(
    task: str, queries: int, shots: int, *, seed: int = 0, size: tuple[int, int] = (256, 256)
) -> Iterator[Episode]:
    """Episodes of rendered scenes; all queries share the examples.

    Args:
        task: a key of `incontext.scenes.TASKS`.
        queries: how many held-out scenes.
        shots: examples.
        seed: of the scenes.
        size: (H, W).
    """
    generator = _generator(seed, "scenes", task)

    def draw() -> tuple[np.ndarray, np.ndarray]:
        scene = render_scene(generator, size, task=task)
        return scene.image, task_labels(scene, task)

    examples = tuple(Example(*draw(), names=TASKS[task].names) for _ in range(shots))
    ids = tuple(sorted({id for e in examples for id in e.ids}))
    for number in range(1, queries + 1):
        image, truth = draw()
        truth[~np.isin(truth, ids)] = 0
        yield Episode(f"{task} {number}", image, truth, examples, ids)


def spread(items: list, limit: int | None) -> list:
    """At most `limit` of the items, evenly spaced; all of them where it is None."""
    if limit is None or limit >= len(items):
        return items
    return [items[i * len(items) // limit] for i in range(limit)]


def _generator(seed: int, *names: str) -> np.random.Generator:
    digest = hashlib.sha256("\0".join(names).encode()).digest()
    return np.random.default_rng([seed, int.from_bytes(digest[:8], "little")])


def _named(names: dict[int, str], ids: set[int]) -> dict[int, str]:
    return {id: names[id] for id in sorted(ids) if id in names}


def _only(item: Item, ids: set[int]) -> tuple[np.ndarray, np.ndarray]:
    """Image and labels, ids that are not asked for turned to background."""
    image, labels = item.open_pair()
    return image, np.where(np.isin(labels, [IGNORE, *ids]), labels, 0)
