"""Objects followed through a video: paint one frame, get all the others."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from incontext.image import open_image, resize_image, resize_labels
from incontext.palette import Palette
from incontext.predictor import Predictor
from incontext.prompt import Prompt, Source, check_sources
from incontext.types import IGNORE, Example, Segmentation
from incontext.video.memory import MemoryPolicy, Moment, Selective, look_of, mean_certainty, pin
from incontext.video.slots import Slots
from incontext.video.state import RestoredMoment, TrackerState

_log = logging.getLogger(__name__)


class Tracker:
    """Follows objects through one video. Their ids are those of the masks, and never change.

    Frames that the user painted stay in memory; frames that were segmented enter and leave it as its policy decides.
    All of them condition the model together, in the feature ensemble. What a model can keep of a remembered
    frame is computed once, when the frame enters.

    Attributes:
        predictor: what segments.
        policy: what is remembered.
        names: id -> name.
        echo: of the last frame, where the policy asked; see `Moment`.
        state: all that is known of the video so far. Set it to go on from there.
    """

    def __init__(
        self,
        predictor: Predictor,
        *,
        memory: MemoryPolicy | int | None = None,
        examples: Source | Iterable[Source] = (),
        names: Mapping[int, str] | None = None,
        flip: bool = False,
        kind: str | None = None,
    ) -> None:
        """
        Args:
            predictor: makes passes, colours and segmentations. It may serve several trackers.
            memory: a policy, or the number of past frames that the default policy (`Selective`) remembers beside the
                painted ones.
            examples: pictures from elsewhere that show the objects too, or prompt packs. With them the first frame
                needs no mask.
            names: id -> name, in addition to those of the examples.
            flip, kind: as in `Predictor.predict`.

        Raises:
            TypeError, ValueError: the examples contradict each other, a value is out of its range, or a pack is made
                of tiles.
        """
        self.predictor = predictor
        self.policy = Selective() if memory is None else Selective(memory) if isinstance(memory, int) else memory
        self._flip, self._kind = flip, kind
        sources = check_sources(examples)
        self._base = predictor.prompt(sources) if sources else Prompt((), (), {})
        tile = self._base.tile_for(None)
        if tile is not None:
            raise ValueError(
                f"examples: expected packs of whole images, since frames are seen whole, got tiles of "
                f"{tile} pixels; tune or compile a pack without tile"
            )
        self.names = {**self._base.names, **(names or {})}
        self.state = TrackerState(slots=Slots(self._base.palettes))
        self.echo: float | None = None
        self._prompt: tuple[tuple[Moment, ...], Slots, Prompt] | None = None

    @property
    def ids(self) -> tuple[int, ...]:
        """The ids that are followed, seen in the last frame or not, sorted."""
        return tuple(sorted(self.state.slots.ids))

    def step(
        self,
        frame: Any,
        mask: np.ndarray | None = None,
        *,
        ids: Iterable[int] | None = None,
        index: int | None = None,
    ) -> Segmentation:
        """Segments the next frame.

        Args:
            frame: uint8 (H, W, 3), or anything that `incontext.open_image` reads. Sizes may differ between frames.
            mask: what the user painted on this frame: int (H, W). It brings new objects in, and corrects old ones. Ids
                stand as they are; 0 is background as far as the mask's ids are concerned, so that objects which it
                does not show are still followed there; at `IGNORE` all objects are (on the first frame there
                are none).
            ids: the ids that the mask speaks of; those that it shows, by default. An id that is listed and not shown
                is not in the frame, as far as the mask can say.
            index: the frame's number; one more than the last one's, by default. Any order will do: to go backwards,
                give the frames backwards.

        Returns:
            The segmentation. Its `scores` say how certain each visible id is.

        Raises:
            ImageError: the frame cannot be read.
            TypeError: the mask is no array of integers.
            ValueError: the mask has another size than the frame or an id below `IGNORE`, or there is nothing to
                follow yet.
        """
        image, self.echo = open_image(frame), None
        if index is None:
            index = 0 if self.state.index is None else self.state.index + 1
        if mask is None:
            if not self.state.slots.ids:
                raise ValueError("expected a mask with the first frame, or examples, got neither; paint the objects")
            result = self._predict(image)
            self._remember(image, result, index)
        else:
            result = self._take(image, mask, ids, index)
        self.state = replace(self.state, index=index)
        return result

    def show(self, painted: Mapping[int, tuple[Any, np.ndarray]]) -> None:
        """Remembers painted frames of this video, wherever in it, before their turn comes.

        Args:
            painted: frame number -> (frame, mask), as in `step`; `IGNORE` counts as background. New ids are taken to be
                painted wherever they are seen in any of these frames.

        Raises:
            ImageError, TypeError, ValueError: as in `step`.
        """
        examples = {index: Example(open_image(frame), mask) for index, (frame, mask) in sorted(painted.items())}
        ids = {id for example in examples.values() for id in example.ids}
        self.state = replace(self.state, slots=self._grow(self.state.slots, ids))
        for index, example in examples.items():
            self._pin(example.image, np.maximum(example.labels, 0), index)

    def propagate(
        self,
        frames: Iterable[Any],
        mask: np.ndarray | Mapping[int, np.ndarray] | None = None,
    ) -> Iterator[Segmentation]:
        """Segments frame after frame, lazily. Nothing is read ahead, and nothing is kept but the memory.

        Args:
            frames: any iterable, endless ones too; see `step`.
            mask: of the first frame, or several by their places in `frames` (0 is the first). Until there is a mask
                or an example, everything is background, of confidence 0.

        Yields:
            One segmentation for each frame.

        Raises:
            ImageError, TypeError, ValueError: as in `step`.
        """
        masks = mask if isinstance(mask, Mapping) else {} if mask is None else {0: mask}
        if not masks and not self.state.slots.ids:
            raise ValueError("propagate: expected a mask, or a tracker with examples, got neither")
        if isinstance(frames, (str, bytes, os.PathLike)):
            raise TypeError(f"frames: expected frames, got {frames!r}; open the video with incontext.read_frames")

        def run() -> Iterator[Segmentation]:
            for place, frame in enumerate(frames):
                if place in masks or self.state.slots.ids:
                    yield self.step(frame, masks.get(place))
                else:
                    yield self._nothing(open_image(frame).shape[:2])

        return run()

    def propagate_both(
        self, frames: Sequence[Any], masks: Mapping[int, np.ndarray]
    ) -> Iterator[tuple[int, Segmentation]]:
        """Segments a whole video from painted frames anywhere in it, forwards and backwards.

        All painted frames are in memory from the start. From the first of them on it goes forwards to the end, and then
        from there backwards to the beginning.

        Args:
            frames: a sequence, such as `incontext.read_frames` gives.
            masks: place in `frames` -> mask; at least one.

        Yields:
            (place, segmentation), one for each frame, in the order of the work.

        Raises:
            ImageError, TypeError, ValueError: as in `step`; at once, where a place is not in `frames`.
        """
        outside = [place for place in masks if not 0 <= place < len(frames)]
        if outside or not masks:
            raise ValueError(
                f"masks: expected places from 0 to {len(frames) - 1}, at least one, got {sorted(outside) or 'none'}"
            )

        def run() -> Iterator[tuple[int, Segmentation]]:
            self.show({place: (frames[place], mask) for place, mask in masks.items()})
            start, first = self.state, min(masks)
            for place in range(first, len(frames)):
                yield place, self.step(frames[place], masks.get(place), index=place)
            self.state = start
            for place in range(first - 1, -1, -1):
                yield place, self.step(frames[place], index=place)

        return run()

    def restore(self, index: int, passes: Iterable[Iterable[int]], moments: Iterable[RestoredMoment]) -> None:
        """Sets the state to what it was, from frames and their results as they were written.

        Args:
            index: `state.index` of then.
            passes: `state.slots.passes` of then.
            moments: those of `state.moments` of then, in their order.
        """
        own = self._base.palettes
        later = [self._palette(tuple(ids)) for ids in passes][len(own) :]
        self.state = TrackerState(index, Slots((*own, *later)))
        for each in moments:
            example, moment = self._moment(each.image, each.labels, each.certainty, each.index, each.given)
            moment = replace(moment, echo=each.echo)
            self._set_moments((*self.state.moments, moment), {**self.state.shown, each.index: example})

    def _take(self, image: np.ndarray, mask: np.ndarray, ids: Iterable[int] | None, index: int) -> Segmentation:
        """A painted frame: what the user painted stands, the rest is segmented as if there were no mask."""
        painted = Example(image, mask)  # checks type, size and values
        decided = {*painted.ids, *(() if ids is None else map(int, ids))}
        corrected = decided & self.state.slots.ids
        is_known = any(moment.index == index and moment.given for moment in self.state.moments)
        result = self._fill(painted, decided)
        if corrected and not is_known:
            # The user found the labels of late frames wrong, so they must not be repeated.
            self._set_moments(self._divide()[0], self.state.shown)
        # In a pass without any of the mask's ids this frame would tell nothing but the tracker's own guesses.
        told = [id for ids in self.state.slots.passes if decided.intersection(ids) for id in ids]
        self._pin(image, np.where(np.isin(result.labels, told), result.labels, 0), index)
        return result

    def _fill(self, painted: Example, decided: set[int]) -> Segmentation:
        """The painted objects, and where the mask says nothing of the others, those that are found."""
        labels = painted.labels
        confidence = np.ones(labels.shape, np.float32)
        followed = self.state.slots.ids
        scores = dict.fromkeys(painted.ids, 1.0)
        can_follow = bool(self.state.moments or self._base.sources)
        if can_follow and (followed - decided or (labels == IGNORE).any()):
            found = self._predict(painted.image)
            open_to = np.where(labels == 0, np.isin(found.labels, list(followed - decided)), labels == IGNORE)
            labels = np.where(open_to, found.labels, labels)
            confidence = np.where(open_to, found.confidence, confidence)
            scores = {**found.scores, **scores}
        self.state = replace(self.state, slots=self._grow(self.state.slots, decided))
        labels = np.maximum(labels, 0)
        return self._segmentation(labels, confidence, {id: scores[id] for id in np.unique(labels[labels > 0]).tolist()})

    def _segmentation(self, labels: np.ndarray, confidence: np.ndarray, scores: Mapping[int, float]) -> Segmentation:
        return Segmentation(labels, confidence, self.state.slots.paint(labels), scores, self.names)

    def _nothing(self, size: tuple[int, int]) -> Segmentation:
        return self._segmentation(np.zeros(size, np.int32), np.zeros(size, np.float32), {})

    def _predict(self, image: np.ndarray) -> Segmentation:
        """Segments with all that is remembered."""
        manner = {"ensemble": "feature", "flip": self._flip, "kind": self._kind, "tile": None}
        return self.predictor.predict(image, self._remembered(), **manner)

    def _remembered(self) -> Prompt:
        """Packs, examples, painted frames and past frames as one prompt: the same while memory is the same, so that
        the predictor has it ready."""
        moments, slots, base = self.state.moments, self.state.slots, self._base
        if self._prompt is None or self._prompt[:2] != (moments, slots):
            shown = (*base.examples, *(self.state.shown[moment.index] for moment in moments))  # given ones come first
            palettes = self._told(*shown, *base.packs)
            prompt = Prompt(shown, palettes, self.names, base.packs, apart=True)
            self._prompt = (moments, slots, prompt)
        return self._prompt[2]

    def _remember(self, image: np.ndarray, result: Segmentation, index: int) -> None:
        """Lets a segmented frame into memory, if the policy does."""
        certainty = mean_certainty(result.scores)
        example, new = self._moment(image, result.labels, certainty, index, given=False)
        given, past = self._divide()
        if self.policy.asks(past, new):
            self.echo = self._lead_back(example)
            new = replace(new, echo=self.echo)
        kept = self.policy.keep(past, new)
        if kept != past:
            self._set_moments((*given, *kept), {**self.state.shown, index: example})

    def _lead_back(self, example: Example) -> float | None:
        """How well a frame leads back to the newest painted frame that shows one of its objects; see `Moment.echo`."""
        painted = [self.state.shown[moment.index] for moment in self._divide()[0]]
        painted = next((each for each in reversed(painted) if set(each.ids) & set(example.ids)), None)
        if painted is None:
            return None
        own = self._found_again(painted, painted)
        return min(1.0, self._found_again(example, painted) / own) if own else 0.0

    def _found_again(self, example: Example, painted: Example) -> float:
        """IoU, the mean over the ids that both show, of what one example tells of a painted frame."""
        prompt = Prompt((example,), self._told(example), {}, apart=True)
        found = self.predictor.predict(painted.image, prompt, ensemble="feature", kind=self._kind, tile=None).labels
        scores = []
        for id in set(example.ids) & set(painted.ids):
            a, b = found == id, painted.labels == id
            scores.append((a & b).sum() / (a | b).sum())
        return float(np.mean(scores))

    def _pin(self, image: np.ndarray, labels: np.ndarray, index: int) -> None:
        """Lets a painted frame into memory."""
        example, new = self._moment(image, labels, 1.0, index, given=True)
        lost = set(np.unique(labels).tolist()) - {0, *example.ids}
        if lost:
            _log.warning(
                "ids %s are too thin to be seen at %d x %d pixels in frame %d", sorted(lost), *example.size, index
            )
        given, past = ([moment for moment in part if moment.index != index] for part in self._divide())
        self._set_moments((*pin((*given, new)), *past), {**self.state.shown, index: example})

    def _told(self, *sources: Source) -> tuple[Palette, ...]:
        """The passes that there is something to go by for; an object may be too thin to be seen in its only mask."""
        ids = {id for source in sources for id in source.ids}
        return tuple(palette for palette in self.state.slots.palettes if ids.intersection(palette.ids))

    def _divide(self) -> tuple[tuple[Moment, ...], tuple[Moment, ...]]:
        """The painted moments, and the others."""
        moments = self.state.moments
        return tuple(each for each in moments if each.given), tuple(each for each in moments if not each.given)

    def _moment(
        self, image: np.ndarray, labels: np.ndarray, certainty: float, index: int, given: bool
    ) -> tuple[Example, Moment]:
        """What is remembered of a frame: small, since the model sees it at its input size only."""
        size = self.predictor.model.config.image_size
        example = Example(resize_image(image, size), resize_labels(labels, size))
        return example, Moment(index, frozenset(example.ids), certainty, look_of(example.image, example.labels), given)

    def _set_moments(self, moments: tuple[Moment, ...], shown: Mapping[int, Example]) -> None:
        shown = {moment.index: shown[moment.index] for moment in moments}
        self.state = replace(self.state, moments=moments, shown=shown)

    def _grow(self, slots: Slots, ids: Iterable[int]) -> Slots:
        return slots.grow(ids, self.predictor.ids_per_pass, self._palette)

    def _palette(self, ids: tuple[int, ...]) -> Palette:
        """The colours that the predictor gives the ids of one pass."""
        (palette,) = self.predictor.prompt((), ids=ids).palettes
        return palette
