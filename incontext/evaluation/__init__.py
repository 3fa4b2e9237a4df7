"""Measuring: metrics, baselines, and protocols over labelled folders and rendered scenes."""

from incontext.evaluation.baselines import BASELINES, CopyBaseline, NearestBaseline
from incontext.evaluation.episodes import Episode, across_images, first_frame, rendered, within_image
from incontext.evaluation.folders import Report, Sample, Score, evaluate_folders, score_episodes
from incontext.evaluation.metrics import Tally, iou
from incontext.labelled_folders import ImageSet, Item, SetError, VideoSet, find_sets

__all__ = [
    "BASELINES",
    "CopyBaseline",
    "Episode",
    "ImageSet",
    "Item",
    "NearestBaseline",
    "Report",
    "Sample",
    "Score",
    "SetError",
    "Tally",
    "VideoSet",
    "across_images",
    "evaluate_folders",
    "find_sets",
    "first_frame",
    "iou",
    "rendered",
    "score_episodes",
    "within_image",
]
