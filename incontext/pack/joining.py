"""How several packs become one: ids by name, passes by shared classes.

Examples keep their ids. Packs follow in the order given: a class whose name is there already gets the id of that
name; any other keeps its id, or gets the smallest free one where that is taken.

Sources (all examples together are one, each pack is one) that share a class, directly or through others, make a
group. Passes never mix the ids of two groups: what one source paints, another that does not know it shows as
background, and the two would cancel.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import MappingProxyType

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from incontext.pack.prompt_pack import PackError, PromptPack, Scalar
from incontext.pack.swatches import Swatches
from incontext.pack.tokens import stack_tokens
from incontext.palette import Palette, split_ids


def join_by_name(
    packs: Sequence[PromptPack], names: Mapping[int, str] = MappingProxyType({}), taken: Iterable[int] = ()
) -> tuple[PromptPack, ...]:
    """Renumbers packs so that one id means one thing.

    Args:
        packs: in the order in which they choose.
        names: id -> name, what is there before them.
        taken: further ids that are there, without names.
    """
    known = {name: id for id, name in names.items()}
    used = {*names, *taken}
    joined = []
    for pack in packs:
        ids = {id: known[pack.names[id]] for id in pack.ids if pack.names[id] in known}
        for id in pack.ids:
            if id not in ids:
                own = {*used, *ids.values()}
                ids[id] = id if id not in own else next(k for k in itertools.count(1) if k not in own)
        used.update(ids.values())
        known.update((name, ids[id]) for id, name in pack.names.items())
        joined.append(pack.renumber(ids))
    return tuple(joined)


def share_passes(
    ids: Collection[int],
    packs: Sequence[PromptPack],
    ids_per_pass: int,
    palette: Callable[[tuple[int, ...]], Palette] | None = None,
) -> tuple[Palette, ...]:
    """Shares ids out among passes.

    Args:
        ids: of all examples together.
        packs: with ids that mean the same in all sources.
        ids_per_pass: how many ids get a colour in one pass.
        palette: gives the ids of one pass their colours. By default a pack that has its ids to itself keeps its
            own passes and colours, and others get `Palette.for_ids`.
    """
    palettes: list[Palette] = []
    for group in linked_ids([ids, *(pack.ids for pack in packs)]):
        owners = [pack for pack in packs if group.intersection(pack.ids)]
        alone = len(owners) == 1 and not group.intersection(ids)
        if alone and palette is None and all(len(each.ids) <= ids_per_pass for each in owners[0].palettes):
            palettes += owners[0].palettes
        else:
            palettes += [(palette or Palette.for_ids)(part) for part in split_ids(sorted(group), ids_per_pass)]
    return tuple(palettes)


def linked_ids(sources: Iterable[Collection[int]]) -> list[set[int]]:
    """Puts the ids of sources that share one, directly or through others, together."""
    groups: list[set[int]] = []
    for each in map(set, sources):
        linked = [group for group in groups if group & each]
        groups = [group for group in groups if not group & each]
        if each:
            groups.append(each.union(*linked))
    return groups


def agreed(packs: Sequence[PromptPack], field: str) -> Scalar | None:
    """The value of a field that packs have in common.

    Raises:
        PackError: they differ.
    """
    values = {getattr(pack, field) for pack in packs}
    if len(values) != 1:
        each = ", ".join(f"{pack.name}: {getattr(pack, field)}" for pack in packs)
        raise PackError(f"{field}: expected packs that agree, got {each}")
    return values.pop()


def mean_of(packs: Sequence[PromptPack], field: str) -> float:
    """The geometric mean of a field of several packs: of "temperature", "strength" or "favour"."""
    return math.exp(sum(math.log(getattr(pack, field)) for pack in packs) / len(packs))


def merge_packs(packs: Sequence[PromptPack], name: str) -> PromptPack:
    """Makes one pack of several; it does what they do together in one call.

    Encoded prompts are left out; see `incontext.pack.compiling.encode_pack`.

    Args:
        packs: for the same model, of the same kind, ensemble and tile.
        name: of the result.

    Raises:
        PackError: there are fewer than two, or they do not fit each other.
    """
    if len(packs) < 2:
        raise PackError(f"expected at least two packs to merge, got {len(packs)}")
    shared = {field: agreed(packs, field) for field in ("fingerprint", "kind", "ensemble", "tile", "size")}
    del shared["size"]
    most = min(pack.ids_per_pass for pack in packs)
    joined = join_by_name(packs)
    palettes = share_passes((), joined, most)
    ids = tuple(id for palette in palettes for id in palette.ids)
    alike = len({pack.images.dtype for pack in packs}) == 1
    images = [pack.images if alike else pack.pixels().half() for pack in packs]
    hard = all(pack.masks.dtype == torch.uint8 for pack in packs)
    masks = [_slots(pack, ids) if hard else _shares(pack, ids) for pack in joined]
    return PromptPack(
        name=name,
        images=torch.cat(images),
        masks=torch.cat(masks),
        palettes=palettes,
        names={id: text for pack in reversed(joined) for id, text in pack.names.items()},
        model=packs[0].model,
        ids_per_pass=most,
        temperature=mean_of(packs, "temperature"),
        strength=mean_of(packs, "strength"),
        favour=mean_of(packs, "favour"),
        made={"method": "merged", "packs": ", ".join(pack.name for pack in packs)},
        evaluation={f"{pack.name}: {key}": value for pack in packs for key, value in pack.evaluation.items()},
        tokens=stack_tokens([(len(pack.images), pack.tokens) for pack in packs]),
        pictures=torch.cat([pack.looks() for pack in packs]) if any(p.pictures is not None for p in packs) else None,
        swatches=_join_swatches(joined, ids),
        **shared,
    )


def _join_swatches(packs: Sequence[PromptPack], ids: tuple[int, ...]) -> Swatches | None:
    """The swatches of packs with ids of their own, in the order of all ids; None unless all have alike ones."""
    found = [pack.swatches for pack in packs]
    if any(each is None for each in found):
        return None
    if len({each.detail for each in found}) > 1:
        return None
    count = min(each.features.shape[1] for each in found)
    spread = [each.for_ids(pack.ids, ids) for pack, each in zip(packs, found, strict=True)]
    joined = {name: torch.cat([getattr(each, name)[:, :count] for each in spread]) for name in ("features", "values")}
    joined |= {name: torch.cat([getattr(each, name) for each in spread]) for name in ("held", "shown")}
    widths = sorted(each.width for each in found)
    return Swatches(**joined, scale=torch.tensor([found[0].detail, widths[len(widths) // 2]]))


def _slots(pack: PromptPack, ids: tuple[int, ...]) -> Tensor:
    """Masks uint8 (N, h, w) that count in the order of other ids."""
    table = torch.tensor([0, *(1 + ids.index(id) for id in pack.ids)], dtype=torch.uint8)
    return table[pack.masks.long()]


def _shares(pack: PromptPack, ids: tuple[int, ...]) -> Tensor:
    """Masks float16 (N, K + 1, h, w) in the order of K other ids."""
    shares = pack.masks
    if shares.dtype == torch.uint8:
        shares = rearrange(F.one_hot(shares.long(), 1 + len(pack.ids)), "n h w k -> n k h w").half()
    spread = shares.new_zeros(len(shares), 1 + len(ids), *shares.shape[2:])
    spread[:, [0, *(1 + ids.index(id) for id in pack.ids)]] = shares
    return spread
