"""`incontext segment`: masks for images, as a few examples show."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from incontext.cli.arguments import class_names, click, output_folder
from incontext.cli.model_options import (
    add_device,
    add_model,
    add_one_by_one,
    add_pack,
    add_precision,
    add_refine,
    add_views,
    open_predictor,
    settle_tiles,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from incontext.clicks import Click
    from incontext.labeling.inputs import Input
    from incontext.prompt import Prompt
    from incontext.types import Example, Segmentation

SHEET_RESULTS = 24
"""How many results the contact sheet shows at most."""

REPORT = "results.json"
"""What was done, in the folder of the results."""

_SHEET_SIDE = 640  # pixels of a picture kept for the sheet


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the command `segment`."""
    parser = subparsers.add_parser(
        "segment",
        help="find in images what a few examples show",
        description="Segments images as the examples show. Writes DIR/masks/NAME.png (pixel values are ids), "
        "DIR/overlays/NAME.jpg, DIR/results.json and DIR/sheet.png, and what was clicked on as DIR/clicked/NAME.png. "
        "An image that cannot be read is reported, and the run goes on; the exit status is then 1.",
    )
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="files, folders (with subfolders) or patterns such as 'a/*.jpg'",
    )
    parser.add_argument(
        "--example",
        nargs=2,
        action="append",
        default=[],
        metavar=("IMAGE", "MASK"),
        help="an image and its mask (ids, black and white, or colours); may be given several times",
    )
    parser.add_argument(
        "--click",
        nargs="+",
        action=_ClickedImage,
        default={},
        metavar=("IMAGE", "X,Y[,ID]"),
        help="an image and points on its objects, in pixels from the upper left: what they lie on becomes an example. "
        "Ids are 1 unless given; 0 is for points that are not meant. May be given several times",
    )
    add_pack(parser)
    parser.add_argument("-o", "--output", type=output_folder, required=True, metavar="DIR", help="where to write")
    add_model(parser)
    parser.add_argument(
        "--ensemble",
        choices=("feature", "spatial"),
        help="of several examples: average what each tells (default, unless a pack says otherwise), or lay all out in "
        "one grid (faster)",
    )
    parser.add_argument(
        "--kind",
        choices=("instance", "semantic"),
        help="what the ids are (default instance, unless a pack says otherwise)",
    )
    add_device(parser)
    add_precision(parser)
    add_views(parser)
    add_refine(parser)
    add_one_by_one(parser)
    parser.add_argument("--names", type=class_names, default={}, metavar="1=NAME,2=NAME", help="names of ids")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit status: 0, or 1 if an image failed.

    Raises:
        ValueError: if arguments, examples or the model are wrong, or files would be lost.
    """
    from incontext.labeling.inputs import find_images
    from incontext.types import Example

    if not (args.example or args.pack or any(map(_means_something, args.click.values()))):
        raise ValueError("expected --example, --click or --pack of an object, got none of them; show what to find")
    given = [Path(path).expanduser() for pair in args.example for path in pair]
    masks, overlays, clicked = (args.output / name for name in ("masks", "overlays", "clicked"))
    made = [args.output / REPORT, args.output / "sheet.png", *(clicked / f"{path.stem}.png" for path in args.click)]
    inputs = find_images(args.images, skip=[*given[1::2], *made], skip_folders=[masks, overlays])
    outputs = [masks / f"{each.name}.png" for each in inputs] + [overlays / f"{each.name}.jpg" for each in inputs]
    _protect([*outputs, *made], [*given, *args.click, *(each.path for each in inputs)], made[0].exists())
    pairs = list(zip(given[::2], given[1::2], strict=True))
    examples = Example.open_many(pairs, names=args.names)
    _check_names(args, {id for example in examples for id in example.ids})

    from incontext.pack.library import open_pack

    packs = [open_pack(each) for each in args.pack]
    predictor = open_predictor(args, one_by_one=args.one_by_one, refine=args.refine, precision=args.precision)
    shown = [_Shown(example, *pair) for example, pair in zip(examples, pairs, strict=True)]
    # Images with clicks of id 0 alone come last: these correct what all others show.
    for path, clicks in sorted(args.click.items(), key=lambda item: not _means_something(item[1])):
        sources = examples if _means_something(clicks) else [each.example for each in shown]
        example = _touch(predictor, path, clicks, [*packs, *sources], args.names)
        shown.append(_Shown(example, path, clicked / f"{path.stem}.png", clicks))
    prompt = predictor.prompt([*packs, *(each.example for each in shown)])
    args.tile = settle_tiles(predictor, prompt, args.tile)
    job = _Job(args, shown, prompt, inputs, predictor)
    job.segment()
    print(job.summary())
    return 1 if job.failed else 0


@dataclass(frozen=True, eq=False)
class _Shown:
    """An example, where it is from, and the clicks that made its mask, if any did."""

    example: Example
    image: Path
    mask: Path
    clicks: Sequence[Click] = ()

    @property
    def record(self) -> dict[str, Any]:
        """For `results.json`."""
        record = {"image": str(self.image), "mask": str(self.mask), "ids": list(self.example.ids)}
        return record | ({"clicks": [[click.x, click.y, click.id] for click in self.clicks]} if self.clicks else {})


class _ClickedImage(argparse.Action):
    """Collects `--click IMAGE X,Y[,ID] ...`: path -> clicks. What it cannot read, argparse turns into a message."""

    def __call__(self, parser, namespace, values, option_string=None):
        path, *points = values
        if not points:
            parser.error(f"argument --click: expected an image and points on it such as 120,80, got {path!r} alone")
        collected = dict(getattr(namespace, self.dest))
        try:
            path = Path(path).expanduser()
            collected[path] = [*collected.get(path, ()), *map(click, points)]
        except argparse.ArgumentTypeError as error:
            parser.error(f"argument --click: {error}")
        stems = [each.stem for each in collected]
        if len(set(stems)) < len(stems):
            parser.error(f"argument --click: expected images with different names, got {path.stem!r} twice; rename one")
        setattr(namespace, self.dest, collected)


def _means_something(clicks: Sequence[Click]) -> bool:
    """Whether any click lies on an object."""
    return any(each.id for each in clicks)


def _touch(
    predictor: Any, path: Path, clicks: Sequence[Click], sources: Sequence[Any], names: dict[int, str]
) -> Example:
    """An example of what lies under clicks. Beside other examples or packs of the same ids, clicks correct these; those
    of id 0 alone correct all."""
    from incontext.image import open_image
    from incontext.types import Example

    image, ids = open_image(path), {each.id for each in clicks if each.id}
    told = [each for each in sources if not ids or ids.intersection(each.ids)]
    try:
        found = predictor.click(image, clicks, told)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    named = {**found.names, **names}  # by which packs find the ids again that they have here
    return Example(image, found.labels, {id: named[id] for id in {*ids, *found.ids} if id in named})


def _check_names(args: argparse.Namespace, ids: set[int]) -> None:
    ids = ids | {each.id for clicks in args.click.values() for each in clicks if each.id}
    unknown = sorted(set(args.names) - ids)
    if unknown and not ids:
        raise ValueError(
            "--names: expected examples whose ids it names, got packs alone, which have names of their own"
        )
    if unknown:
        raise ValueError(f"--names: expected ids that the examples show ({sorted(ids)}), got {unknown}")


class _Job:
    """One run of the command: segments here, writes in threads."""

    def __init__(
        self,
        args: argparse.Namespace,
        shown: Sequence[_Shown],
        prompt: Prompt,
        inputs: Sequence[Input],
        predictor: Any,
    ) -> None:
        self.args, self.shown, self.prompt = args, shown, prompt
        self.report = args.output / REPORT
        self.inputs, self.predictor = inputs, predictor
        self.ensemble = prompt.ensemble_for(args.ensemble)
        self.kind = prompt.kind_for(args.kind, "instance")
        self.batch_size = args.batch_size
        if self.batch_size is None:
            self.batch_size = 1 if predictor.device.type == "cpu" else 8
        step = max(1.0, len(inputs) / SHEET_RESULTS)
        self.on_sheet = {int(k * step) for k in range(min(SHEET_RESULTS, len(inputs)))}
        self.records: list[dict] = []
        self.cards: list[tuple[Input, np.ndarray, Segmentation]] = []
        self.moments: list[float] = []  # when each result was there

    @property
    def failed(self) -> int:
        """How many images have no result."""
        return sum(record["error"] is not None for record in self.records)

    def segment(self) -> None:
        """Segments all inputs, writes masks and overlays as results come, and at last the rest.

        What was done before an error or Ctrl-C is in `results.json` too. That file is there before the first mask, so
        that a run that was killed can be started again: it tells that the masks beside it are no one else's.
        """
        import sys
        import time
        from collections import deque
        from concurrent.futures import Future, ThreadPoolExecutor

        from tqdm import tqdm

        from incontext.export import write_indexed

        args = self.args
        results = self.predictor.predict_many(
            [each.path for each in self.inputs],
            self.prompt,
            ensemble=self.ensemble,
            kind=self.kind,
            flip=args.flip,
            tile=args.tile,
            overlap=args.overlap,
            batch_size=self.batch_size,
            on_error="yield",
        )
        if not self.report.exists():
            self._write_report()
        for each in self.shown:
            if each.clicks:
                write_indexed(each.mask, each.example.labels)
        # disable=None: silent unless standard error is a terminal
        self.moments.append(time.perf_counter())
        bar = tqdm(total=len(self.inputs), unit="image", disable=None, file=sys.stderr)
        waiting: deque[Future] = deque()

        def collect() -> None:
            record, card = waiting.popleft().result()
            self.records.append(record)
            if card:
                self.cards.append(card)
            if record["error"]:
                tqdm.write(f"failed: {record['error']}", file=sys.stderr)
            bar.update()

        with bar, ThreadPoolExecutor(4) as writers:
            try:
                for k, (each, result) in enumerate(zip(self.inputs, results, strict=True)):
                    self.moments.append(time.perf_counter())
                    waiting.append(writers.submit(self._write, each, result, k in self.on_sheet))
                    while len(waiting) > 8 or (waiting and waiting[0].done()):
                        collect()
            finally:
                results.close()
                while waiting:
                    collect()
                self._finish()

    def summary(self) -> str:
        """One line for the user."""
        done = len(self.records) - self.failed
        failed = f", {self.failed} failed" if self.failed else ""
        return (
            f"{done} of {len(self.inputs)} images segmented{failed}; "
            f"masks, overlays, results.json and sheet.png are in {self.args.output}"
        )

    def _write(self, each: Input, result: Segmentation | ValueError, on_sheet: bool) -> tuple[dict, tuple | None]:
        """Writes mask and overlay of one image; returns its record, and what the sheet needs of it."""
        from incontext.export import overlay, write_image, write_indexed
        from incontext.image import open_image

        record = {"image": str(each.path), "size": None, "mask": None, "overlay": None, "objects": []}
        record.update(confidence=None, seconds=None, error=None)
        if isinstance(result, ValueError):
            return {**record, "error": str(result)}, None
        mask, drawing = Path("masks", f"{each.name}.png"), Path("overlays", f"{each.name}.jpg")
        try:
            image = open_image(each.path)
            write_indexed(self.args.output / mask, result.labels)
            write_image(self.args.output / drawing, overlay(image, result.labels))
        except (OSError, ValueError) as error:
            return {**record, "error": f"{each.path}: its results cannot be written: {error}"}, None
        record.update(
            size=list(result.size),
            mask=mask.as_posix(),
            overlay=drawing.as_posix(),
            objects=[
                {
                    "id": id,
                    "name": result.names.get(id),
                    "score": round(result.scores[id], 4),
                    "area": int(result.mask(id).sum()),
                }
                for id in result.ids
            ],
            confidence=round(float(result.confidence.mean()), 4),
        )
        return record, (each, *_shrink(image, result)) if on_sheet else None

    def _finish(self) -> None:
        """Writes `results.json` and the contact sheet."""
        from incontext.export import contact_sheet, write_image

        self._share_out_time()
        self._write_report()
        part = f"{len(self.cards)} of {len(self.inputs)} images"
        sheet = contact_sheet(
            [each.example for each in self.shown],
            [(image, segmentation) for _, image, segmentation in self.cards],
            title=part if len(self.cards) < len(self.inputs) else "",
            example_titles=[each.image.name for each in self.shown],
            result_titles=[each.name.as_posix() for each, _, _ in self.cards],
            limit=SHEET_RESULTS,
        )
        write_image(self.args.output / "sheet.png", sheet)

    def _write_report(self) -> None:
        """Writes `results.json`, of what has been done so far."""
        from incontext.export.documents import write_readable_json

        args = self.args
        names = {str(id): name for id, name in self.prompt.names.items()}
        report = {
            "model": args.model,
            "device": str(self.predictor.device),
            "settings": {
                "ensemble": self.ensemble,
                "flip": args.flip,
                "kind": self.kind,
                "tile": args.tile,
                "overlap": args.overlap,
                "batch_size": self.batch_size,
                "precision": args.precision,
                "refine": self.predictor.refine,
                "one_by_one": self.predictor.one_by_one,
            },
            "names": names,
            "packs": args.pack,
            "examples": [each.record for each in self.shown],
            "total": len(self.inputs),
            "segmented": len(self.records) - self.failed,
            "failed": self.failed,
            "images": self.records,
        }
        write_readable_json(self.report, report)

    def _share_out_time(self) -> None:
        """Gives every record its `seconds`: of a batch, whose results come together, the mean."""
        size = 1 if self.args.tile else self.batch_size
        for start in range(0, len(self.records), size):
            group = self.records[start : start + size]
            seconds = (self.moments[start + len(group)] - self.moments[start]) / len(group)
            for record in group:
                record["seconds"] = round(seconds, 4)


def _protect(outputs: Sequence[Path], inputs: Sequence[Path], written_before: bool) -> None:
    """Refuses to write over what the user gave, or over files that no earlier run wrote."""
    given = {path.resolve() for path in inputs}
    for path in outputs:
        if path.resolve() in given:
            raise ValueError(f"{path} is an input, and would be written over; choose another folder with -o")
        if path.exists() and not written_before:
            raise ValueError(f"{path} exists, but no results.json of an earlier run beside it; choose another -o")


def _shrink(image: np.ndarray, result: Segmentation) -> tuple[np.ndarray, Segmentation]:
    """A copy for the contact sheet, small enough to keep many."""
    from incontext.image import resize_image, resize_labels
    from incontext.types import Segmentation

    scale = min(1.0, _SHEET_SIDE / max(result.size))
    size = tuple(max(1, round(side * scale)) for side in result.size)
    parts = (resize_labels(part, size) for part in (result.labels, result.confidence, result.painting))
    return resize_image(image, size), Segmentation(*parts, result.scores, result.names)
