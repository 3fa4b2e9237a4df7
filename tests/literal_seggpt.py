"""The published rule, read literally: whole canvases, one for each example, nothing shared or left out.

This is the oracle for N > 1, where transformers deviates from the published code. It reads weights by their
published names and shares no code with the model. One query at a time; slow on purpose.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from incontext.model.seggpt import SegGPT


def literal_painting(
    model: SegGPT,
    query: Tensor,
    images: Tensor,
    targets: Tensor,
    kind: str = "instance",
    query_target: Tensor | None = None,
    hidden: Tensor | None = None,
) -> Tensor:
    """Paints one query (3, H, W) by N >= 0 examples (N, 3, H, W); `hidden` is (h * w). Returns (3, H, W)."""
    weights, config = model.state_dict(), model.config
    patch = config.patch_size
    h, w = query.shape[1] // patch, query.shape[2] // patch
    alone = len(images) == 0
    if query_target is None:
        query_target = torch.zeros_like(query)
    if hidden is None:
        hidden = torch.ones(h * w, dtype=torch.bool)

    if alone:
        image_canvases, target_canvases, first_row = query[None], query_target[None], h
        masked = hidden
    else:
        image_canvases = torch.stack([torch.cat((image, query), dim=1) for image in images])
        target_canvases = torch.stack([torch.cat((target, query_target), dim=1) for target in targets])
        first_row = 0
        masked = torch.cat((torch.zeros_like(hidden), hidden))

    x = _embed(weights, patch, image_canvases)
    y = _embed(weights, patch, target_canvases)
    y = torch.where(masked[:, None], weights["mask_token"][0, 0], y)
    place = _positions(weights, config.pretrain_grid, (2 * h, w))[first_row * w :]
    kind_token = weights["type_token_ins" if kind == "instance" else "type_token_cls"][0, 0]
    x = x + weights["segment_token_x"][0, 0] + place + kind_token
    y = y + weights["segment_token_y"][0, 0] + place + kind_token

    taps = []
    for index in range(config.depth):
        x = _block(model, index, x, (h, w), first_row)
        if index <= config.merge_layer:
            y = _block(model, index, y, (h, w), first_row)
        if index == config.merge_layer:
            x = (x + y) / 2
        if index in config.tap_layers:
            taps.append(_norm(weights, "norm", x[0], config.layer_norm_eps))  # the first example's canvas
    painting = _head(weights, config, torch.cat(taps, dim=-1), w)
    return painting[:, -h * patch :]


def _embed(weights: dict[str, Tensor], patch: int, canvases: Tensor) -> Tensor:
    maps = F.conv2d(canvases, weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"], stride=patch)
    return maps.flatten(2).transpose(1, 2)


def _positions(weights: dict[str, Tensor], stored: tuple[int, int], canvas: tuple[int, int]) -> Tensor:
    table = weights["pos_embed"][:, 1:].reshape(1, *stored, -1).permute(0, 3, 1, 2)
    if stored != canvas:
        table = F.interpolate(table, size=canvas, mode="bicubic", align_corners=False)
    return table.flatten(2)[0].T


def _block(model: SegGPT, index: int, x: Tensor, grid: tuple[int, int], first_row: int) -> Tensor:
    weights, config, name = model.state_dict(), model.config, f"blocks.{index}"
    normed = _norm(weights, f"{name}.norm1", x, config.layer_norm_eps)
    attended = torch.stack([_attend(model, f"{name}.attn", canvas, grid, first_row) for canvas in normed])
    half = grid[0] * grid[1]
    attended[:, -half:] = attended[:, -half:].mean(0)  # the feature ensemble
    x = x + attended
    normed = _norm(weights, f"{name}.norm2", x, config.layer_norm_eps)
    return x + _linear(weights, f"{name}.mlp.fc2", F.gelu(_linear(weights, f"{name}.mlp.fc1", normed)))


def _attend(model: SegGPT, name: str, tokens: Tensor, grid: tuple[int, int], first_row: int) -> Tensor:
    """Attention within one canvas, (l, D) to (l, D)."""
    weights, config = model.state_dict(), model.config
    (h, w), width = grid, config.width
    row = torch.arange(len(tokens)) // w + first_row
    column = torch.arange(len(tokens)) % w
    outputs = []
    for head in range(config.heads):
        part = slice(head * width // config.heads, (head + 1) * width // config.heads)
        query, key, value = (each[:, part] for each in _linear(weights, f"{name}.qkv", tokens).split(width, dim=1))
        scores = query @ key.T / query.shape[1] ** 0.5
        if config.relative_position:
            table_h, table_w = (
                _resized(weights[f"{name}.rel_pos_{axis}"], length)
                for axis, length in (("h", 4 * h - 1), ("w", 2 * w - 1))
            )
            towards_h = table_h[row[:, None] - row + 2 * h - 1]  # (l, l, d)
            towards_w = table_w[column[:, None] - column + w - 1]
            scores = scores + (query[:, None] * (towards_h + towards_w)).sum(-1)
        if not config.examples_attend_query and first_row == 0:
            scores[: h * w, h * w :] = float("-inf")
        outputs.append(scores.softmax(-1) @ value)
    return _linear(weights, f"{name}.proj", torch.cat(outputs, dim=1))


def _resized(table: Tensor, length: int) -> Tensor:
    return table if len(table) == length else F.interpolate(table.T[None], size=length, mode="linear")[0].T


def _head(weights: dict[str, Tensor], config, features: Tensor, w: int) -> Tensor:
    patch, channels = config.patch_size, config.decoder_width
    tokens = _linear(weights, "decoder_embed", features)
    h = len(tokens) // w
    image = tokens.new_empty(channels, h * patch, w * patch)
    for i in range(h):
        for j in range(w):
            square = tokens[i * w + j].reshape(patch, patch, channels)
            image[:, i * patch : (i + 1) * patch, j * patch : (j + 1) * patch] = square.permute(2, 0, 1)
    image = F.conv2d(image[None], weights["decoder_pred.0.weight"], weights["decoder_pred.0.bias"], padding=1)
    image = _norm(weights, "decoder_pred.1", image.permute(0, 2, 3, 1), 1e-6).permute(0, 3, 1, 2)
    return F.conv2d(F.gelu(image), weights["decoder_pred.3.weight"], weights["decoder_pred.3.bias"])[0]


def _linear(weights: dict[str, Tensor], name: str, tokens: Tensor) -> Tensor:
    return tokens @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def _norm(weights: dict[str, Tensor], name: str, tokens: Tensor, eps: float) -> Tensor:
    mean = tokens.mean(-1, keepdim=True)
    variance = ((tokens - mean) ** 2).mean(-1, keepdim=True)
    return (tokens - mean) / (variance + eps).sqrt() * weights[f"{name}.weight"] + weights[f"{name}.bias"]
