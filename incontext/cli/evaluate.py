"""`incontext eval`: scores a model, and baselines, against known masks; here on labelled folders."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from incontext.cli import evaluate_pixels, evaluate_risk, evaluate_video
from incontext.cli.arguments import number_list, output_folder, positive, word_list
from incontext.cli.model_options import add_device, add_one_by_one, add_refine, add_views
from incontext.cli.progress import progress

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np

    from incontext.evaluation.folders import Selecting, Shown
    from incontext.predictor import Predictor
    from incontext.types import Example


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the command `eval` with its protocols."""
    parser = subparsers.add_parser("eval", help="score a model against known masks")
    protocols = parser.add_subparsers(dest="protocol", required=True, metavar="PROTOCOL")
    folders = protocols.add_parser(
        "folders",
        help="labelled folders: other images of a set, other half of an image, video from its first frame",
        description="Scores a model and two baselines (copying the example's mask; nearest neighbour on "
        "colour and position) on folders laid out as SET/images + SET/masks, or SET/VIDEO/frames + "
        "SET/VIDEO/masks. Masks are 8-bit ids: 0 background, 255 ignore; or all of a set are black and white (0 and "
        "255). SET/classes.txt may name the ids.",
    )
    folders.add_argument("data", type=Path, metavar="DATA", help="a folder of sets, or one set")
    folders.add_argument(
        "--shots",
        type=number_list,
        default=(1,),
        metavar="N,N",
        help="examples per query, such as 1,4,8 (default 1)",
    )
    folders.add_argument(
        "--pool",
        type=positive,
        metavar="N",
        help="also choose the examples of each query out of N, as `incontext label --select` does",
    )
    folders.add_argument("--sets", type=word_list, metavar="NAME,NAME", help="only these sets (default: all)")
    folders.add_argument(
        "--within",
        type=word_list,
        metavar="NAME,NAME",
        help="sets whose ids mean nothing across images: one half is the example for the other; "
        "patterns are allowed (default bsds500*)",
    )
    folders.add_argument("--limit", type=positive, metavar="N", help="queries per set or video (default: all)")
    folders.add_argument("--seed", type=int, default=0, help="of the choice of examples (default 0)")
    folders.add_argument(
        "--model",
        action="append",
        metavar="MODEL",
        help="name or file; may be given several times; none: the baselines alone (default: the bundled one)",
    )
    folders.add_argument("--ensemble", choices=("feature", "spatial"), default="feature", help="of several examples")
    add_device(folders)
    add_refine(folders)
    add_one_by_one(folders)
    add_views(folders)
    folders.add_argument(
        "--precision",
        type=word_list,
        default=["fp32"],
        metavar="P,P",
        help="of fp32,bf16,fp16,auto (default fp32); of several, the masks are compared with those of the first",
    )
    folders.add_argument("--no-baselines", action="store_true", help="run the models only")
    folders.add_argument(
        "--samples",
        type=int,
        default=3,
        metavar="N",
        help="queries per set in its picture (default 3; 0: no pictures)",
    )
    folders.add_argument(
        "-o",
        "--output",
        type=output_folder,
        metavar="DIR",
        help="write results.json, .csv, .md and a picture per set there",
    )
    folders.set_defaults(run=run)
    evaluate_pixels.add_parsers(protocols)
    evaluate_video.add_parsers(protocols)
    evaluate_risk.add_risk_parser(protocols)


def run(args: argparse.Namespace) -> int:
    """Runs `incontext eval folders`; returns the exit status."""
    from incontext.evaluation.folders import WITHIN, evaluate_folders
    from incontext.evaluation.report import agreement, aligned, save

    predictors, compared = _predictors(args)
    report = evaluate_folders(
        args.data,
        predictors,
        shots=args.shots,
        sets=args.sets,
        within=WITHIN if args.within is None else args.within,
        limit=args.limit,
        seed=args.seed,
        ensemble=args.ensemble,
        baselines=not args.no_baselines,
        samples=args.samples if args.output else 0,
        compared=compared,
        progress=lambda name, episodes, total: progress(episodes, name, total, "query"),
    )
    print(aligned(report))
    print("mIoU in percent; the number after a method's name is how many examples it saw")
    print("".join(f"{line}\n" for line in agreement(report)), end="")
    if args.output:
        written = save(report, args.output)
        written += _pictures(report, args.output, "example drawn at random" if args.pool else "example")
        print("wrote " + ", ".join(str(path) for path in written))
    return 0


def _predictors(args: argparse.Namespace) -> tuple[dict[str, Shown | Selecting], dict[str, str]]:
    """Method name -> predictor; and the name in other precisions -> the name in the first."""
    if args.model == ["none"]:
        return {}, {}
    from incontext.evaluation.folders import Selecting, Shown
    from incontext.model.zoo import load_model
    from incontext.predictor import Predictor

    options = {"tile": args.tile, "overlap": args.overlap, "flip": args.flip}
    if args.batch_size is not None:
        options["batch_size"] = args.batch_size
    models, precisions = list(dict.fromkeys(args.model or ["default"])), list(dict.fromkeys(args.precision))
    short = [Path(model).stem for model in models]
    found, compared = {}, {}
    for name, model in zip(short if len(set(short)) == len(short) else models, models, strict=True):
        names = [name if len(precisions) == 1 else f"{name} {precision}" for precision in precisions]
        for each, precision in zip(names, precisions, strict=True):
            predictor = Predictor(
                load_model(model),
                device=args.device,
                one_by_one=args.one_by_one,
                refine=args.refine,
                precision=precision,
            )
            found[each] = Shown(predictor, options)
            if args.pool:
                found[f"{each} of {args.pool}"] = Selecting(found[each], args.pool, _chooser(predictor))
        compared.update(dict.fromkeys(names[1:], names[0]))
    return found, compared


def _chooser(predictor: Predictor) -> Callable[[np.ndarray, Sequence[Example], int], list[Example]]:
    """Chooses examples as a label job does; what it has seen of images it keeps."""
    from incontext.labeling.embedding import Embedder
    from incontext.labeling.example_pool import ExamplePool

    embedder = Embedder(predictor)
    return lambda image, pool, count: ExamplePool(predictor, pool, embedder=embedder).pick(image, count)


def _pictures(report, folder: Path, shown: str) -> list[Path]:
    """A page for each set: examples under the title `shown`, query and truth, and what each method found."""
    from incontext.evaluation.metrics import Tally
    from incontext.export import Card, lay_out, overlay, write_image

    pages: dict[str, list] = {}
    for sample in report.samples:
        e = sample.episode
        cards = [Card((x.image, overlay(x.image, x.labels)), shown) for x in e.examples[:4]]
        cards.append(Card((e.image, overlay(e.image, e.truth)), "query, truth"))
        for (method, shots), found in sample.results.items():
            tally = Tally()
            tally.add(found.labels, e.truth, e.ids)
            title = f"{method}, {shots} shot{'s' * (shots > 1)}: {100 * tally.image_mean:.0f}"
            cards.append(Card((overlay(e.image, found.labels),), title))
        pages.setdefault(sample.set, []).append((e.name, "IoU in percent", cards))
    paths = []
    for name, sections in pages.items():
        paths.append(folder / f"{name}.png")
        write_image(paths[-1], lay_out(sections, title=name, height=180))
    return paths
