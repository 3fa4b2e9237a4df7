"""`incontext examples`: which examples help, and which images to paint."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from incontext.cli.arguments import output_folder
from incontext.cli.class_ids import tell_renumbered
from incontext.cli.model_options import add_device, add_model, open_predictor

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from incontext.labeling.example_scores import ExampleReport
    from incontext.labeling.left_out import LeftOut
    from incontext.labeling.suggestion import Suggestion

_SHOWN_MEMBERS = 3  # images beside each suggestion that it stands for


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the command `examples` with its tasks."""
    parser = subparsers.add_parser("examples", help="score examples, and propose which images to paint")
    tasks = parser.add_subparsers(dest="task", required=True, metavar="TASK")
    score = tasks.add_parser(
        "score",
        help="which examples help, which harm, and the best few of them",
        description="Leaves out one example at a time and predicts it from the others. An example is harmful where "
        "the others are predicted better without it. Proposes the subset that predicts the others best (greedy "
        "forward selection). What was predicted is kept in -o, so that a run that ends goes on where it was.",
    )
    score.add_argument(
        "sources",
        nargs="+",
        type=Path,
        metavar="DIR",
        help="examples: folders of images with masks, COCO or labelme files; as for `incontext label --examples`",
    )
    score.add_argument(
        "-o", "--output", type=output_folder, metavar="DIR", help="write scores.json and scores.png there"
    )
    score.add_argument(
        "--budget", type=int, default=1000, metavar="N", help="predictions to spend, more or less (default 1000)"
    )
    score.add_argument("--size", type=int, default=8, metavar="N", help="of the largest subset to try (default 8)")
    add_model(score)
    add_device(score)
    score.set_defaults(run=run_score)

    suggest = tasks.add_parser(
        "suggest",
        help="which images to paint first",
        description="Proposes the images whose examples should help the others most: those that the rest of the "
        "folder resembles.",
    )
    suggest.add_argument("images", nargs="+", metavar="IMAGE", help="files, folders or patterns such as 'a/*.jpg'")
    suggest.add_argument("-k", type=int, default=5, metavar="N", help="how many (default 5)")
    suggest.add_argument(
        "--examples",
        nargs="+",
        type=Path,
        default=[],
        metavar="DIR",
        help="what is painted already: propose what it lacks",
    )
    suggest.add_argument(
        "-o",
        "--output",
        type=output_folder,
        metavar="DIR",
        help="write suggestions.json and suggestions.png there, and keep embeddings for the next time",
    )
    add_model(suggest)
    add_device(suggest)
    suggest.set_defaults(run=run_suggest)


def run_score(args: argparse.Namespace) -> int:
    """Runs `incontext examples score`; returns the exit status."""
    from tqdm import tqdm

    from incontext.labeling.example_scores import Plan, score_examples
    from incontext.labeling.example_sources import open_examples
    from incontext.labeling.left_out import LeftOut

    opened = open_examples(args.sources)
    tell_renumbered(opened.renumbered, opened.names)
    plan = Plan.of(len(opened.examples), budget=args.budget, size=args.size)
    journal = args.output / "predictions.jsonl" if args.output else None
    left_out = LeftOut(open_predictor(args), opened.examples, journal=journal)
    print(f"{plan.count} examples, at most {plan.predictions} predictions", file=sys.stderr)
    # disable=None: silent unless standard error is a terminal
    with tqdm(total=plan.predictions, unit="prediction", disable=None, leave=False, file=sys.stderr) as bar:
        report = score_examples(left_out, plan, done=bar.update)
    names = _short_names(opened.paths)
    print(_score_table(report, names))
    if args.output:
        _save_scores(args.output, report, left_out, opened.paths, names)
        print(f"wrote {args.output / 'scores.json'}, {args.output / 'scores.png'}")
    return 0


def _score_table(report: ExampleReport, names: Sequence[str]) -> str:
    width = max(7, *map(len, names))
    lines = [f"{'example':{width}}   IoU  effect   hurts"]
    for index, (name, score) in enumerate(zip(names, report.scores, strict=True)):
        effect = "-" if score.effect != score.effect else f"{100 * score.effect:+.1f}"
        hurt = "-" if score.hurt != score.hurt else f"{100 * score.hurt:.0f}%"
        lines.append(f"{name:{width}} {100 * score.iou:5.1f} {effect:>7} {hurt:>7}  {_verdict(report, index)}".rstrip())
    lines.append("")
    lines.append("IoU: how well the others predict it; low: look at its mask, or show more like it")
    lines.append("effect: what it adds to the IoU of the others; hurts: how many of them do better without it")
    chosen = " ".join(names[index] for index in report.subset)
    if len(report.subset) < len(names):
        gain = f"IoU {100 * report.subset_iou:.1f} instead of {100 * report.iou:.1f}"
        lines.append(f"best subset ({len(report.subset)} of {len(names)}, {gain}): {chosen}")
    else:
        lines.append(f"best subset: all {len(names)} (IoU {100 * report.iou:.1f}); no fewer that were tried do as well")
    return "\n".join(lines)


def _verdict(report: ExampleReport, index: int) -> str:
    score = report.scores[index]
    effect = "harmful" if score.harmful else "helps" if score.helpful else ""
    return ", ".join(filter(None, (effect, "unlike the others: check its mask" if report.is_odd(index) else "")))


def _save_scores(
    folder: Path, report: ExampleReport, left_out: LeftOut, paths: Sequence[Path], names: Sequence[str]
) -> None:
    from incontext.export import Card, lay_out, overlay, write_image
    from incontext.export.documents import write_readable_json

    everyone = range(len(paths))
    write_readable_json(
        folder / "scores.json",
        {
            "iou": round(report.iou, 5),
            "subset": [str(paths[index]) for index in report.subset],
            "subset_iou": round(report.subset_iou, 5),
            "predictions": report.predictions,
            "examples": [
                {
                    "image": str(path),
                    "iou": round(score.iou, 5),
                    "effect": None if score.effect != score.effect else round(score.effect, 5),
                    "hurt": None if score.hurt != score.hurt else round(score.hurt, 5),
                    "harmful": score.harmful,
                    "odd": report.is_odd(index),
                    "in_subset": index in report.subset,
                }
                for index, (path, score) in enumerate(zip(paths, report.scores, strict=True))
            ],
        },
    )
    cards: dict[bool, list] = {True: [], False: []}
    for index, (example, score) in enumerate(zip(left_out.examples, report.scores, strict=True)):
        found = left_out.labels(index, everyone)
        pictures = [example.image, overlay(example.image, example.labels), overlay(example.image, found)]
        title = f"{names[index]}: IoU {100 * score.iou:.0f} {_verdict(report, index)}"
        cards[index in report.subset].append(Card(pictures, title))
    note = "image, mask, what the others predict"
    sections = [("Best subset", note, cards[True]), ("Others", note, cards[False])]
    write_image(folder / "scores.png", lay_out([section for section in sections if section[2]], title="Examples"))


def run_suggest(args: argparse.Namespace) -> int:
    """Runs `incontext examples suggest`; returns the exit status: 1 if an image cannot be read."""
    from tqdm import tqdm

    from incontext.labeling.embedding import Embedder
    from incontext.labeling.example_sources import open_examples
    from incontext.labeling.inputs import find_images
    from incontext.labeling.suggestion import suggest

    if args.k < 1:
        raise ValueError(f"-k: expected at least 1 image to suggest, got {args.k}")
    opened = [open_examples(source) for source in args.examples]
    painted = [path for each in opened for path in each.paths]
    masks = [path for each in opened for path in each.masks]
    inputs = find_images(args.images, skip=[*painted, *masks], skip_folders=[args.output] if args.output else [])
    paths = [each.path for each in inputs]
    embedder = Embedder(open_predictor(args), args.output)

    def progress(items: Any) -> Any:
        return tqdm(items, total=len(paths), unit="image", disable=None, leave=False, file=sys.stderr)

    vectors, errors = embedder.embed(paths, progress=progress)
    for error in errors.values():
        print(f"failed: {error}", file=sys.stderr)
    paths = [path for index, path in enumerate(paths) if index not in errors]
    if not paths:
        raise ValueError("expected at least one image that can be read, got none")
    vectors = vectors[[index for index in range(len(inputs)) if index not in errors]]
    known = embedder.embed(painted)[0] if painted else None
    suggestions = suggest(vectors, args.k, painted=known)
    for each in suggestions:
        print(f"{100 * each.share:5.1f}%  {paths[each.index]}")
    print(f"paint these {len(suggestions)} of {len(paths)} images; in front, the part of all that each stands for")
    if args.output:
        _save_suggestions(args.output, suggestions, paths)
        print(f"wrote {args.output / 'suggestions.json'}, {args.output / 'suggestions.png'}")
    return 1 if errors else 0


def _save_suggestions(folder: Path, suggestions: Sequence[Suggestion], paths: Sequence[Path]) -> None:
    from incontext.export import Card, lay_out, write_image
    from incontext.export.documents import write_readable_json

    write_readable_json(
        folder / "suggestions.json",
        [{"image": str(paths[each.index]), "share": round(each.share, 5)} for each in suggestions],
    )
    cards = [
        Card(
            [_small(paths[index]) for index in (each.index, *each.stands_for[:_SHOWN_MEMBERS])],
            f"{paths[each.index].name}: stands for {100 * each.share:.0f}%",
        )
        for each in suggestions
    ]
    note = "the image, and some that it stands for"
    write_image(folder / "suggestions.png", lay_out([("Paint these", note, cards)], height=170))


def _small(path: Path) -> np.ndarray:
    from incontext.image import open_image, resize_image

    image = open_image(path)
    scale = min(1.0, 360 / max(image.shape[:2]))
    return resize_image(image, tuple(max(1, round(side * scale)) for side in image.shape[:2]))


def _short_names(paths: Sequence[Path]) -> list[str]:
    """File names, or whole paths where two are the same."""
    names = [path.name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]
