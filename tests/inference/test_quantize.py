"""Quantization: no value moves by more than half a step, entries are independent, and bytes are as stated."""

import pytest
import torch

from llava_mini.inference.quantize import Quantized, dequantize, entry_bytes, groups, quantize

BITS = pytest.mark.parametrize("bits", [8, 4])


def back(values: torch.Tensor, bits: int) -> torch.Tensor:
    out = torch.empty_like(values)
    dequantize(quantize(values, bits), bits, out)
    return out


@BITS
@pytest.mark.parametrize("channels", [12, 64, 128])
def test_within_half_a_step(bits: int, channels: int) -> None:
    values = 3 * torch.randn(1, 2, 50, channels, generator=torch.Generator().manual_seed(0)) + 1
    grouped = values.unflatten(-1, (groups(channels, bits), -1))
    step = (grouped.amax(-1, keepdim=True) - grouped.amin(-1, keepdim=True)) / (2**bits - 1)
    moved = (back(values, bits) - values).abs().unflatten(-1, (groups(channels, bits), -1))
    # Scale and offset are rounded by 2**-11 of themselves, and the offset is no larger than eight ranges here.
    assert (moved <= 0.5 * step + 2**-11 * (grouped.abs().amax(-1, keepdim=True) + (2**bits - 1) * step)).all()
    assert moved.max() > 0.2 * step.min()


@BITS
def test_precise_types_agree_with_float32(bits: int) -> None:
    """What bfloat16 rounds is the result alone, to 8 bits."""
    values = torch.randn(1, 2, 9, 64, generator=torch.Generator().manual_seed(0))
    quantized = quantize(values, bits)
    exact, rounded = torch.empty_like(values), torch.empty(values.shape, dtype=torch.bfloat16)
    dequantize(quantized, bits, exact)
    dequantize(quantized, bits, rounded)
    assert torch.equal(exact.bfloat16(), rounded)


@BITS
def test_an_entry_alone_is_as_among_others(bits: int) -> None:
    values = torch.randn(1, 2, 9, 64, generator=torch.Generator().manual_seed(0))
    for together, alone in zip(quantize(values, bits), quantize(values[:, :, 3:4], bits), strict=True):
        assert torch.equal(together[:, :, 3:4], alone)


@BITS
def test_without_a_range(bits: int) -> None:
    values = torch.full((1, 1, 2, 64), 0.5)
    assert torch.equal(back(values, bits), values)
    assert torch.equal(back(0 * values, bits), 0 * values)


@BITS
@pytest.mark.parametrize("channels", [12, 64, 128])
def test_bytes(bits: int, channels: int) -> None:
    quantized: Quantized = quantize(torch.randn(7, channels), bits)
    assert sum(part.nbytes for part in quantized) == 7 * entry_bytes(channels, bits)


def test_bytes_of_a_head_of_128() -> None:
    assert entry_bytes(128, 8) == 128 + 2 + 2
    assert entry_bytes(128, 4) == 64 + 2 * (2 + 2)  # two groups of 64 channels
