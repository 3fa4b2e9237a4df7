"""`incontext eval risk`: whether scores find the bad masks."""

from __future__ import annotations

import argparse
import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from incontext.cli.arguments import word_list
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
        "video the first frame is painted). Then sorts the masks by several scores and reports the area under the "
        "risk-coverage curve (AURC, lower is better), how far that is from chance (0) towards perfect order (100), "
        "and which part of the bad masks (IoU below 50) is among the 20% that are trusted least.",
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
    risk.add_argument("--recolourings", type=int, default=4, metavar="N", help="for the disagreement (default 4)")
    risk.add_argument("--seed", type=int, default=0, help="of the choice of images and of colours (default 0)")
    add_model(risk)
    add_device(risk)
    risk.add_argument("-o", "--output", type=Path, metavar="DIR", help="write risk.json and risk.png there")
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

    if args.shots < 1 or args.recolourings < 2 or (args.limit is not None and args.limit < 1):
        raise ValueError("expected at least 1 painted image, 2 recolourings and 1 query; give larger numbers")
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
    print("AURC: mean of 1 - IoU over all coverages; gain: 0 is chance, 100 a perfect order; all in percent")
    if args.output:
        names = ("shots", "limit", "recolourings", "seed", "model")
        settings = {name: getattr(args, name) for name in names}
        written = save(reports, args.output, {**settings, "temperatures": judge.temperatures})
        print("wrote " + ", ".join(map(str, written)))
    return 0


class _Judge:
    """Predicts, and scores by confidence, by expected IoU before and after calibration, and by agreement.

    Attributes:
        temperatures: what was fitted, for each list of examples in turn.
    """

    def __init__(self, predictor: Predictor, recolourings: int, seed: int) -> None:
        from incontext.labeling.disagreement import recoloured

        self.predictor = predictor
        self.recoloured = recoloured(predictor, recolourings, seed=seed)
        self.temperatures: list[float] = []
        self._examples: Sequence[Example] = ()
        self._calibrated = predictor

    def __call__(self, image: np.ndarray, examples: Sequence[Example]) -> tuple[Segmentation, Mapping[str, Trust]]:
        from incontext.evaluation.risk import Trust
        from incontext.labeling.calibration import expected_ious, image_score
        from incontext.labeling.disagreement import agreements, disagreement_score

        self._calibrate(examples)
        plain = self.predictor.predict(image, examples)
        found = self._calibrated.predict(image, examples)
        others = [each.predict(image, examples) for each in self.recoloured]
        agreement = Trust(1 - disagreement_score(others), agreements(found, others))
        found_ious, expected = expected_ious(found), expected_ious(plain)
        calibrated = Trust(image_score(found, found_ious), found_ious)
        # A mask that only one temperature finds (several passes can differ) has no score from the other.
        confidence = {id: plain.scores.get(id, 0.0) for id in found.ids}
        mean = sum(plain.scores.values()) / len(plain.scores) if plain.scores else float(plain.confidence.mean())
        return found, {
            "mean confidence": Trust(mean, confidence),
            "expected IoU": Trust(image_score(plain, expected), {id: expected.get(id, 0.0) for id in found.ids}),
            "expected IoU, calibrated": calibrated,
            "agreement": agreement,
            "calibrated x agreement": Trust(
                calibrated.image * agreement.image,
                {id: score * agreement.masks[id] for id, score in calibrated.masks.items()},
            ),
        }

    def _calibrate(self, examples: Sequence[Example]) -> None:
        """Fits the temperature to examples that are new; episodes of one set or video share theirs."""
        from incontext.labeling.calibration import fit_temperature

        if examples is not self._examples:
            temperature = fit_temperature(self.predictor, examples)
            self.temperatures.append(round(temperature, 1))
            self._calibrated = self.predictor.varied(temperature=temperature)
            self._examples = examples
