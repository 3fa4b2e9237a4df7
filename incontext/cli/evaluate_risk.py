"""`incontext eval risk`: whether scores find the bad masks."""

from __future__ import annotations

import argparse
import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from incontext.cli.arguments import output_folder, word_list
from incontext.cli.model_options import add_device, add_model, open_predictor
from incontext.cli.progress import progress

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

    from incontext.evaluation.risk import Trust
    from incontext.predictor import Predictor
    from incontext.types import Example, Segmentation


def add_risk_parser(protocols: argparse._SubParsersAction) -> None:
    """Adds the protocol `risk`."""
    risk = protocols.add_parser(
        "risk",
        help="whether scores find the bad masks: risk-coverage against chance and mask size",
        description="Labels each set as a label job does: a few images are painted, all others are labelled (of a "
        "video the first frame is painted). Then sorts the masks of each set, or video, by several scores and reports "
        "the area under the risk-coverage curve (AURC, lower is better), how far that is from chance (0) towards "
        "perfect order (100), and which part of the bad masks (IoU below 50) is among the 20% that are trusted least. "
        "All are means over the sets.",
    )
    risk.add_argument("data", type=Path, metavar="DATA", help="a folder of sets, or one set; see `eval folders`")
    risk.add_argument(
        "--shots", type=int, default=4, metavar="N", help="images that are painted in each set (default 4)"
    )
    risk.add_argument("--sets", type=word_list, metavar="NAME,NAME", help="only these sets (default: all)")
    risk.add_argument(
        "--skip",
        type=word_list,
        default=["bsds500*"],
        metavar="NAME,NAME",
        help="sets whose ids mean nothing across images; patterns are allowed (default bsds500*)",
    )
    risk.add_argument("--limit", type=int, metavar="N", help="queries per set, or per video (default: all)")
    risk.add_argument("--recolourings", type=int, default=2, metavar="N", help="views for the disagreement (default 2)")
    risk.add_argument("--seed", type=int, default=0, help="of the choice of images and of colours (default 0)")
    add_model(risk)
    add_device(risk)
    risk.add_argument("-o", "--output", type=output_folder, metavar="DIR", help="write risk.json and risk.png there")
    risk.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs `incontext eval risk`; returns the exit status.

    Raises:
        ValueError: a number is out of its range, or the data are not laid out as expected.
    """
    from incontext.evaluation.episodes import first_frame
    from incontext.evaluation.risk import RiskReport, judge_episodes, painted_once
    from incontext.evaluation.risk_report import aligned, save
    from incontext.labelled_folders import VideoSet, find_sets

    if args.shots < 1 or args.recolourings < 1 or (args.limit is not None and args.limit < 1):
        raise ValueError("expected at least 1 painted image, 1 recolouring and 1 query; give larger numbers")
    judge = _Judge(open_predictor(args), args.recolourings, args.seed)
    masks, images = [], []
    for source in find_sets(args.data, args.sets):
        if any(fnmatch.fnmatch(source.name, pattern) for pattern in args.skip):
            continue
        if isinstance(source, VideoSet):
            episodes = first_frame(source, limit=args.limit)
        else:
            episodes = painted_once(source, args.shots, seed=args.seed, limit=args.limit)
        found = judge_episodes(source.name, progress(episodes, source.name, None, "query"), judge)
        masks += found[0]
        images += found[1]
    if not masks:
        raise ValueError(f"{args.data}: expected masks to judge, but nothing was found in any image")
    reports = [RiskReport.of("masks", masks), RiskReport.of("images", images)]
    print(aligned(reports))
    print("AURC: mean of 1 - IoU over all coverages; gain, then in each set: 0 is chance, 100 a perfect order; percent")
    predicting, viewing = (seconds / len(images) for seconds in (judge.predicting, judge.viewing))
    print(f"seconds an image: {predicting:.2f}, and {viewing:.2f} more for its {args.recolourings} views")
    if args.output:
        names = ("shots", "limit", "recolourings", "seed", "model")
        settings = {name: getattr(args, name) for name in names}
        written = save(reports, args.output, {**settings, "temperatures": judge.temperatures})
        print("wrote " + ", ".join(map(str, written)))
    return 0


class _Judge:
    """Predicts, and scores by what one prediction tells, by views, and by both.

    Attributes:
        temperatures: what was fitted, for each list of examples in turn.
        predicting, viewing: seconds that predictions and their views have taken.
    """

    def __init__(self, predictor: Predictor, recolourings: int, seed: int) -> None:
        from incontext.labeling.disagreement import views

        self.predictor = predictor
        self.views = views(predictor, recolourings, seed=seed)
        self.temperatures: list[float] = []
        self.predicting = self.viewing = 0.0
        self._examples: Sequence[Example] = ()
        self._usual: Mapping[int, float] = {}
        self._calibrated = predictor

    def __call__(self, image: np.ndarray, examples: Sequence[Example]) -> tuple[Segmentation, Mapping[str, Trust]]:
        import time

        from incontext.evaluation.risk import Trust
        from incontext.labeling.calibration import expected_ious, image_score
        from incontext.labeling.disagreement import agreements, disagreement_score
        from incontext.labeling.trust import trust
        from incontext.labeling.wholeness import mean_wholeness, wholeness

        self._prepare(examples)
        started = time.perf_counter()
        found = self._calibrated.predict(image, examples)
        predicted = time.perf_counter()
        others = [view.predict(image, examples) for view in self.views]
        self.predicting += predicted - started
        self.viewing += time.perf_counter() - predicted

        ious, shares, agreed = expected_ious(found), wholeness(found.labels, self._usual), agreements(found, others)
        score, disagreement = image_score(found, ious), disagreement_score(found, others)
        whole = mean_wholeness(shares)
        sure = [found.scores[id] for id in found.ids] or [float(found.confidence.mean())]
        return found, {
            "mean confidence": Trust(sum(sure) / len(sure), found.scores),
            "score": Trust(score, ious),
            "wholeness": Trust(0.0 if whole is None else whole, shares),
            "agreement": Trust(1 - disagreement, agreed),
            "trust without views": Trust(
                trust(score, whole), {id: trust(ious[id], share) for id, share in shares.items()}
            ),
            "trust": Trust(
                trust(score, whole, disagreement),
                {id: trust(ious[id], share, 1 - agreed[id]) for id, share in shares.items()},
            ),
        }

    def _prepare(self, examples: Sequence[Example]) -> None:
        """Fits the temperature to examples that are new; episodes of one set or video share theirs."""
        from incontext.labeling.calibration import fit_temperature
        from incontext.labeling.wholeness import usual_wholeness

        if examples is not self._examples:
            temperature = fit_temperature(self.predictor, examples)
            self.temperatures.append(round(temperature, 1))
            self._calibrated = self.predictor.varied(temperature=temperature)
            self._usual = usual_wholeness(examples)
            self._examples = examples
