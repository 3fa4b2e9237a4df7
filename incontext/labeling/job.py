"""The label job: plans what is to be done, runs an engine, keeps the manifest, writes the dataset."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from incontext.export.formats import FORMATS
from incontext.labeling.calibration import fit_temperature
from incontext.labeling.claims import Claims
from incontext.labeling.config import LabelConfig
from incontext.labeling.corrections import check_classes, open_corrections
from incontext.labeling.dataset import write_dataset
from incontext.labeling.drafts import remove_drafts
from incontext.labeling.fingerprints import fingerprint_of, prompt_fingerprint
from incontext.labeling.image_writer import ImageWriter
from incontext.labeling.inputs import Input, find_images
from incontext.labeling.job_record import JobRecord, recorded_names, recorded_temperature
from incontext.labeling.labeller import Labeller
from incontext.labeling.local_engine import run_local
from incontext.labeling.manifest import MANIFEST, Manifest, Recipe, Row
from incontext.labeling.plan import MASKS, Plan
from incontext.labeling.progress import Progress
from incontext.labeling.ray_engine import import_ray, run_ray
from incontext.labeling.reading import JobStopped, Task, cannot_write
from incontext.labeling.review import write_review
from incontext.predictor import Predictor
from incontext.prompt import Prompt, Source, check_sources

CORRECTIONS = "corrections"
"""The folder below the output folder where corrected masks are looked for."""

EMBEDDINGS = ".embeddings"
"""The folder below it where those of a pool of examples are kept."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabelSummary:
    """What a job did.

    Attributes:
        total: images of the dataset.
        done: images that have a mask now, whoever made it.
        made: how many masks this run has written or brought up to date.
        failures: image -> why it has none.
        elsewhere: how many another process is at work on.
        seconds: how long this run took.
    """

    total: int
    done: int
    made: int
    failures: Mapping[str, str]
    elsewhere: int
    seconds: float

    def __str__(self) -> str:
        parts = [f"{self.done} of {self.total} images have masks, {self.made} from this run"]
        if self.failures:
            parts.append(f"{len(self.failures)} failed")
        if self.elsewhere:
            parts.append(f"{self.elsewhere} are left to another process")
        return f"{', '.join(parts)}; {self.seconds:.1f} s"


def label(
    images: str | os.PathLike | Sequence[str | os.PathLike],
    examples: Source | Iterable[Source],
    out: str | os.PathLike,
    *,
    predictor: Predictor,
    config: LabelConfig | None = None,
    corrections: str | os.PathLike | None = None,
    skip: Collection[str | os.PathLike] = (),
) -> LabelSummary:
    """Labels images as examples or prompt packs show, and writes them as a dataset.

    Below `out`: `masks/NAME.png` (pixel values are class ids; see `incontext.export.write_indexed`), a folder for
    each format, `manifest.jsonl` with a line for each image, `job.json` with what the masks were made with, and the
    review.

    It may be stopped at any moment and called again: what is done stays, unless the image, the model, an example, a
    pack or a setting has changed; what failed is tried again. Several processes may label into one folder at once.

    Args:
        images: files, folders, patterns and lists; see `find_images`.
        examples: examples (see `open_examples`), packs, or both. Classes of packs join by name: an id may change
            where another class has it.
        out: the output folder; made where it is missing.
        predictor: whose model labels.
        config: how; `LabelConfig()` by default. What it leaves open is as the packs were made for.
        corrections: a folder of corrected masks; `out/corrections`, by default, where there is one. See
            `open_corrections`.
        skip: files that are left out where folders and patterns hold them, such as the examples' masks.

    Raises:
        PackError: a pack was made for another model, or packs differ in what the config leaves to them.
        ValueError: an argument is wrong, there is no image, or `out` holds masks of something else.
        JobStopped: the disk is full, the folder cannot be written to, or the images' folder has gone.
    """
    started = time.monotonic()
    out, config = Path(out), config or LabelConfig()
    if unknown := set(config.formats) - set(FORMATS):
        raise ValueError(f"formats: expected some of {sorted(FORMATS)}, got {sorted(unknown)}")
    if config.engine == "ray":
        import_ray()
    sources = check_sources(examples)
    if not sources:
        raise ValueError("examples: expected at least one example or prompt pack, got none; show what to find")
    prompt = predictor.prompt(sources)
    images = [images] if isinstance(images, (str, os.PathLike)) else images
    corrections = out / CORRECTIONS if corrections is None else Path(corrections)
    inputs = find_images(
        [os.fspath(each) for each in images], skip=[Path(path) for path in skip], skip_folders=[out, corrections]
    )
    corrected = open_corrections(corrections, inputs, prompt.names) if corrections.is_dir() else {}
    check_classes(corrected, prompt.names, recorded_names(out))
    # With all names, a part of the examples joins packs by the same ids as all of them do.
    named = [replace(example, names=prompt.names) for example in prompt.examples]
    prompt = predictor.prompt([*prompt.packs, *named, *corrected.values()])
    with _Job(out, config.resolved(prompt, predictor.kind), predictor, prompt) as job:
        plan = job.plan(inputs, {image: example.labels for image, example in corrected.items()})
        job.run(plan)
        return job.summary(plan, time.monotonic() - started)


@contextmanager
def _explained(out: Path) -> Iterator[None]:
    """Turns errors of the disk into one that says what to do."""
    try:
        yield
    except JobStopped:
        raise
    except OSError as error:
        raise cannot_write(out, error) from error


class _Job:
    """One run into one folder: its claims and its manifest are open."""

    def __init__(self, out: Path, config: LabelConfig, predictor: Predictor, prompt: Prompt) -> None:
        self.out, self.config, self.predictor, self.prompt = out, config, predictor, prompt
        self.writer = ImageWriter(out, prompt.names, config.formats, config.instances, config.min_area)
        self.made = 0
        self.failures: dict[str, str] = {}
        self.elsewhere: list[Input] = []
        self._opened = ExitStack()

    def __enter__(self) -> _Job:
        masks, manifest = self.out / MASKS, self.out / MANIFEST
        if masks.is_dir() and any(masks.iterdir()) and not manifest.exists():
            raise ValueError(f"{masks} holds files, but there is no {MANIFEST} of a label job; choose another folder")
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            self.claims = self._opened.enter_context(Claims(self.out))
            self.manifest = self._opened.enter_context(Manifest(manifest))
        except OSError as error:
            self._opened.close()
            raise cannot_write(self.out, error) from error
        if self.manifest.damaged:
            _log.warning("%s: %d damaged lines were passed over", manifest, self.manifest.damaged)
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def plan(self, inputs: Sequence[Input], corrections: Mapping) -> Plan:
        """Says what masks are to be made with, and fits the confidence to the examples."""
        predictor, config, prompt = self.predictor, self.config, self.prompt
        settings = {name: getattr(predictor, name) for name in ("ids_per_pass", "one_by_one", "seed", "refine")}
        settings["precision"] = sorted({str(each.dtype) for each in predictor.model.state_dict().values()})
        settings |= config.painting_settings()
        temperature = predictor.temperature_for(prompt)
        if not config.calibrate:
            settings["temperature"] = temperature
        recipe = Recipe(predictor.fingerprint[:16], prompt_fingerprint(prompt.sources), fingerprint_of(settings))
        plan = Plan(inputs, self.out, recipe, self.writer.fingerprint, corrections)
        if config.calibrate:
            temperature = recorded_temperature(self.out, recipe) or fit_temperature(
                predictor,
                prompt.examples,
                prompt.packs,
                ensemble=config.ensemble,
                kind=config.kind,
                tile=config.tile,
            )
            self.predictor = predictor.varied(temperature=temperature)
        packs = [pack.name for pack in prompt.packs]
        with _explained(self.out):
            JobRecord(recipe, settings, prompt.names, packs, len(prompt.examples), temperature).write(self.out)
        return plan

    def run(self, plan: Plan) -> None:
        """Labels, and writes what tells of the whole dataset."""
        labeller = Labeller(self.predictor, self.prompt, self.config, self.out / EMBEDDINGS)
        with _explained(self.out):
            if self.claims.take_all():  # nobody else is at work, so unfinished files are those of runs that died
                remove_drafts(self.out)
                self.claims.release_all()
            images = [image for image, _ in plan.open_tasks(self.manifest.rows)]
            with Progress(len(images)) as self.progress:
                if self.config.engine == "ray":
                    self._run_ray(plan, labeller)
                else:
                    self._run_local(plan, labeller, images)
            with self.claims.finishing():
                self.manifest.refresh()
                write_dataset(self._finished(plan), self.writer)
                if self.config.review:
                    self._write_review(plan)

    def _write_review(self, plan: Plan) -> None:
        images = {image.file_name: image.path for image in plan.inputs}
        rows = [self.manifest.rows[image] for image in images if image in self.manifest.rows]
        # What another process is just replacing has no result to look at.
        write_review(self.out, [row for row in rows if not row.begun], images=images, names=self.prompt.names)

    def summary(self, plan: Plan, seconds: float) -> LabelSummary:
        """What this run did."""
        done = len(self._finished(plan))
        left = len(self.elsewhere)
        return LabelSummary(len(plan.inputs), done, self.made, dict(self.failures), left, seconds)

    def _run_local(self, plan: Plan, labeller: Labeller, images: Sequence[Input]) -> None:
        for _ in range(2):  # the second time what another process had then, in case it has died meanwhile
            self.elsewhere = []
            run_local(self._claimed(plan, images), labeller, self.writer, self._take_in)
            images = self.elsewhere
            if not images:
                break

    def _claimed(self, plan: Plan, images: Iterable[Input]) -> Iterator[Task]:
        """Tasks that this process alone is at work on, until their row is in the manifest."""
        for image in images:
            if not self.claims.take(image.file_name):
                self.elsewhere.append(image)
                continue
            self.manifest.refresh()
            task = plan.task(image, self.manifest.rows)
            if task is None:  # another process was quicker
                self.claims.release(image.file_name)
                self.progress.advance()
            else:
                self._begin(task)
                yield task

    def _begin(self, task: Task) -> None:
        """Says that an image's mask is no longer what the manifest tells, before it is replaced."""
        row = self.manifest.rows.get(task.image)
        if task.finished is None and row is not None and row.done:
            self.manifest.add(Row(task.image, "begun", task.recipe))

    def _run_ray(self, plan: Plan, labeller: Labeller) -> None:
        if not self.claims.take_all():
            raise JobStopped(f"{self.out}: another process is at work on it; wait for its end, or use the local engine")
        self.manifest.refresh()
        tasks = [task for _, task in plan.open_tasks(self.manifest.rows)]
        for task in tasks:
            self._begin(task)
        if tasks:
            run_ray(tasks, labeller, self.writer, self._take_in)
        self.claims.release_all()

    def _take_in(self, row: Row) -> None:
        self.manifest.add(row)
        if self.config.engine == "local":
            self.claims.release(row.image)
        self.progress.advance(row.error)
        if row.error is None:
            self.made += 1
        else:
            self.failures[row.image] = row.error

    def _finished(self, plan: Plan) -> list[Row]:
        rows = (plan.finished(image, self.manifest.rows) for image in plan.inputs)
        return [row for row in rows if row is not None]
