"""What is said of class ids that had to change where several sources come together."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from incontext.pack import PromptPack

_MOST_NAMED = 8
"""Changes of one source that are spelled out; a line with hundreds would be read by nobody."""


def packs_renumbered(
    given: Sequence[str], packs: Sequence[PromptPack], joined: Sequence[PromptPack]
) -> dict[str, dict[int, int]]:
    """Which ids of packs changed when they joined a prompt.

    Args:
        given: what the user calls each pack.
        packs: as they were opened.
        joined: the same ones in the prompt; see `Prompt.packs`.

    Returns:
        Pack as it was given -> {id in it: id in the prompt}, for packs with changes.
    """
    changed = {}
    for name, pack, here in zip(given, packs, joined, strict=True):
        if changes := {old: new for old, new in zip(pack.ids, here.ids, strict=True) if old != new}:
            changed[name] = changes
    return changed


def tell_renumbered(renumbered: Mapping[str, Mapping[int, int]], names: Mapping[int, str]) -> None:
    """Prints a line on standard error for each source whose ids are others in the result than in its own masks.

    Args:
        renumbered: source -> {id in it: id in the result}; see `ExampleSet.renumbered`.
        names: id in the result -> name.
    """
    for source, changes in renumbered.items():
        told = [f"{old} -> {new} ({names[new]})" for old, new in list(changes.items())[:_MOST_NAMED]]
        if len(changes) > len(told):
            told.append(f"and {len(changes) - len(told)} more")
        print(f"{source}: classes are joined by name, so ids changed: {', '.join(told)}", file=sys.stderr)
