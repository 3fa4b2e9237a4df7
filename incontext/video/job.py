"""A video file tracked into a folder: resumable, and whatever happens, what is done is kept."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from incontext.export import write_indexed
from incontext.image import ImageError, open_labels
from incontext.types import Segmentation
from incontext.video.doubts import Doubt, Watch
from incontext.video.frames import FrameError, Frames
from incontext.video.journal import Journal, Row
from incontext.video.memory import mean_certainty
from incontext.video.state import RestoredMoment
from incontext.video.tracked_frame import TrackedFrame, TrackedVideo
from incontext.video.tracker import Tracker
from incontext.video.writers import WRITERS, check_formats

_WAITING = 8  # masks that may wait to be written


class TrackJob:
    """Tracks some frames of a video from painted ones, forwards and backwards, and writes what it finds.

    In the folder are then `masks/NAME.png` (indexed PNGs, as DAVIS has them), `frames.jsonl` (what is done),
    `track.json` (the job, its failures, and where to look), and a file for each format.

    Attributes:
        journal: what is done so far.
        doubts: where to look, the strongest first; known when all is done.
    """

    def __init__(
        self,
        frames: Frames,
        tracker: Tracker,
        folder: Path,
        *,
        masks: Mapping[int, np.ndarray],
        chosen: range,
        formats: Sequence[str] = tuple(WRITERS),
        settings: Mapping[str, Any],
    ) -> None:
        """
        Args:
            frames: the video.
            tracker: a new one.
            folder: where to write.
            masks: frame number -> int (H, W); none where the tracker has examples.
            chosen: numbers of the frames to track, ascending.
            formats: some of `incontext.video.writers.WRITERS`.
            settings: what decides the results besides the video and the frames, as JSON can hold it. A job goes
                on only with the same.

        Raises:
            ValueError: a mask is of a frame that is not tracked, there is nothing to go by, or the folder
                holds another job.
        """
        outside = sorted(set(masks) - set(chosen))
        if outside:
            raise ValueError(
                f"masks: expected frames that are tracked ({_range_text(chosen)}), got {outside}; change --start, "
                "--end or --every"
            )
        if not masks and not tracker.ids:
            raise ValueError("expected a mask, examples or a pack, got none; paint the first frame and give --mask")
        self._frames, self._tracker, self._folder = frames, tracker, folder
        self._masks, self._chosen = dict(masks), chosen
        self._formats = check_formats(formats)
        self._fresh = tracker.state
        self.doubts: list[Doubt] = []
        anchor = chosen.index(min(masks)) if masks else 0
        self._legs = (chosen[anchor:], chosen[:anchor][::-1])
        video = {"name": frames.name, "frames": len(frames), "size": list(frames.size)}
        self.journal = Journal(folder, {"video": video, "tracked": _range_text(chosen), **settings}, self._is_whole)

    @property
    def failed(self) -> list[Row]:
        """Frames without a result."""
        return [row for row in self.journal.rows if row.error]

    def run(self) -> None:
        """Tracks what is not done yet, then writes all formats.

        What was done before an error or Ctrl-C is on the disk; the same job goes on from there.
        """
        done = {row.frame for row in self.journal.rows}
        bar = tqdm(total=len(self._chosen), initial=len(done), unit="frame", disable=None, file=sys.stderr)
        try:
            with bar, ThreadPoolExecutor(1) as writer:
                waiting: deque[Future] = deque()
                for leg, indices in enumerate(self._legs):
                    rest = indices[sum(index in done for index in indices) :]
                    if rest:
                        self._take_up(leg)
                    for index, frame in self._frames.stream(rest):
                        row, result = self._step(index, leg, frame)
                        if row.error:
                            tqdm.write(f"failed: {row.error}", file=sys.stderr)
                        waiting.append(writer.submit(self._write, row, result))
                        while len(waiting) > _WAITING:
                            waiting.popleft().result()
                        bar.update()
                while waiting:
                    waiting.popleft().result()
        finally:
            self.journal.close()
        self._finish()

    def _take_up(self, leg: int) -> None:
        """Puts the tracker where this leg starts, or where it was left."""
        rows = [row for row in self.journal.rows if row.leg == leg and not row.error]
        if not rows:
            self._tracker.state = self._fresh
            self._tracker.show({index: (self._frames.read(index), mask) for index, mask in self._masks.items()})
            return
        last = rows[-1]
        results = {row.frame: row for row in self.journal.rows if not row.error}
        moments = (self._moment(*each, results) for each in last.memory)
        self._tracker.restore(last.frame, last.passes, moments)

    def _moment(self, index: int, given: bool, ids: Sequence[int], results: Mapping[int, Row]) -> RestoredMoment:
        row = results.get(index)
        labels = self._masks[index] if row is None else open_labels(self._mask_file(index))
        certainty = 1.0 if given else mean_certainty(row.certainty)
        labels = np.where(np.isin(labels, ids), labels, 0).astype(np.int32)
        echo = None if row is None else row.echo
        return RestoredMoment(index, self._frames.read(index), labels, certainty, given, echo)

    def _step(self, index: int, leg: int, frame: np.ndarray | FrameError) -> tuple[Row, Segmentation | None]:
        if isinstance(frame, FrameError):
            return Row(index, leg, str(frame)), None
        result = self._tracker.step(frame, self._masks.get(index), index=index)
        state = self._tracker.state
        memory = tuple((each.index, each.given, tuple(sorted(each.ids))) for each in state.moments)
        tracker = self._tracker
        return Row(index, leg, None, tracker.ids, result.scores, tracker.echo, state.slots.passes, memory), result

    def _write(self, row: Row, result: Segmentation | None) -> None:
        if result is not None:
            write_indexed(self._mask_file(row.frame), result.labels)
        self.journal.add(row)

    def _is_whole(self, row: Row) -> bool:
        """Whether a frame has its mask, if it is to have one; a power cut may damage what was written last."""
        try:
            return row.error is not None or open_labels(self._mask_file(row.frame)).shape == self._frames.size
        except (ImageError, OSError):
            return False

    def _mask_file(self, index: int) -> Path:
        return self._folder / "masks" / f"{self._frames.label(index)}.png"

    def _finish(self) -> None:
        """Writes all formats from the masks, and the summary."""
        video = TrackedVideo(
            Path(self._frames.name).stem,
            self._frames.size,
            self._frames.rate / self._chosen.step,
            tuple(self._frames.label(index) for index in self._chosen),
            self._tracker.names,
        )
        watch = Watch()
        with ExitStack() as stack:
            writers = [WRITERS[name] for name in self._formats]
            writes = [stack.enter_context(each.open(self._folder / each.file, video)) for each in writers]
            for frame in self._tracked():
                watch.see(frame)
                for write in writes:
                    write(frame)
        self.doubts = watch.doubts
        self.journal.write_head(
            {
                "names": {str(id): name for id, name in self._tracker.names.items()},
                "done": len(self.journal.rows) - len(self.failed),
                "failed": [{"frame": row.frame, "error": row.error} for row in self.failed],
                "look": [{**asdict(doubt), "strength": round(doubt.strength, 3)} for doubt in self.doubts],
            }
        )

    def _tracked(self) -> Iterator[TrackedFrame]:
        """The frames that have a result, in the order of the video."""
        rows = {row.frame: row for row in self.journal.rows if not row.error}
        bar = tqdm(total=len(self._chosen), unit="frame", desc="writing", disable=None, file=sys.stderr)
        with bar:
            for place, (index, frame) in enumerate(self._frames.stream(self._chosen)):
                row = rows.get(index)
                bar.update()
                if row is not None and not isinstance(frame, FrameError):
                    labels = open_labels(self._mask_file(index))
                    time = self._frames.time(index) - self._frames.time(self._chosen[0])
                    yield TrackedFrame(place, index, time, frame, labels, row.followed, row.certainty, row.echo)


def _range_text(chosen: range) -> str:
    return f"{chosen.start} to {chosen[-1]}" + (f" by {chosen.step}" if chosen.step > 1 else "")
