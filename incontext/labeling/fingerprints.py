"""Short names for what a mask was made with: 16 hexadecimal digits each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from incontext.types import Example

_DIGITS = 16


def fingerprint_of(values: Any) -> str:
    """Of whatever JSON can say."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:_DIGITS]


def labels_fingerprint(labels: np.ndarray) -> str:
    """Of integers (H, W)."""
    digest = hashlib.sha256(repr(labels.shape).encode())
    digest.update(np.ascontiguousarray(labels))
    return digest.hexdigest()[:_DIGITS]


def prompt_fingerprint(examples: Sequence[Example]) -> str:
    """Of examples' pixels and labels, in their order. Names don't count: they don't reach the model."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(labels_fingerprint(example.labels).encode())
        digest.update(np.ascontiguousarray(example.image))
    return digest.hexdigest()[:_DIGITS]
