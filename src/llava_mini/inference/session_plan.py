"""GPU memory of a session with many frames, before a GPU or a model is available: arithmetic over shapes.

Weights are in half precision or NF4, the KV cache in half precision or quantized. Features stay in host memory, and
pre-fusion's keys and values are computed again.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from llava_mini.hardware import CUDA_CONTEXT
from llava_mini.inference.memory import INT8, FrameShape, KVShape, largest_frames
from llava_mini.inference.quantize import BITS
from llava_mini.models import LlavaMiniConfig, LlavaMiniForConditionalGeneration
from llava_mini.models.frame_batch import frame_bytes
from llava_mini.token_layout import SINGLE_VIEW
from llava_mini.units import gib_text

TEXT = 512  # tokens of a question and its answer
_HALF = torch.float16
_CHUNK = 1024  # tokens that are read at once
_FRAME_BATCH = 16
_NF4_BITS = 4.127  # of a weight, with its scales in two stages


@dataclass(frozen=True)
class SessionPlan:
    """GPU memory in bytes of a session whose frames have one view.

    Attributes:
        card: Memory of the GPU; None: not known.
        weights: Type of the weights: "fp16", or "NF4" for the language model's layers.
        bits: Bits of the KV cache; None: fp16.
        cache_bytes: KV cache of all frames, with room for more and one layer unpacked.
        working_bytes: All compressed tokens, a batch of frames or a chunk of the prompt, and the CUDA context.
        largest: Largest number of frames that would fit; None if the memory of the GPU is not known.
        store_bytes: All frames' features for follow-up questions in host memory, in fp16 and in 8 bits.
    """

    model: str
    frames: int
    card: int | None
    weights: str
    bits: int | None
    weight_bytes: int
    cache_bytes: int
    working_bytes: int
    largest: int | None
    store_bytes: tuple[int, int]

    @property
    def total_bytes(self) -> int:
        """Bytes of GPU memory in all."""
        return self.weight_bytes + self.cache_bytes + self.working_bytes

    @property
    def fits(self) -> bool | None:
        """Whether the session fits the GPU; None if the memory of the GPU is not known."""
        return None if self.card is None else self.total_bytes <= self.card

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as a dictionary, for programs."""
        return asdict(self) | {"total_bytes": self.total_bytes, "fits": self.fits}


def session_plans(
    name: str, model: LlavaMiniForConditionalGeneration, frames: int, card: int | None
) -> list[SessionPlan]:
    """Plan sessions of a model with weights in fp16 and NF4, each with the KV cache in fp16, 8 and 4 bits.

    The model may be on the meta device. `card` is the GPU's memory in bytes; None: not known.
    """
    config, tokens_of = model.config, model.layout.frames
    shape, kv = FrameShape.of(config, model.layout.frame()), KVShape.of(config.text_config)
    store = (0, 0)
    if config.num_fusion_layers:
        store = (frames * shape.features_bytes(_HALF), frames * shape.features_bytes(INT8))

    def plan(weights: str, weight_bytes: int, bits: int | None) -> SessionPlan:
        def cache(count: int) -> int:
            return kv.cache_bytes(tokens_of(count) + TEXT, _HALF, bits)

        def working(count: int) -> int:
            return count * shape.tokens_bytes(_HALF) + _working_bytes(config, kv, tokens_of(count) + TEXT)

        def all_of(count: int) -> int:
            return weight_bytes + cache(count) + working(count)

        largest = None if card is None else largest_frames(all_of, card)
        return SessionPlan(
            name, frames, card, weights, bits, weight_bytes, cache(frames), working(frames), largest, store
        )

    return [plan(weights, size, bits) for weights, size in _weights(model).items() for bits in (None, *BITS)]


def table(plans: list[SessionPlan]) -> str:
    """Return plans for one number of frames on one GPU as a Markdown table."""
    first = plans[0]
    where = "" if first.card is None else f" on a card of {gib_text(first.card)} GiB"
    lines = [
        f"A session of {first.frames:,} frames{where}; sizes in GiB, features in host memory.",
        "",
        "| model | weights | cache | weights | cache | working | sum | fits | most frames | features: fp16 | 8 bits |",
        "|---" * 11 + "|",
    ]
    for plan in plans:
        cache = "fp16" if plan.bits is None else f"{plan.bits} bits"
        taken = (plan.weight_bytes, plan.cache_bytes, plan.working_bytes, plan.total_bytes)
        sizes, stores = " | ".join(map(gib_text, taken)), " | ".join(map(gib_text, plan.store_bytes))
        fits = {True: "yes", False: "no", None: ""}[plan.fits]
        most = "" if plan.largest is None else f"{plan.largest:,}"
        lines.append(f"| {plan.model} | {plan.weights} | {cache} | {sizes} | {fits} | {most} | {stores} |")
    return "\n".join(lines)


def _working_bytes(config: LlavaMiniConfig, kv: KVShape, tokens: int) -> int:
    """Return the bytes of a batch of frames or a chunk of the prompt, whichever is larger, and of the CUDA context."""
    text = config.text_config
    frames = _FRAME_BATCH * frame_bytes(config, SINGLE_VIEW, _HALF)
    # A chunk's states around attention and MLP, as `frame_bytes` counts them; its keys and values in all layers before
    # they are frozen; a mask of the earlier tokens, a byte each; one layer's keys and values repeated for every head.
    chunk = _CHUNK * (6 * text.hidden_size + 3 * text.intermediate_size) * _HALF.itemsize
    chunk += _CHUNK * kv.token_bytes(_HALF) + _CHUNK * tokens
    chunk += 2 * tokens * text.num_attention_heads * kv.head_dim * _HALF.itemsize
    return max(frames, chunk) + CUDA_CONTEXT


def _weights(model: LlavaMiniForConditionalGeneration) -> dict[str, int]:
    """Return the bytes of all weights in fp16, and with the language model's layers in NF4."""
    half = _HALF.itemsize * sum(parameter.numel() for parameter in model.parameters())
    linears = (module for module in model.get_decoder().modules() if isinstance(module, nn.Linear))
    packed = sum(linear.weight.numel() for linear in linears)
    return {"fp16": half, "NF4": half - _HALF.itemsize * packed + int(packed * _NF4_BITS / 8)}
