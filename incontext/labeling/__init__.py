"""A folder of images in, a labelled dataset out.

`label` runs the job; the other modules open examples in foreign formats, say which results to trust and which images
to paint first.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from incontext.labeling.config import LabelConfig
    from incontext.labeling.example_sources import open_examples
    from incontext.labeling.job import LabelSummary, label
    from incontext.labeling.reading import JobStopped

# Each name is imported when it is used: finding images on the command line must not wait for torch (PEP 562).
_HOMES = {
    "JobStopped": "incontext.labeling.reading",
    "LabelConfig": "incontext.labeling.config",
    "LabelSummary": "incontext.labeling.job",
    "label": "incontext.labeling.job",
    "open_examples": "incontext.labeling.example_sources",
}

__all__ = ["JobStopped", "LabelConfig", "LabelSummary", "label", "open_examples"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'incontext.labeling' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
