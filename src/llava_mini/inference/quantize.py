"""Quantization to 8 or 4 bits: each group of channels has the scale and offset that its own range needs.

An entry (a token, a patch) is quantized by itself, so entries can be added and dropped without changing others.

Shapes: L entries, E channels of an entry, G groups of channels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

BITS = (8, 4)
_GROUP = {8: 0, 4: 64}  # channels that share a scale; 0: all of an entry. With 16 steps a wide range loses too much.


class Quantized(NamedTuple):
    """Quantized tensors with the same number of entries L along the second-to-last dimension.

    Attributes:
        codes: Codes, uint8 [..., L, E * bits / 8]; with 4 bits, the first half of the channels is in the low halves.
        scale: Scales, float16 [..., L, G].
        offset: Offsets, float16 [..., L, G]; the value of code 0.
    """

    codes: Tensor
    scale: Tensor
    offset: Tensor


def groups(channels: int, bits: int) -> int:
    """Return the number of scales of an entry, G."""
    group = _GROUP[bits]
    return channels // group if group and channels % group == 0 else 1


def entry_bytes(channels: int, bits: int) -> int:
    """Return the bytes of an entry: codes, and a scale and an offset in half precision for every group."""
    return channels * bits // 8 + 4 * groups(channels, bits)


def quantize(values: Tensor, bits: int) -> Quantized:
    """Quantize [..., L, E]: a value changes by at most half a step and by what scale and offset are rounded by."""
    number = groups(values.shape[-1], bits)
    grouped = values.unflatten(-1, (number, -1)).float()
    low, high = grouped.aminmax(dim=-1)
    offset, scale = low.half(), ((high - low) / (2**bits - 1)).half()
    # Codes use the rounded scale and offset. A group without a range has scale 0: any divisor gives code 0.
    step = torch.where(scale > 0, scale.float(), 1.0)
    codes = ((grouped - offset.float()[..., None]) / step[..., None]).round_().clamp_(0, 2**bits - 1)
    codes = codes.flatten(-2).to(torch.uint8)
    if bits == 4:
        first, second = codes.chunk(2, dim=-1)
        codes = first | second << 4
    return Quantized(codes, scale, offset)


def dequantize(quantized: Quantized, bits: int, out: Tensor) -> None:
    """Write the values into `out` [..., L, E]; needs as much memory again while it works, twice that for bfloat16."""
    codes, scale, offset = quantized
    if bits == 4:
        codes = torch.cat((codes & 15, codes >> 4), dim=-1)
    precise = torch.promote_types(out.dtype, torch.float16)  # bfloat16 alone would round more than 8 bits do
    values = codes.to(precise).unflatten(-1, (scale.shape[-1], -1))
    out.copy_(values.mul_(scale[..., None]).add_(offset[..., None]).flatten(-2))
