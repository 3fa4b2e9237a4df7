"""Episodes: examples and a query that share what is to be painted, drawn from a pack.

The sources, as in the SegGPT paper (section 3.1) and beyond it: images that share a class, views of one image, frames
of one video, the same cut-out objects on several backgrounds, rendered scenes, segments of unlabelled images; and
several of these stitched together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from incontext.scenes import TASKS, random_task, render_scene, task_labels
from incontext.training.augment import crop, jitter, random_box
from incontext.training.pack import IGNORE_ID, LARGEST_ID, Pack, Record
from incontext.training.pasting import cut_out, paste
from incontext.training.stitching import GRIDS, join_labels, stitch_view
from incontext.training.superpixels import superpixels

SMALLEST = 0.004  # share of a view that something must cover to be asked for
_TRIES = 6
_DRAWS = 500
_SEGMENTED = 96  # longest side, in pixels, at which images are cut into segments


@dataclass(frozen=True)
class Episode:
    """One unit of training: the last view is the query, those before it are the examples.

    Attributes:
        images: uint8 (N + 1, S, S, 3).
        labels: uint8 (N + 1, S, S): 0 is background and distractors, 1..count are painted, 255 is ignored.
        count: number of different things that are painted.
        kind: "semantic" or "instance".
        source: where it came from, for logs.
        handed: left and right mean something, so its views are mirrored together or not at all.
        strength: of the colour changes that it may get; 1 is the usual. At 0 it is not mirrored either.
        classes: uint8 (N + 1, S, S), the ids that the set itself gives, where they mean the same in all its images; or
            None. 255 is ignored.
        span: (first, count) of the set's ids among those of all sets; see `EpisodeSampler.spans`.
    """

    images: np.ndarray
    labels: np.ndarray
    count: int
    kind: str
    source: str
    handed: bool = False
    strength: float = 1.0
    classes: np.ndarray | None = None
    span: tuple[int, int] = (0, 1)


@dataclass(frozen=True)
class Mixture:
    """How episodes are drawn. What the shares leave goes to different images that share a class.

    Attributes:
        weights: relative weight of each set; sets that it does not name get 1, and 0 leaves a set out.
        views: share of episodes that show several views of one image.
        pasted: share of episodes with cut-out objects on several backgrounds.
        rendered: share of episodes with rendered scenes, in which the same question is asked of each.
        frames: share of episodes with frames of one video, where there are videos.
        segments: share of episodes with views of one image, cut into segments without labels.
        stitched: share of episodes in which several of the above stand side by side under one colour map.
        largest_count: the most things painted in one episode.
        recolouring: factor of the colour changes of every view, 0 or more.
        smallest_crop: share of an image that a view shows at least.
        augment: whether views are cropped, mirrored and recoloured at random. Validation does not.
    """

    weights: Mapping[str, float]
    views: float = 0.25
    pasted: float = 0.15
    rendered: float = 0.1
    frames: float = 0.05
    segments: float = 0.05
    stitched: float = 0.1
    largest_count: int = 8
    recolouring: float = 1.0
    smallest_crop: float = 0.35
    augment: bool = True


class EpisodeSampler:
    """Draws episodes from a pack; the same generator state gives the same episode.

    Attributes:
        spans: the name of each set whose ids mean the same in all its images -> (first, count): where its ids,
            background included, lie in a numbering of the ids of all such sets.
    """

    def __init__(self, pack: Pack, mixture: Mixture) -> None:
        """Indexes the pack by set, class and video.

        Raises:
            ValueError: if the mixture leaves nothing to draw from.
        """
        self.pack, self.mixture = pack, mixture
        self.by_class: dict[str, dict[int, list[int]]] = {}
        self.labelled: dict[str, list[int]] = {}
        self.videos: dict[str, list[list[int]]] = {}
        self.with_instances: list[int] = []
        self.backgrounds: list[int] = []
        for name, indexes in pack.sets.items():
            if mixture.weights.get(name, 1.0) > 0:
                self._index(name, indexes)
        if not self.labelled and mixture.rendered + mixture.segments <= 0:
            raise ValueError(f"{pack.path}: no set with masks is left to draw episodes from")
        self.spans: dict[str, tuple[int, int]] = {}
        for name, classes in self.by_class.items():
            self.spans[name] = (sum(count for _, count in self.spans.values()), 1 + max(classes))
        self._sources = {
            self._rendered: mixture.rendered,
            self._pasted: mixture.pasted if self.with_instances else 0.0,
            self._frames: mixture.frames if self.videos else 0.0,
            self._segments: mixture.segments if self.backgrounds else 0.0,
            self._views: mixture.views if self.labelled else 0.0,
        }
        rest = max(0.0, 1 - sum(self._sources.values()))
        if self.by_class:
            self._sources[self._across] = rest
        elif self.labelled:
            self._sources[self._views] += rest

    def _index(self, name: str, indexes: Sequence[int]) -> None:
        classes: dict[int, list[int]] = {}
        videos: dict[str, list[int]] = {}
        for index in indexes:
            shares = {id: share for id, share in self.pack.classes(index).items() if share >= SMALLEST}
            for id in shares:
                classes.setdefault(id, []).append(index)
            if shares and self.pack.video(index):
                videos.setdefault(self.pack.video(index), []).append(index)
        labelled = sorted({index for group in classes.values() for index in group})
        if labelled:
            self.labelled[name] = labelled
        shared = {id: group for id, group in classes.items() if len(group) > 1}
        if shared and not self.pack.traits(name).segments:
            self.by_class[name] = shared
        long = [frames for frames in videos.values() if len(frames) > 1]
        if long:
            self.videos[name] = long
        self.with_instances += [index for index in indexes if self.pack.has_instances(index)]
        self.backgrounds += indexes

    def draw(self, rng: np.random.Generator, size: tuple[int, int], shots: int = 1) -> Episode:
        """Draws an episode with `shots` examples, 0 or more, all views of size (H, W).

        Raises:
            ValueError: if the pack and the mixture give no episode in many draws.
        """
        for _ in range(_DRAWS):
            stitched = rng.random() < self.mixture.stitched
            episode = (self._stitched if stitched else self._single)(rng, size, shots)
            if episode is not None:
                return episode
        raise ValueError(
            f"{self.pack.path}: no episode with {shots} examples in {_DRAWS} draws; give images that share larger "
            "things, fewer shots, or a share of views"
        )

    def _single(self, rng: np.random.Generator, size: tuple[int, int], shots: int) -> Episode | None:
        shares = np.array(list(self._sources.values()))
        source = list(self._sources)[rng.choice(len(shares), p=shares / shares.sum())]
        return source(rng, size, shots)

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
        return self._assemble(rng, records, [r.labels for r in records], size, wanted, kind, name)

    def _views(self, rng: np.random.Generator, size: tuple[int, int], shots: int) -> Episode | None:
        """Several views of one image, by class or by instance."""
        name = self._pick_set(rng, self.labelled)
        record = self.pack[int(rng.choice(self.labelled[name]))]
        ids = record.labels
        if record.instances is not None and rng.random() < 0.7:
            ids = record.instances
        return self._assemble(rng, [record] * (shots + 1), [ids] * (shots + 1), size, None, "instance", name)

    def _frames(self, rng: np.random.Generator, size: tuple[int, int], shots: int) -> Episode | None:
        """Frames of one video, apart in time; fewer than asked for repeat."""
        name = self._pick_set(rng, self.videos)
        video = self.videos[name][rng.integers(len(self.videos[name]))]
        indexes = rng.choice(video, shots + 1, replace=len(video) <= shots)
        records = [self.pack[index] for index in indexes]
        return self._assemble(rng, records, [r.labels for r in records], size, None, "instance", name)

    def _segments(self, rng: np.random.Generator, size: tuple[int, int], shots: int) -> Episode | None:
        """Several views of one image, cut into segments that look alike."""
        record = self.pack[int(rng.choice(self.backgrounds))]
        height, width = record.image.shape[:2]
        shrink = min(1.0, _SEGMENTED / max(height, width))
        small = Image.fromarray(record.image).resize(
            (max(8, round(width * shrink)), max(8, round(height * shrink))), Image.Resampling.BOX
        )
        pieces = superpixels(np.asarray(small), scale=np.exp(rng.uniform(-0.7, 1.6)), least=int(rng.integers(20, 80)))
        ids = Image.fromarray(np.where(pieces <= LARGEST_ID, pieces, 0).astype(np.uint8))
        maps = np.asarray(ids.resize((width, height), Image.Resampling.NEAREST))
        return self._assemble(rng, [record] * (shots + 1), [maps] * (shots + 1), size, None, "instance", "segments")

    def _assemble(
        self,
        rng: np.random.Generator,
        records: Sequence[Record],
        maps: Sequence[np.ndarray],
        size: tuple[int, int],
        wanted: int | None,
        kind: str,
        source: str,
    ) -> Episode | None:
        augment, named = self.mixture.augment, source in self.spans
        for _ in range(_TRIES):
            views, labels, classes = [], [], []
            for record, ids in zip(records, maps, strict=True):
                box = (0.0, 0.0, float(ids.shape[1]), float(ids.shape[0]))
                if augment and (wanted is None or rng.random() < 0.8):
                    box = random_box(rng, ids.shape, (self.mixture.smallest_crop, 1.0))
                view, (view_ids, *view_classes) = crop(record.image, [ids, record.labels][: 1 + named], box, size)
                views.append(view)
                labels.append(view_ids)
                classes += view_classes
            chosen = self._choose(rng, labels, wanted)
            if chosen:
                break
        else:
            return None
        handed = source in self.pack.sets and self.pack.traits(source).handed
        ids = np.stack([_relabel(each, chosen) for each in labels])
        return Episode(
            np.stack(views),
            ids,
            len(chosen),
            kind,
            source,
            handed,
            strength=self._strength,
            classes=_known(np.stack(classes), self.spans[source][1]) if named else None,
            span=self.spans.get(source, (0, 1)),
        )

    def _choose(self, rng: np.random.Generator, labels: Sequence[np.ndarray], wanted: int | None) -> list[int]:
        """Picks which ids are painted: some that the examples show, at least one of them in the query too.

        Without examples it is the query that shows them.
        """
        shares = [_shares(ids) for ids in labels]
        shown = set().union(*shares[:-1]) if len(shares) > 1 else set(shares[-1])
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
        views = np.stack([scene.image for scene in scenes])
        ids = np.stack([_relabel(each, chosen) for each in labels])
        return Episode(views, ids, len(chosen), "semantic", "scenes", strength=0.5 * self._strength)

    def _pasted(self, rng: np.random.Generator, size: tuple[int, int], shots: int) -> Episode | None:
        """The same cut-out objects, posed anew on another background in every view."""
        records = (self.pack[int(rng.choice(self.with_instances))] for _ in range(rng.integers(1, 5)))
        objects = [cut for cut in (cut_out(rng, record) for record in records) if cut is not None]
        if not objects:
            return None
        painted = int(rng.integers(1, len(objects) + 1))
        views, labels = [], []
        for _ in range(shots + 1):
            background = self.pack[int(rng.choice(self.backgrounds))].image
            view, _ = crop(background, [], random_box(rng, background.shape[:2]), size)
            canvas, ids = Image.fromarray(jitter(rng, view)), np.zeros(size, np.uint8)
            for number in rng.permutation(len(objects)):
                paste(rng, canvas, ids, objects[number], int(number) + 1)
            views.append(np.asarray(canvas))
            labels.append(ids)
        shown = set().union(*(_shares(ids) for ids in labels[:-1] or labels))
        keep = [id for id in range(1, painted + 1) if id in shown]  # others were pasted over, or outside
        if not set(keep) & set(_shares(labels[-1])):
            return None
        ids = np.stack([_relabel(each, keep) for each in labels])
        return Episode(np.stack(views), ids, len(keep), "instance", "pasted", strength=0.7 * self._strength)

    def _stitched(self, rng: np.random.Generator, size: tuple[int, int], shots: int) -> Episode | None:
        """Several episodes side by side. A thing of one is no less wanted for standing beside those of another."""
        grid = GRIDS[rng.integers(len(GRIDS))]
        cell = (size[0] // grid[0], size[1] // grid[1])
        parts = [self._single(rng, cell, shots) for _ in range(grid[0] * grid[1])]
        if None in parts:
            return None
        labels, _ = join_labels([p.labels for p in parts], [p.count for p in parts], self.mixture.largest_count)
        stitched = [
            stitch_view(rng, [p.images[view] for p in parts], [ids[view] for ids in labels], grid, size)
            for view in range(shots + 1)
        ]
        views, maps = zip(*stitched, strict=True)
        shown = set().union(*(_shares(ids) for ids in maps[:-1] or maps))
        if not shown & set(_shares(maps[-1])):
            return None
        chosen = sorted(shown)
        kind = "semantic" if all(part.kind == "semantic" for part in parts) else "instance"
        ids = np.stack([_relabel(each, chosen) for each in maps])
        handed, strength = any(p.handed for p in parts), min(p.strength for p in parts)
        return Episode(np.stack(views), ids, len(chosen), kind, "stitched", handed, strength)

    @property
    def _strength(self) -> float:
        return self.mixture.recolouring * self.mixture.augment

    def _pick_set(self, rng: np.random.Generator, sets: Mapping[str, object]) -> str:
        names = list(sets)
        weights = np.array([self.mixture.weights.get(name, 1.0) for name in names])
        return names[rng.choice(len(names), p=weights / weights.sum())]


def _shares(ids: np.ndarray) -> dict[int, float]:
    """Ids that cover enough of a view to be asked for -> their share of it."""
    counts = np.bincount(ids.ravel(), minlength=256)
    counts[[0, IGNORE_ID]] = 0
    return {int(id): counts[id] / ids.size for id in np.flatnonzero(counts >= SMALLEST * ids.size)}


def _known(classes: np.ndarray, count: int) -> np.ndarray:
    """Ids that no two images share are ignored: they have no place among those of all sets."""
    return np.where(classes < count, classes, IGNORE_ID).astype(np.uint8)


def _relabel(ids: np.ndarray, chosen: Sequence[int]) -> np.ndarray:
    """Maps the chosen ids to 1..K, ignored pixels to 255 and all else to 0."""
    table = np.zeros(256, np.uint8)
    table[IGNORE_ID] = IGNORE_ID
    table[list(chosen)] = np.arange(1, len(chosen) + 1)
    return table[ids]
