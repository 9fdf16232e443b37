"""Replacements for bitsandbytes and CUDA kernels in a plan: nothing is computed, but the same memory is taken.

bitsandbytes' `Params4bit` is made by quantizing real numbers, and its optimizers' kernels read them, so neither is
available as fake tensors. Sizes are those of bitsandbytes 0.50 (`QuantState`, `Optimizer2State.init_state`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional

from llava_mini.finetune.packages import require
from llava_mini.finetune.quantization import empty_like

PAGED_FROM = 100_000  # number of values from which bitsandbytes pages a parameter's state
_BLOCK, _SCALES = 64, 256  # weights per scale, scales per second-level scale


def linear_4bit(linear: nn.Linear, compute_dtype: torch.dtype) -> nn.Module:
    """Return a layer on meta with the memory of bitsandbytes' NF4 with double quantization.

    Raises:
        UserError: without bitsandbytes, by whose class PEFT recognizes a 4-bit layer.
    """
    base = require("bitsandbytes", "finetune.quantize=nf4").nn.Linear4bit

    class PackedLinear(base):  # type: ignore[misc, valid-type]
        """Layer that PEFT and the model take for a bitsandbytes layer.

        DoRA reads the weights themselves. PEFT unpacks them with bitsandbytes, from a weight's numbers. A layer with
        `W_q` (HQQ's) is asked to unpack them itself, which takes the same memory.
        """

        W_q = property(lambda self: self.weight)

        def forward(self, x: Tensor) -> Tensor:
            """Cast, multiply by weights that are unpacked for it, cast back, as in bitsandbytes' Linear4bit."""
            shape = (self.out_features, self.in_features)
            given = x.to(self.compute_dtype)
            product: Tensor = _PackedProduct.apply(given, self.weight, self.packed_scales, self.bias, shape)
            return product.to(x.dtype)

        def dequantize(self) -> Tensor:
            """Return all weights, [out_features, in_features], in their original type."""
            return _unpacked(self.packed_scales, (self.out_features, self.in_features), dtype)

    dtype = linear.weight.dtype
    layer = empty_like(linear, PackedLinear, compute_dtype)
    count = linear.in_features * linear.out_features
    scales = -(-count // _BLOCK)
    weight: Any = nn.Parameter(_meta((count + 1) // 2, 1, dtype=torch.uint8), requires_grad=False)
    weight.compress_statistics, weight.quant_type = True, "nf4"
    layer.weight = weight
    buffers = {
        "scales": _meta(scales, dtype=torch.uint8),
        "scales_of_scales": _meta(-(-scales // _SCALES), dtype=torch.float32),
        "scale_code": _meta(256, dtype=torch.float32),
        "code": _meta(16, dtype=torch.float32),
        "offset": _meta(1, dtype=torch.float32),
    }
    for name, buffer in buffers.items():
        layer.register_buffer(f"packed_{name}", buffer)
    if linear.bias is not None:
        layer.bias = nn.Parameter(linear.bias.detach().to(compute_dtype), requires_grad=False)
    return layer


def is_packed(module: nn.Module) -> bool:
    """Whether a module is a layer made by `linear_4bit`."""
    return type(module).__name__ == "PackedLinear"


class _PackedProduct(torch.autograd.Function):
    """Product as in bitsandbytes' MatMul4Bit: stores the packed weight and unpacks it again in the backward pass.

    With as many rows as in training, its CUDA kernel unpacks the whole weight in the forward pass too.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, scales: Tensor, bias: Tensor | None, shape: tuple[int, int]
    ) -> Tensor:
        ctx.packed, ctx.shape = (weight, scales), shape
        return functional.linear(x, _unpacked(scales, shape, x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_x = grads[0] @ _unpacked(ctx.packed[1], ctx.shape, grads[0].dtype) if ctx.needs_input_grad[0] else None
        return grad_x, None, None, None, None


def _unpacked(scales: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Return the unpacked weight; its scales are unpacked first, and exist until the weight is unpacked."""
    unpacked_scales = torch.empty(scales.shape, dtype=torch.float32, device=scales.device)
    weight = torch.empty(shape, dtype=dtype, device=scales.device)
    del unpacked_scales
    return weight


class AdamW8bit(torch.optim.Optimizer):
    """State of bitsandbytes' AdamW8bit: two moments of 8 bits, one scale per 256 values; small tensors in 32 bits.

    If `paged`, moments of large tensors are in host memory, where a GPU reads them page by page.
    """

    def __init__(self, groups: Iterable[Any], *, paged: bool = False):
        super().__init__(groups, {"lr": 1e-3})
        self.paged = paged
        self.host_bytes = 0

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and not self.state[parameter]:
                    self._make_state(parameter)

    def _make_state(self, parameter: Tensor) -> None:
        count = parameter.numel()
        packed = count >= 4096
        dtype = torch.uint8 if packed else torch.float32
        if self.paged and count >= PAGED_FROM:
            self.host_bytes += 2 * count * dtype.itemsize
        else:
            for name in ("state1", "state2"):
                self.state[parameter][name] = torch.empty_like(parameter, dtype=dtype)
        if packed:
            for name in ("absmax1", "absmax2"):
                self.state[parameter][name] = torch.empty(-(-count // 256), dtype=torch.float32)


@contextmanager
def as_on_gpu() -> Iterator[None]:
    """Make operators store what they store on CUDA, if that differs from the CPU.

    Dropout stores a mask of bytes, and not of the input's type; layer norm computes in float32 under autocast. They are
    replaced where torch's modules look them up, because a TorchFunctionMode is not active in the backward pass, which
    calls them again for activation checkpointing.
    """
    with patch.object(functional, "dropout", _dropout), patch.object(functional, "layer_norm", _layer_norm):
        yield


def _dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    return torch.native_dropout(x, p, True)[0] if training and p > 0 and not inplace else x


def _layer_norm(x: Any, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Tensor:
    if torch.is_autocast_enabled("cpu"):
        x, weight, bias = (None if each is None else each.float() for each in (x, weight, bias))
    return torch.layer_norm(x, shape, weight, bias, eps)


def _meta(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")
