"""Batches: episodes as bytes, as the loader hands them over, and as the model takes them, painted on its device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from incontext.canvas import pixels_to_patches
from incontext.image import normalise
from incontext.palette import random_colours
from incontext.training.episodes import Episode
from incontext.training.looks import Looks, draw_looks, mirror, recolour
from incontext.training.pack import IGNORE_ID
from incontext.training.prompts import UNSAID, random_hidden, random_prompt


@dataclass(frozen=True)
class Telling:
    """What queries are told of themselves.

    Attributes:
        prompted: share of queries with a prompt. Those of episodes without examples always have one.
        partial: share of queries that are partly painted already, block by block, as in Painter.
        corrected: share of queries on which the model paints twice, the second time with its first answer, or with
            some of its mistakes pointed out.
        unsaid: grey level, 0..255, of the pixels of a prompted patch of which nothing is said. Predictors show black.
    """

    prompted: float = 0.0
    partial: float = 0.0
    corrected: float = 0.0
    unsaid: int = 0


@dataclass(frozen=True)
class RawBatch:
    """Episodes as bytes: small to hand from a loader's process to the training one and on to the device.

    Attributes:
        images: (B, V, H, W, 3) uint8; the last view is the query.
        labels: (B, V, H, W) uint8: 0, 1..K, 255 ignored.
        said: (B, H, W) uint8, what the queries are told: ids, 0 "not this", 255 nothing.
        tables: (B, K + 1, 3) uint8, the colours of the ids; the first is black. Unused slots repeat black.
        looks: how the views are changed.
        corrected: (B,) bool, whether the model paints twice.
        seeds: (B,) int64, for what is drawn later.
        classes: (B, V, H, W) uint8, the ids of the sets; 255 where unknown.
        spans: (B, 2) int64, first and count of an episode's ids among those of all sets.
        kinds: a kind for each query.
    """

    images: Tensor
    labels: Tensor
    said: Tensor
    tables: Tensor
    looks: Looks
    corrected: Tensor
    seeds: Tensor
    classes: Tensor
    spans: Tensor
    kinds: tuple[str, ...]

    def to(self, device: torch.device) -> RawBatch:
        """Returns the batch with its tensors on a device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def echo(self, number: int) -> RawBatch:
        """Returns the same views as other episodes: colours with channels swapped, and another view as the query.

        A query that has been told something stays the query, and so does one whose place no other view can take,
        because it shows nothing that the rest shows. What the new examples do not show is background in the new query.

        Args:
            number: 1 and up; up to V - 1 each makes another view the query.
        """
        generators = (torch.Generator().manual_seed(seed + number) for seed in self.seeds.tolist())
        order = torch.stack([torch.randperm(3, generator=each) for each in generators])[:, None].to(self.tables.device)
        turned = self.labels.roll(number, 1)
        count, query = self.tables.shape[1], turned[:, -1]

        def ids_in(labels: Tensor) -> Tensor:
            return torch.stack([(labels == id).flatten(1).any(1) for id in range(1, count)], 1)  # (B, K)

        kept = torch.zeros(len(turned), 256, dtype=torch.bool, device=turned.device)
        kept[:, 1:count] = ids_in(turned[:, :-1])
        turns = (self.said == UNSAID).flatten(1).all(1) & (kept[:, 1:count] & ids_in(query)).any(1)
        kept[:, IGNORE_ID] = True
        turned[:, -1] = torch.where(kept.gather(1, query.flatten(1).long()).view_as(query), query, 0)

        def turn(views: Tensor, turned: Tensor | None = None) -> Tensor:
            turned = views.roll(number, 1) if turned is None else turned
            return torch.where(turns.view(-1, *[1] * (views.ndim - 1)), turned, views)

        names = ("flips", "saturation", "contrast", "gain")
        looks = replace(self.looks, **{name: turn(getattr(self.looks, name)) for name in names})
        return replace(
            self,
            images=turn(self.images),
            labels=turn(self.labels, turned),
            classes=turn(self.classes),
            tables=self.tables.gather(-1, order.expand_as(self.tables)),
            looks=looks,
            seeds=self.seeds + number,
        )

    def pin_memory(self) -> RawBatch:
        """Returns the batch in memory from which a GPU can copy on its own."""
        return self._map(Tensor.pin_memory)

    def _map(self, change) -> RawBatch:
        looks = Looks(*(change(getattr(self.looks, field.name)) for field in fields(Looks)))
        changed = {name: change(value) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **changed, looks=looks)


@dataclass(frozen=True)
class Batch:
    """Episodes as the model takes them, in normalised space.

    Attributes:
        query: (B, 3, H, W).
        target: (B, 3, H, W), the painting that is wanted.
        example_images, example_targets: (B, N, 3, H, W); N may be 0.
        shown: (B, 3, H, W), what is painted on the query already. Nothing of the truth is in its hidden patches.
        hidden: (B, h * w) bool, patches of the query of which nothing is said.
        said: (B, H, W) uint8, as in `RawBatch`.
        labels: (B, H, W) int64: 0, 1..K, 255 ignored.
        colours: (B, K + 1, 3) in normalised space; the first is black. Unused slots repeat black.
        corrected: (B,) bool.
        seeds: (B,) int64.
        classes: (B, V, h * w) int64, the set's own id in the middle of each patch of every view, the query last; 255
            where unknown.
        spans: (B, 2) int64, as in `RawBatch`.
        kinds: a kind for each query.
        unsaid: grey level of what is not said in a patch that is shown, 0..255.
    """

    query: Tensor
    target: Tensor
    example_images: Tensor
    example_targets: Tensor
    shown: Tensor
    hidden: Tensor
    said: Tensor
    labels: Tensor
    colours: Tensor
    corrected: Tensor
    seeds: Tensor
    classes: Tensor
    spans: Tensor
    kinds: tuple[str, ...]
    unsaid: int

    def __len__(self) -> int:
        return len(self.query)

    @property
    def unknown(self) -> Tensor:
        """(B, 1, H, W) float, 1 for the pixels of which nothing is said: what the loss is about."""
        return (self.said == UNSAID)[:, None].float()

    def to(self, device: torch.device | str) -> Batch:
        """Returns the batch with its tensors on a device."""
        return replace(self, **{name: value.to(device) for name, value in vars(self).items() if torch.is_tensor(value)})

    def take(self, rows: Tensor) -> Batch:
        """Returns some queries, by their indexes."""
        taken = {name: value[rows] for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **taken, kinds=tuple(self.kinds[row] for row in rows.tolist()))

    def split(self, size: int) -> Iterator[Batch]:
        """Yields the batch in parts of at most `size` queries."""
        for rows in torch.arange(len(self), device=self.query.device).split(size):
            yield self.take(rows)

    def paint(self, model: nn.Module, kind: str | Sequence[str] | None = None) -> Tensor:
        """Returns what a model paints, (B, 3, H, W). `kind` stands in for the batch's own kinds."""
        return model(
            self.query,
            self.example_images,
            self.example_targets,
            query_target=self.shown,
            hidden=self.hidden,
            kind=self.kinds if kind is None else kind,
        )

    def tell(self, said: Tensor, patch_size: int) -> Batch:
        """Returns the batch with other prompts on its queries: (B, H, W) uint8, as in `RawBatch`."""
        shown = paint(said, self.colours)
        unsaid = normalise(torch.full((1, 1, 3), self.unsaid, dtype=torch.uint8, device=said.device))
        shown = torch.where((said == UNSAID)[:, None], unsaid, shown)
        return replace(self, said=said, shown=shown, hidden=pixels_to_patches(said != UNSAID, patch_size))


def collate(
    episodes: Sequence[Episode],
    patch_size: int,
    rngs: np.random.Generator | Sequence[np.random.Generator],
    telling: Telling | None = None,
) -> RawBatch:
    """Draws colours, looks and prompts for episodes, and stacks them.

    Args:
        episodes: all with the same view size and number of examples.
        patch_size: the model's.
        rngs: a source of randomness for each episode, so that one does not depend on its neighbours; or one for all.
        telling: how often queries are told something. Without it only those without examples are.

    Returns:
        The batch.
    """
    telling = telling or Telling()
    rngs = [rngs] * len(episodes) if isinstance(rngs, np.random.Generator) else list(rngs)
    most = max(episode.count for episode in episodes)
    tables = np.zeros((len(episodes), most + 1, 3), np.uint8)
    said, looks, corrected, seeds, classes = [], [], [], [], []
    for table, episode, rng in zip(tables, episodes, rngs, strict=True):
        seeds.append(int(rng.integers(2**62)))
        table[1 : episode.count + 1] = random_colours(episode.count, torch.Generator().manual_seed(seeds[-1]))[0]
        looks.append(draw_looks(rng, len(episode.images), episode.strength, episode.handed))
        told, roll = None, rng.random()
        if len(episode.images) == 1 or roll < telling.prompted:
            told = _prompt(rng, episode, patch_size)
        elif roll < telling.prompted + telling.partial:
            told = _blocks(rng, episode.labels[-1], patch_size)
        said.append(np.full(episode.labels.shape[1:], UNSAID, np.uint8) if told is None else told)
        corrected.append(rng.random() < telling.corrected)
        known = episode.classes
        if known is None or (episode.handed and looks[-1].flips.any()):  # mirrored, a left door is a right one
            known = np.full_like(episode.labels, IGNORE_ID)
        classes.append(known)
    return RawBatch(
        images=torch.from_numpy(np.stack([episode.images for episode in episodes])),
        labels=torch.from_numpy(np.stack([episode.labels for episode in episodes])),
        said=torch.from_numpy(np.stack(said)),
        tables=torch.from_numpy(tables),
        looks=Looks.stack(looks),
        corrected=torch.tensor(corrected),
        seeds=torch.tensor(seeds),
        classes=torch.from_numpy(np.stack(classes)),
        spans=torch.tensor([episode.span for episode in episodes]),
        kinds=tuple(episode.kind for episode in episodes),
    )


def _prompt(rng: np.random.Generator, episode: Episode, patch: int) -> np.ndarray:
    ids = range(1, episode.count + 1)
    return random_prompt(rng, episode.labels[-1], ids, patch, all_ids=len(episode.images) == 1)


def _blocks(rng: np.random.Generator, labels: np.ndarray, patch: int) -> np.ndarray:
    h, w = (side // patch for side in labels.shape)
    hidden = np.kron(random_hidden(rng, (h, w)).reshape(h, w), np.ones((patch, patch), bool))
    return np.where(hidden, UNSAID, np.where(labels == IGNORE_ID, 0, labels)).astype(np.uint8)


def prepare(raw: RawBatch, patch_size: int, unsaid: int = 0) -> Batch:
    """Makes of bytes what the model takes: mirrors, recolours and paints, on the device that the bytes are on.

    Args:
        raw: the batch.
        patch_size: the model's.
        unsaid: as in `Telling`.
    """
    flips = raw.looks.flips
    images = mirror(rearrange(raw.images, "b v h w c -> b v c h w").float(), flips)
    images = normalise(rearrange(recolour(images, raw.looks), "b v c h w -> b v h w c"))
    labels, said = mirror(raw.labels, flips), mirror(raw.said, flips[:, -1])
    middles = mirror(raw.classes, flips)[..., patch_size // 2 :: patch_size, patch_size // 2 :: patch_size]
    colours = normalise(raw.tables[:, None])[:, :, 0].transpose(1, 2)
    targets = paint(labels, colours)
    batch = Batch(
        query=images[:, -1],
        target=targets[:, -1],
        example_images=images[:, :-1],
        example_targets=targets[:, :-1],
        shown=targets[:, -1],
        hidden=torch.empty(0),
        said=said,
        labels=labels[:, -1].long(),
        colours=colours,
        corrected=raw.corrected,
        seeds=raw.seeds,
        classes=middles.flatten(2).long(),
        spans=raw.spans,
        kinds=raw.kinds,
        unsaid=unsaid,
    )
    return batch.tell(said, patch_size)


def paint(labels: Tensor, colours: Tensor) -> Tensor:
    """Paints labels.

    Args:
        labels: (B, ..., H, W), 0 background, 1..K, 255 as background.
        colours: (B, K + 1, 3).

    Returns:
        (B, ..., 3, H, W).
    """
    slots = torch.where(labels == IGNORE_ID, 0, labels).long()
    rows = torch.arange(len(labels), device=labels.device).view(-1, *[1] * (labels.ndim - 1))
    return colours[rows, slots].movedim(-1, -3)


def decode(painting: Tensor, colours: Tensor) -> Tensor:
    """Returns the nearest of each query's colours: (B, 3, H, W) and (B, K + 1, 3) -> (B, H, W) int64, 0..K."""
    distance = torch.stack(
        [(painting.float() - colours[:, slot, :, None, None]).square().sum(1) for slot in range(colours.shape[1])], 1
    )
    unused = (colours[:, 1:] == colours[:, :1]).all(-1)  # repeats black, which is the background's alone
    distance[:, 1:].masked_fill_(unused[..., None, None], torch.inf)
    return distance.argmin(1)


def pixel_weights(labels: Tensor, balance: float) -> Tensor:
    """Weights of the loss per pixel.

    Args:
        labels: (B, H, W): 0 background, 255 ignored.
        balance: 0 weighs every valid pixel the same, as published. 1 gives foreground and background of each query
            half the weight each: a small model that starts from nothing otherwise paints everything black for long.

    Returns:
        (B, 1, H, W), mean 1 over the valid pixels of a query.
    """
    valid = (labels != IGNORE_ID).float()
    front = valid * (labels > 0)
    back = valid - front
    total, count = valid.sum((1, 2), keepdim=True), front.sum((1, 2), keepdim=True)
    even = front * total / (2 * count).clamp_min(1) + back * total / (2 * (total - count)).clamp_min(1)
    both = (count > 0) & (count < total)
    even = torch.where(both, even, valid)
    return ((1 - balance) * valid + balance * even)[:, None]
