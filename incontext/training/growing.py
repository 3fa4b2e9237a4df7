"""A larger model that computes the same as a smaller one, to go on training from (Net2Net, arXiv 1511.05641).

Nothing that is new has a say at first: new channels of the residual stream hold zero, new heads, hidden units and
blocks add zero to it. They learn at once all the same, since what they read is drawn at random.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from incontext.model.config import SegGPTConfig
from incontext.model.layers import Block
from incontext.model.seggpt import SegGPT
from incontext.training.matching import let_compare


def grow(
    model: SegGPT, *, width: int | None = None, depth: int | None = None, generator: torch.Generator | None = None
) -> SegGPT:
    """Returns a wider or deeper model, on the CPU, that paints what `model` paints, but for rounding.

    It has more heads of the same size, and new blocks spread over those in which the two streams are one. What its
    blocks add to the residual stream has mean zero over the channels, which layer norms take away anyway: so that new
    channels of zeros change no more than the scale of what they see, for which their gains make up.

    Args:
        model: not changed.
        width: channels of a token, a multiple of a head's; the model's own by default.
        depth: number of blocks; the model's own by default.
        generator: source of randomness.

    Raises:
        ValueError: if it would have to shrink, or heads do not fit the width.
    """
    config = grown_config(model.config, width or model.config.width, depth or model.config.depth)
    grown = SegGPT(config)
    grown.reset_parameters(generator)
    sources = dict(zip(_places(model.config, config.depth), model.blocks, strict=True))
    with torch.no_grad():
        for index, block in enumerate(grown.blocks):
            if index in sources:
                _widen_block(block, sources[index], generator)
            else:
                _silence(block, generator)
        _widen_ends(grown, model, generator)
    return grown.eval()


def grown_config(config: SegGPTConfig, width: int, depth: int) -> SegGPTConfig:
    """Returns the architecture that `grow` makes of one.

    Raises:
        ValueError: as `grow`.
    """
    head = config.width // config.heads
    if width < config.width or depth < config.depth or width % head:
        raise ValueError(
            f"expected a width of {config.width} or more in steps of a head's {head}, and a depth of {config.depth} "
            f"or more, got {width} and {depth}"
        )
    places = _places(config, depth)
    return dataclasses.replace(
        config,
        width=width,
        heads=width // head,
        depth=depth,
        tap_layers=tuple(depth - 1 if layer == config.depth - 1 else places[layer] for layer in config.tap_layers),
    )


def _places(config: SegGPTConfig, depth: int) -> list[int]:
    """Where each of a model's blocks stands in one of another depth: new ones lie between those after the merge."""
    together, more = config.depth - config.merge_layer - 1, depth - config.depth
    after = [max(0, layer - config.merge_layer - 1) for layer in range(config.depth)]
    places = [layer + more * count // max(together - 1, 1) for layer, count in enumerate(after)]
    return places if together == 0 else [*places[:-1], depth - 1]


def _widen_block(block: Block, source: Block, generator: torch.Generator | None) -> None:
    heads, head = source.attn.heads, source.attn.proj.in_features // source.attn.heads
    for part in ("norm1", "norm2"):
        _widen_norm(getattr(block, part), getattr(source, part))
    grown, old = (each.attn.qkv for each in (block, source))
    wide = grown.weight.unflatten(0, (3, block.attn.heads, head))
    nn.init.normal_(wide, std=old.weight.std().item(), generator=generator)
    wide[1, heads:] = wide[0, heads:]  # a new head compares; see `let_compare`
    wide[:, :heads, :, : old.in_features] = old.weight.unflatten(0, (3, heads, head))
    grown.bias.unflatten(0, (3, block.attn.heads, head))[:, :heads] = old.bias.unflatten(0, (3, heads, head))
    for name, table in source.attn.named_parameters():
        if name.startswith("rel_pos"):
            getattr(block.attn, name).copy_(table)
    nn.init.normal_(block.mlp.fc1.weight, std=source.mlp.fc1.weight.std().item(), generator=generator)
    _fill(block.mlp.fc1.weight, source.mlp.fc1.weight)
    _fill(block.mlp.fc1.bias, source.mlp.fc1.bias)
    for grown, old in ((block.attn.proj, source.attn.proj), (block.mlp.fc2, source.mlp.fc2)):
        nn.init.zeros_(grown.weight)
        _fill(grown.weight, _centred(old.weight, 0))
        _fill(grown.bias, _centred(old.bias, 0))


def _silence(block: Block, generator: torch.Generator | None) -> None:
    """Lets a fresh block compare tokens and add nothing."""
    let_compare(block.attn, generator)
    nn.init.xavier_uniform_(block.mlp.fc1.weight, generator=generator)
    for layer in (block.attn.proj, block.mlp.fc2):
        nn.init.zeros_(layer.weight)


def _widen_ends(grown: SegGPT, model: SegGPT, generator: torch.Generator | None) -> None:
    """What comes before the blocks and after them."""
    for target, source in _tokens(grown, model):
        target.zero_()
        _fill(target, _centred(source, -1))
    for name in ("weight", "bias"):
        target = getattr(grown.patch_embed.proj, name)
        target.zero_()
        _fill(target, _centred(getattr(model.patch_embed.proj, name), 0))
    _widen_norm(grown.norm, model.norm)
    taps = len(model.config.tap_layers)
    wide, old = (each.decoder_embed.weight.unflatten(1, (taps, -1)) for each in (grown, model))
    nn.init.normal_(wide, std=old.std().item(), generator=generator)
    wide[..., : model.config.width] = old
    grown.decoder_embed.bias.copy_(model.decoder_embed.bias)
    grown.decoder_pred.load_state_dict(model.decoder_pred.state_dict())


def _tokens(grown: SegGPT, model: SegGPT) -> Iterator[tuple[Tensor, Tensor]]:
    for name in ("mask_token", "segment_token_x", "segment_token_y", "type_token_cls", "type_token_ins", "pos_embed"):
        yield getattr(grown, name), getattr(model, name)


def _widen_norm(norm: nn.LayerNorm, source: nn.LayerNorm) -> None:
    """Zeros in new channels make the variance smaller, by the share of the old ones."""
    share = len(source.weight) / len(norm.weight)
    _fill(norm.weight, source.weight * share**0.5)
    _fill(norm.bias, source.bias)


def _centred(weight: Tensor, axis: int) -> Tensor:
    return weight - weight.mean(axis, keepdim=True)


def _fill(target: Tensor, source: Tensor) -> None:
    """Copies into the first places along every axis."""
    target[tuple(slice(length) for length in source.shape)] = source
