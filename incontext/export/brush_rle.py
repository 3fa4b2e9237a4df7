"""Label Studio's run lengths for brush masks.

A stream of bits: 32 for the number of values, 5 for a value's width - 1, four times 4 for the widths - 1 in which
lengths are coded. Then runs: one bit (1: one value repeated, 0: that many single values), 2 bits that choose a
width, the length - 1 in that width, and the value or values. The values are the mask's RGBA bytes, row by row.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_WIDTHS = (3, 4, 8, 16)
_CHANNELS = 4


def encode_brush(mask: np.ndarray) -> list[int]:
    """bool (H, W) -> bytes."""
    flat = mask.ravel()
    bounds = np.flatnonzero(np.diff(flat, prepend=~flat[:1]))
    lengths = _CHANNELS * np.diff(bounds, append=flat.size)
    bits = [f"{_CHANNELS * flat.size:032b}", f"{7:05b}", *(f"{width - 1:04b}" for width in _WIDTHS)]
    for length, inside in zip(lengths.tolist(), flat[bounds].tolist(), strict=True):
        value = "11111111" if inside else "00000000"
        while length:
            part = min(length, 1 << _WIDTHS[-1])
            choice = next(k for k, width in enumerate(_WIDTHS) if part <= 1 << width)
            bits.append(f"1{choice:02b}{part - 1:0{_WIDTHS[choice]}b}{value}")
            length -= part
    stream = "".join(bits)
    stream += "0" * (-len(stream) % 8)
    return list(int(stream, 2).to_bytes(len(stream) // 8, "big"))


def decode_brush(rle: Sequence[int], size: tuple[int, int]) -> np.ndarray:
    """Bytes -> bool (H, W): where the mask is not transparent.

    Raises:
        ValueError: the stream ends early, or holds another number of values.
    """
    stream = "".join(f"{byte:08b}" for byte in bytes(rle))
    place = 0

    def read(width: int) -> int:
        nonlocal place
        place += width
        if place > len(stream):
            raise ValueError("a brush mask that ends early")
        return int(stream[place - width : place], 2)

    count, width = read(32), read(5) + 1
    widths = [read(4) + 1 for _ in range(4)]
    if count != _CHANNELS * size[0] * size[1]:
        raise ValueError(f"a brush mask of {count} values, not {_CHANNELS} x {size[0]} x {size[1]}")
    values = np.zeros(count, np.uint32)
    done = 0
    while done < count:
        repeated = read(1)
        length = read(widths[read(2)]) + 1
        if repeated:
            values[done : done + length] = read(width)
        else:
            values[done : done + length] = [read(width) for _ in range(length)][: count - done]
        done += length
    return values.reshape(*size, _CHANNELS)[..., 3] > 0
