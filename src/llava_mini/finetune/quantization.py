"""The language model's frozen linear layers in 4 bits: NF4 with double quantization, by bitsandbytes (QLoRA).

A block of 64 weights is stored as 64 codes of 4 bits and one scale; 256 scales are stored in 8 bits with their own
scale (4.127 bits a weight). Layers are quantized on the device where they are, the CPU if the model was built there, so
that the same base gives the same bits wherever the run is trained and merged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from llava_mini.finetune.packages import require
from llava_mini.models.lazy_linear import LazyLinear

Linear4bit = Callable[[nn.Linear, torch.dtype], nn.Module]
_KEY = "finetune.quantize=nf4"


def nf4_linear(linear: nn.Linear, compute_dtype: torch.dtype) -> nn.Module:
    """Return a bitsandbytes layer with the weight of a linear layer on a real device, which is not changed, in NF4.

    `compute_dtype` is that of products and of the bias.

    Raises:
        UserError: bitsandbytes is missing.
    """
    nn4 = require("bitsandbytes", _KEY).nn
    layer = empty_like(linear, nn4.Linear4bit, compute_dtype)
    weight = nn4.Params4bit(
        linear.weight.detach(), requires_grad=False, compress_statistics=True, quant_type="nf4", module=layer
    )
    layer.weight = weight.to(linear.weight.device)
    if linear.bias is not None:  # the layer would round it to this type when it is first called
        layer.bias = nn.Parameter(linear.bias.detach().to(compute_dtype), requires_grad=False)
    # On CPUs with bf16 instructions the layer would store its weight again, rounded, when it is first evaluated.
    layer.support_avx512bf16_for_cpu = False
    return layer


def empty_like(linear: nn.Linear, kind: type[nn.Module], compute_dtype: torch.dtype) -> Any:
    """Return a layer of a `kind` of Linear4bit and of a linear layer's shape on meta, without weight and bias."""
    shape = (linear.in_features, linear.out_features)
    return kind(*shape, bias=False, compute_dtype=compute_dtype, quant_type="nf4", device="meta")


def rounded_linear(linear: nn.Linear, compute_dtype: torch.dtype) -> nn.Module:
    """Return a plain layer with exactly the weights that `nf4_linear` computes with, for merging.

    Raises:
        UserError: bitsandbytes is missing.
    """
    bitsandbytes = require("bitsandbytes", _KEY)
    layer: Any = nf4_linear(linear, compute_dtype)
    plain = nn.Linear(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
    weight = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    plain.weight = nn.Parameter(weight, requires_grad=False)
    if linear.bias is not None:
        plain.bias = nn.Parameter(layer.bias.to(linear.bias.dtype), requires_grad=False)
    return plain


def quantize_linears(decoder: nn.Module, compute_dtype: torch.dtype, linear_4bit: Linear4bit) -> None:
    """Replace every linear layer in a decoder, one at a time, so that only one is in memory twice.

    A layer whose weight is still in its file has it in memory, in float32, only while the layer is replaced.
    """
    for parent in list(decoder.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                plain = child.loaded() if isinstance(child, LazyLinear) else child
                setattr(parent, name, linear_4bit(plain, compute_dtype))
