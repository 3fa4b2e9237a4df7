"""The card of a prompt pack: what people should know before they use it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from incontext.pack.prompt_pack import PromptPack, Scalar

_MARKUP = re.compile(r"([\\`*_{}\[\]()<>#+!|~&-])")
_LISTED = 30


def card(pack: PromptPack, file_name: str, pictures: Sequence[str] = ()) -> str:
    """Writes the card.

    Args:
        pack: the pack.
        file_name: what its file is called.
        pictures: of how it was learned, by their paths from the card on.

    Returns:
        Markdown. What a pack says of itself is shown as text, whatever markup is in it.
    """
    names = [_text(pack.names[id]) for id in pack.ids[:_LISTED]]
    if len(pack.ids) > _LISTED:
        names.append(f"and {len(pack.ids) - _LISTED} more")
    height, width = pack.size
    scale = "whole images" if pack.tile is None else f"tiles of {pack.tile} pixels"
    facts = {
        "classes": ", ".join(names),
        "made for": f"{_text(pack.model)}, fingerprint `{pack.fingerprint[:12]}`; no other model takes it",
        "examples": f"{len(pack.images)}, {height} x {width} pixels, {scale}",
        "used as": f"kind {pack.kind}, {pack.ensemble} ensemble, {_count(len(pack.palettes), 'pass', 'passes')}",
        "confidence": f"temperature {pack.temperature:.0f}",
        "looks of pixels": _looks(pack),
        "encoded prompt": "in the file" if pack.caches else "not in the file",
    }
    if pack.tokens is not None:
        facts["learned tokens"] = f"added to the examples' keys and values in the last {pack.tokens.shape[1]} blocks"
    parts = [f"# {_text(pack.name)}", "A prompt pack for `incontext`.", _table(facts, escape=False)]
    for title, fields in (("How it was made", pack.made), ("How good it is", pack.evaluation)):
        if fields:
            parts += [f"## {title}", _table(fields)]
    parts += [f"![{PurePosixPath(each).stem}](<{each}>)" for each in pictures]
    parts += ["## How to use it", f"```bash\nincontext segment photos/ --pack {file_name} -o out/\n```"]
    python = f'pack = ic.PromptPack.load("{file_name}")\nsegmentation = predictor.predict("query.jpg", pack)'
    parts.append(f"```python\n{python}\n```")
    return "\n\n".join(parts) + "\n"


def _looks(pack: PromptPack) -> str:
    """What queries' pixels are compared with, and how much that counts."""
    kept = pack.swatches
    source = (
        "those of its examples" if kept is None else f"{kept.features.shape[1]} each of {len(kept.features)} images"
    )
    return f"compared with {source}, strength {pack.strength:g}, favour {pack.favour:g}"


def _table(fields: Mapping[str, Scalar], escape: bool = True) -> str:
    rows = [f"| {_text(name)} | {_text(value) if escape else value} |" for name, value in fields.items()]
    return "\n".join(["| | |", "|---|---|", *rows])


def _text(value: Scalar) -> str:
    """A value as plain Markdown text."""
    if isinstance(value, float):
        value = f"{value:.4g}"
    return _MARKUP.sub(r"\\\1", str(value))


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
