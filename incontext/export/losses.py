"""What a format could not hold: counted while a dataset is written, said once at its end."""

from __future__ import annotations

import logging
from collections import Counter

logger = logging.getLogger(__name__)

HOLES = "holes are filled"
PARTS = "parts became objects of their own"
IGNORED = "images lose their ignored pixels, which become background"
SHARED = "images are left out, since another has the same name but for its suffix"
MANY = "objects are left out, the smallest of images that have more than 254"
NO_AREA = "points and lines are passed over, since they have no area"


class Losses:
    """Counts what is lost, for one warning."""

    def __init__(self, format: str) -> None:
        self._format = format
        self._counts: Counter[str] = Counter()

    def add(self, what: str, count: int = 1) -> None:
        """Adds `count` losses of one kind; 0 is fine."""
        self._counts[what] += int(count)

    def report(self) -> None:
        """Warns, if anything was lost."""
        lost = [f"{count} {what}" for what, count in self._counts.items() if count]
        if lost:
            logger.warning("%s cannot hold everything: %s", self._format, "; ".join(lost))
