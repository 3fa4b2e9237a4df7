"""In-context segmentation: show a few painted images, get the masks of all the others.

import incontext as ic

predictor = ic.Predictor(ic.load_model())
examples = [ic.Example.open("a.jpg", "a.png")]
segmentation = predictor.predict("query.jpg", examples)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from incontext.clicks import Click
    from incontext.export import (
        LabelledImage,
        contact_sheet,
        overlay,
        read_dataset,
        write_dataset,
        write_image,
        write_indexed,
    )
    from incontext.image import ImageError, open_image, open_labels
    from incontext.labeling import LabelConfig, label, open_examples
    from incontext.model.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
    from incontext.model.config import SegGPTConfig
    from incontext.model.seggpt import PromptCache, SegGPT
    from incontext.model.zoo import load_model
    from incontext.pack import PackError, PromptPack
    from incontext.palette import Palette
    from incontext.predictor import Predictor
    from incontext.training.loop import TrainConfig, train
    from incontext.training.tune import TuneConfig, tune
    from incontext.types import IGNORE, Example, Segmentation
    from incontext.video.frames import read_frames
    from incontext.video.tracker import Tracker

# Where each public name lives. Torch takes seconds to import; a name pays for it only when it is used (PEP 562).
_HOMES = {
    "CheckpointError": "incontext.model.checkpoint",
    "Click": "incontext.clicks",
    "Example": "incontext.types",
    "IGNORE": "incontext.types",
    "ImageError": "incontext.image",
    "LabelConfig": "incontext.labeling",
    "LabelledImage": "incontext.export",
    "PackError": "incontext.pack",
    "Palette": "incontext.palette",
    "Predictor": "incontext.predictor",
    "PromptCache": "incontext.model.seggpt",
    "PromptPack": "incontext.pack",
    "SegGPT": "incontext.model.seggpt",
    "SegGPTConfig": "incontext.model.config",
    "Segmentation": "incontext.types",
    "Tracker": "incontext.video.tracker",
    "TrainConfig": "incontext.training.loop",
    "TuneConfig": "incontext.training.tune",
    "contact_sheet": "incontext.export",
    "label": "incontext.labeling",
    "load_checkpoint": "incontext.model.checkpoint",
    "load_model": "incontext.model.zoo",
    "open_examples": "incontext.labeling",
    "open_image": "incontext.image",
    "open_labels": "incontext.image",
    "overlay": "incontext.export",
    "read_dataset": "incontext.export",
    "read_frames": "incontext.video.frames",
    "save_checkpoint": "incontext.model.checkpoint",
    "train": "incontext.training.loop",
    "tune": "incontext.training.tune",
    "write_dataset": "incontext.export",
    "write_image": "incontext.export",
    "write_indexed": "incontext.export",
}

__all__ = [
    "CheckpointError",
    "Click",
    "Example",
    "IGNORE",
    "ImageError",
    "LabelConfig",
    "LabelledImage",
    "PackError",
    "Palette",
    "Predictor",
    "PromptCache",
    "PromptPack",
    "SegGPT",
    "SegGPTConfig",
    "Segmentation",
    "Tracker",
    "TrainConfig",
    "TuneConfig",
    "contact_sheet",
    "label",
    "load_checkpoint",
    "load_model",
    "open_examples",
    "open_image",
    "open_labels",
    "overlay",
    "read_dataset",
    "read_frames",
    "save_checkpoint",
    "train",
    "tune",
    "write_dataset",
    "write_image",
    "write_indexed",
    "__version__",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'incontext' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
