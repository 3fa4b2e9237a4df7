"""Episodes: examples and a query that share what is to be painted, drawn from a pack.

Four sources of pairs, as in the SegGPT paper (section 3.1) and beyond it: two images that hold the same class, two
views of one image, the same cut-out objects pasted onto two backgrounds, and rendered scenes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from incontext.scenes import TASKS, random_task, render_scene, task_labels
from incontext.training.augment import crop, jitter, mix_channels, random_box
from incontext.training.pack import IGNORE_ID, Pack, Record

HANDED = frozenset({"car_parts_train", "car_parts_test"})  # sets whose classes tell left from right
SMALLEST = 0.004  # share of a view that something must cover to be asked for
_TRIES = 6
_DRAWS = 500


@dataclass(frozen=True)
class Episode:
    """One unit of training: the last view is the query, those before it are the examples.

    Attributes:
        images: uint8 (N + 1, S, S, 3).
        labels: uint8 (N + 1, S, S): 0 is background and distractors, 1..count are painted, 255 is ignored.
        count: number of different things that are painted.
        kind: "semantic" or "instance".
        source: where it came from, for logs.
    """

    images: np.ndarray
    labels: np.ndarray
    count: int
    kind: str
    source: str


@dataclass(frozen=True)
class Mixture:
    """How episodes are drawn.

    Attributes:
        weights: relative weight of each set; sets that it does not name get 1, and 0 leaves a set out.
        views: share of episodes that show two views of one image.
        pasted: share of episodes with cut-out objects on two backgrounds.
        rendered: share of episodes with rendered scenes, in which the same question is asked of each.
        largest_count: the most things painted in one episode.
        augment: whether views are cropped, flipped and recoloured at random. Validation does not.
    """

    weights: Mapping[str, float]
    views: float = 0.25
    pasted: float = 0.15
    rendered: float = 0.1
    largest_count: int = 6
    augment: bool = True


class EpisodeSampler:
    """Draws episodes from a pack; the same generator state gives the same episode."""

    def __init__(self, pack: Pack, mixture: Mixture) -> None:
        """Indexes the pack by set and class.

        Raises:
            ValueError: if the mixture leaves nothing to draw from.
        """
        self.pack, self.mixture = pack, mixture
        self.by_class: dict[str, dict[int, list[int]]] = {}
        self.labelled: dict[str, list[int]] = {}
        self.with_instances: list[int] = []
        for name, indexes in pack.sets.items():
            if mixture.weights.get(name, 1.0) <= 0:
                continue
            classes: dict[int, list[int]] = {}
            for index in indexes:
                for id, share in pack.classes(index).items():
                    if share >= SMALLEST:
                        classes.setdefault(id, []).append(index)
            self.labelled[name] = sorted({index for group in classes.values() for index in group})
            # BSDS segments have numbers, not classes: they mean nothing across images.
            shared = {} if name.startswith("bsds") else {id: group for id, group in classes.items() if len(group) > 1}
            if shared:
                self.by_class[name] = shared
            self.with_instances += [index for index in indexes if pack.has_instances(index)]
        self.labelled = {name: group for name, group in self.labelled.items() if group}
        if not self.labelled:
            raise ValueError(f"{pack.path}: no set with masks is left to draw episodes from")
        used = [indexes for name, indexes in pack.sets.items() if mixture.weights.get(name, 1.0) > 0]
        self.backgrounds = [index for indexes in used for index in indexes]

    def draw(self, rng: np.random.Generator, size: tuple[int, int], shots: int = 1) -> Episode:
        """Draws an episode with `shots` examples, all views of size (H, W).

        Raises:
            ValueError: if the pack and the mixture give no episode in many draws.
        """
        for _ in range(_DRAWS):
            pasted, views, rendered = self.mixture.pasted, self.mixture.views, self.mixture.rendered
            roll = rng.random()
            if roll < rendered:
                episode = self._rendered(rng, size, shots)
            elif roll < rendered + pasted and self.with_instances:
                episode = self._pasted(rng, size, shots)
            elif roll < rendered + pasted + views or not self.by_class:
                episode = self._views(rng, size, shots)
            else:
                episode = self._across(rng, size, shots)
            if episode is not None:
                return episode
        raise ValueError(
            f"{self.pack.path}: no episode with {shots} examples in {_DRAWS} draws; give images that share larger "
            "things, fewer shots, or a share of views"
        )

    def _across(self, rng: np.random.Generator, size: tuple[int, int], shots: int) -> Episode | None:
        """Different images of a set that share a class."""
        name = self._pick_set(rng, self.by_class)
        classes = self.by_class[name]
        wanted = list(classes)[rng.integers(len(classes))]
        group = classes[wanted]
        if len(group) <= shots:
            return None
        records = [self.pack[index] for index in rng.choice(group, shots + 1, replace=False)]
        kind = "semantic" if rng.random() < 0.75 else "instance"
        return self._assemble(
            rng, records, [r.labels for r in records], size, wanted, kind, name, handed=name in HANDED
        )

    def _views(self, rng: np.random.Generator, size: tuple[int, int], shots: int) -> Episode | None:
        """Several views of one image, by class or by instance."""
        name = self._pick_set(rng, self.labelled)
        index = int(rng.choice(self.labelled[name]))
        record = self.pack[index]
        ids = record.labels
        if record.instances is not None and rng.random() < 0.7:
            ids = record.instances
        records = [record] * (shots + 1)
        return self._assemble(rng, records, [ids] * (shots + 1), size, None, "instance", name, handed=name in HANDED)

    def _assemble(
        self,
        rng: np.random.Generator,
        records: Sequence[Record],
        maps: Sequence[np.ndarray],
        size: tuple[int, int],
        wanted: int | None,
        kind: str,
        source: str,
        handed: bool,
    ) -> Episode | None:
        flip = rng.random() < 0.5
        for _ in range(_TRIES):
            views, labels = [], []
            for record, ids in zip(records, maps, strict=True):
                full = (0.0, 0.0, float(ids.shape[1]), float(ids.shape[0]))
                augment = self.mixture.augment
                box = random_box(rng, ids.shape) if augment and (wanted is None or rng.random() < 0.8) else full
                mirrored = augment and (flip if handed else rng.random() < 0.5)
                view, (view_ids,) = crop(record.image, [ids], box, size, mirrored)
                views.append(view)
                labels.append(view_ids)
            chosen = self._choose(rng, labels, wanted)
            if chosen:
                break
        else:
            return None
        if self.mixture.augment:
            if rng.random() < 0.1:
                views = mix_channels(rng, views)
            views = [jitter(rng, view) for view in views]
        return Episode(np.stack(views), np.stack([_relabel(ids, chosen) for ids in labels]), len(chosen), kind, source)

    def _choose(self, rng: np.random.Generator, labels: Sequence[np.ndarray], wanted: int | None) -> list[int]:
        """Picks which ids are painted: some that the examples show, at least one of them in the query too."""
        shares = [_shares(ids) for ids in labels]
        shown = set().union(*shares[:-1])
        common = sorted(shown & set(shares[-1]))
        if not common or (wanted is not None and wanted not in common):
            return []
        first = wanted if wanted is not None else common[rng.integers(len(common))]
        others = [id for id in sorted(shown) if id != first]
        most = min(self.mixture.largest_count, 1 + len(others))
        count = 1 if rng.random() < 0.45 else int(rng.integers(1, most + 1))
        if wanted is not None and not self.mixture.augment:
            count = 1
        rng.shuffle(others)
        return [first, *others[: count - 1]]

    def _rendered(self, rng: np.random.Generator, size: tuple[int, int], shots: int) -> Episode | None:
        """Scenes of which the same is asked."""
        task = random_task(rng)
        if not TASKS[task].names:
            return None  # ids that mean nothing in another scene
        scenes = [render_scene(rng, size, task=task) for _ in range(shots + 1)]
        labels = [task_labels(scene, task).astype(np.uint8) for scene in scenes]
        chosen = self._choose(rng, labels, None)
        if not chosen:
            return None
        views = [jitter(rng, scene.image, 0.5) for scene in scenes]
        return Episode(
            np.stack(views),
            np.stack([_relabel(ids, chosen) for ids in labels]),
            len(chosen),
            "semantic",
            "scenes",
        )

    def _pasted(self, rng: np.random.Generator, size: tuple[int, int], shots: int) -> Episode | None:
        """The same cut-out objects, posed anew on another background in every view."""
        objects = [cut for cut in (self._cut(rng) for _ in range(rng.integers(1, 5))) if cut is not None]
        if not objects:
            return None
        painted = int(rng.integers(1, len(objects) + 1))
        views, labels = [], []
        for _ in range(shots + 1):
            background = self.pack[int(rng.choice(self.backgrounds))].image
            view, _ = crop(background, [], random_box(rng, background.shape[:2]), size)
            canvas, ids = Image.fromarray(jitter(rng, view)), np.zeros(size, np.uint8)
            for number in rng.permutation(len(objects)):
                _paste(rng, canvas, ids, objects[number], int(number) + 1)
            views.append(jitter(rng, np.asarray(canvas), 0.7))
            labels.append(ids)
        shown = set().union(*(_shares(ids) for ids in labels[:-1]))
        keep = [id for id in range(1, painted + 1) if id in shown]  # others were pasted over, or outside
        if not set(keep) & set(_shares(labels[-1])):
            return None
        return Episode(
            np.stack(views), np.stack([_relabel(ids, keep) for ids in labels]), len(keep), "instance", "pasted"
        )

    def _cut(self, rng: np.random.Generator) -> Image.Image | None:
        """Cuts one instance out of a random image: RGBA, or None if it is too small."""
        record = self.pack[int(rng.choice(self.with_instances))]
        ids, counts = np.unique(record.instances, return_counts=True)
        large = ids[(counts > 0.01 * record.instances.size) & (ids != 0) & (ids != IGNORE_ID)]
        if large.size == 0:
            return None
        mask = record.instances == rng.choice(large)
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        part = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        return Image.fromarray(np.dstack((record.image[part], mask[part].astype(np.uint8) * 255)))

    def _pick_set(self, rng: np.random.Generator, sets: Mapping[str, object]) -> str:
        names = list(sets)
        weights = np.array([self.mixture.weights.get(name, 1.0) for name in names])
        return names[rng.choice(len(names), p=weights / weights.sum())]


def _paste(rng: np.random.Generator, canvas: Image.Image, ids: np.ndarray, cut: Image.Image, id: int) -> None:
    """Pastes an object at a random pose onto a canvas and its id map, both changed in place."""
    height, width = ids.shape
    scale = rng.uniform(0.25, 0.8) * min(height, width) / max(cut.size)
    cut = cut.resize(tuple(max(4, round(length * scale)) for length in cut.size), Image.Resampling.BILINEAR)
    if rng.random() < 0.5:
        cut = cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    cut = cut.rotate(rng.normal(0, 20), Image.Resampling.BILINEAR, expand=True)
    pixels = np.asarray(cut)
    cut = Image.fromarray(np.dstack((jitter(rng, pixels[..., :3]), pixels[..., 3])))
    left = int(rng.integers(-cut.width // 4, max(1, width - 3 * cut.width // 4)))
    top = int(rng.integers(-cut.height // 4, max(1, height - 3 * cut.height // 4)))
    canvas.paste(cut, (left, top), cut.getchannel("A"))
    stamp = Image.fromarray(ids)
    stamp.paste(id, (left, top), cut.getchannel("A").point(lambda alpha: 255 * (alpha > 127)))
    ids[:] = np.asarray(stamp)


def _shares(ids: np.ndarray) -> dict[int, float]:
    """Ids that cover enough of a view to be asked for -> their share of it."""
    counts = np.bincount(ids.ravel(), minlength=256)
    counts[[0, IGNORE_ID]] = 0
    return {int(id): counts[id] / ids.size for id in np.flatnonzero(counts >= SMALLEST * ids.size)}


def _relabel(ids: np.ndarray, chosen: Sequence[int]) -> np.ndarray:
    """Maps the chosen ids to 1..K, ignored pixels to 255 and all else to 0."""
    table = np.zeros(256, np.uint8)
    table[IGNORE_ID] = IGNORE_ID
    table[list(chosen)] = np.arange(1, len(chosen) + 1)
    return table[ids]
