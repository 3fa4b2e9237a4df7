"""How far to trust a result: one number out of what is known of it."""

from __future__ import annotations

import math


def trust(score: float, wholeness: float | None = None, disagreement: float | None = None) -> float:
    """How far to trust a mask, or an image's masks, 0..1; the lowest are to be looked at first.

    Masks that are whole, and that stay as they are when the same is asked in other ways, are good. Where nothing else
    was asked, the root of the score stands in: confidence sorts well for some examples and worse than chance for
    others, so it counts half. The rule was chosen on images that the bundled model was trained on; `incontext eval
    risk` measures it on others.

    Args:
        score: 0..1, the IoU to expect by confidence; see `incontext.labeling.calibration`.
        wholeness: 0..1, see `incontext.labeling.wholeness`; None where nothing was found, so that only the score can
            tell what may have been missed.
        disagreement: 0..1, see `incontext.labeling.disagreement`; None where no view was asked.
    """
    if wholeness is None:
        return score * (1 - (disagreement or 0.0))
    return wholeness * (math.sqrt(score) if disagreement is None else 1 - disagreement)
