"""Unfinished files that killed runs left behind."""

from __future__ import annotations

import re
from pathlib import Path

_DRAFT = re.compile(r"\..{0,64}\.[0-9a-f]{12}(\.\w+)?")  # as `incontext.atomic.replacing` calls them


def remove_drafts(folder: Path) -> int:
    """Removes them below a folder in which nobody is writing; returns how many there were."""
    drafts = [path for path in folder.rglob(".*") if _DRAFT.fullmatch(path.name) and path.is_file()]
    for path in drafts:
        path.unlink(missing_ok=True)
    return len(drafts)
