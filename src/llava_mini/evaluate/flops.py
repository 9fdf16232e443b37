"""Floating-point operations of a prefill: vision tower, compression, pre-fusion, language model up to the first token.

They are counted by torch's own counter while the model runs. The counter knows only matrix products, and not the fused
CPU attention kernel, so attention runs as plain matrix products here. A multiply-add is two FLOPs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from llava_mini.batch import VLMBatch
from llava_mini.evaluate.accuracy import evaluation_mode
from llava_mini.models import LlavaMiniForConditionalGeneration

Result = TypeVar("Result")


@dataclass(frozen=True)
class Counted(Generic[Result]):
    """A call and its FLOPs."""

    result: Result
    total: int  # FLOPs of all products
    attention: int  # of these, queries with keys, and their shares with values
    modules: Mapping[str, int]  # FLOPs by path, which begins with the class of the outermost module called


@torch.no_grad()
def count_flops(model: nn.Module, run: Callable[[], Result]) -> Counted[Result]:
    """Call a function that runs a model, or parts of it, and count its FLOPs, on any device, also on meta."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:  # the counter hooks the gradients that are required, and there are none here
        parameter.requires_grad_(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, _Attention() as attention:
            result = run()
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
    modules = {name: sum(products.values()) for name, products in counter.get_flop_counts().items()}
    return Counted(result, counter.get_total_flops(), attention.flops, modules)


class _Attention(TorchFunctionMode):
    """Count attention's products once more by themselves: the counter sees no difference to products with weights."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        with FlopCounterMode(display=False) as counter:
            result = func(*args, **(kwargs or {}))
        self.flops += counter.get_total_flops()
        return result


def prefill_flops(model: LlavaMiniForConditionalGeneration, batch: VLMBatch) -> int:
    """Return the FLOPs of a forward pass over `batch`, with only the last position's logits."""
    inputs = {name: tensor for name, tensor in batch.model_inputs().items() if name != "labels"}
    with evaluation_mode(model):
        return count_flops(model, lambda: model(**inputs, logits_to_keep=1, use_cache=False)).total
