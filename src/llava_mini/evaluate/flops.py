"""Floating-point operations of a prefill: vision tower, compression, pre-fusion, language model up to the first token.

They are counted by torch's own counter while the model runs. The counter knows only matrix products, and not the fused
CPU attention kernel, so attention runs as plain matrix products here.
"""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from llava_mini.batch import VLMBatch
from llava_mini.evaluate.mode import evaluation_mode
from llava_mini.models import LlavaMiniForConditionalGeneration


@torch.no_grad()
def prefill_flops(model: LlavaMiniForConditionalGeneration, batch: VLMBatch) -> int:
    """Return the FLOPs (a multiply-add is two) of a forward pass over `batch`, with only the last position's logits."""
    inputs = {name: tensor for name, tensor in batch.model_inputs().items() if name != "labels"}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:  # the counter hooks the gradients that are required, and there are none here
        parameter.requires_grad_(False)
    try:
        with evaluation_mode(model), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(**inputs, logits_to_keep=1, use_cache=False)
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
    return int(counter.get_total_flops())
