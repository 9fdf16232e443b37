"""What images and frames take of memory at real sizes: the visual state of one, and sessions of ten thousand frames.

All of it is arithmetic over the published shapes (`inference.memory`); nothing of that size is made.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from llava_mini.config import resolve
from llava_mini.inference.memory import INT8, FrameShape, KVShape, largest_frames
from llava_mini.inference.quantize import BITS
from llava_mini.models import LlavaMiniConfig, LlavaMiniForConditionalGeneration
from llava_mini.models.frame_batch import frame_bytes
from llava_mini.models.vision_tower import HD_VIEWS, SINGLE_VIEW

MODELS = {"LLaVA-Mini, Vicuna-7B": "llava_mini_vicuna_7b", "LLaVA-Mini, Llama-3.1-8B": "llava_mini_llama31_8b"}
FRAMES = 10_000
CARD = int(23.5 * 2**30)  # bytes: what a card of 24 GB has, as conf/hardware/rtx4090_24gb.yaml
HALF = torch.float16

_TEXT = 512  # tokens of a question and its answer
_CHUNK = 1024  # tokens that are read at once
_FRAME_BATCH = 16
_CONTEXT = int(0.62 * 2**30)  # of CUDA, as `llava-mini plan` counts it
_NF4_BITS = 4.127  # a weight, with its scales in two stages


@dataclass(frozen=True)
class VisualState:
    """What the language model keeps of an image.

    Attributes:
        model: Its name.
        views: Of the image.
        tokens: Image tokens, of LLaVA-v1.5 (all patches) and of LLaVA-Mini.
        bytes: Of their keys and values in half precision, in this order.
    """

    model: str
    views: int
    tokens: tuple[int, int]
    bytes: tuple[int, int]


@dataclass(frozen=True)
class SessionPlan:
    """A session of `FRAMES` frames with one token each on a card of `CARD` bytes.

    Attributes:
        model: Its name.
        weights: "fp16", or "NF4" of the language model's layers.
        bits: Of the cache; None: fp16.
        weight_bytes: Of the model.
        cache_bytes: Of keys and values of all frames, with room for more and a layer unpacked.
        working_bytes: Of a batch of frames, a chunk of the prompt and CUDA's context.
        largest: Frames that would fit.
        store_bytes: Features of all frames for later questions, in fp16 and in 8 bits; they may lie in host memory.
    """

    model: str
    weights: str
    bits: int | None
    weight_bytes: int
    cache_bytes: int
    working_bytes: int
    largest: int
    store_bytes: tuple[int, int]

    @property
    def total_bytes(self) -> int:
        """On the card."""
        return self.weight_bytes + self.cache_bytes + self.working_bytes

    @property
    def fits(self) -> bool:
        return self.total_bytes <= CARD


def visual_states() -> list[VisualState]:
    """An image and an HD image, for every model."""
    states = []
    for name, preset in MODELS.items():
        config = _config(preset)
        token = KVShape.of(config.text_config).token_bytes(HALF)
        for views in (SINGLE_VIEW, HD_VIEWS):
            tokens = (FrameShape.of(config, tokens=1, views=views).patches, 1)
            states.append(VisualState(name, views, tokens, (tokens[0] * token, tokens[1] * token)))
    return states


def session_plans() -> list[SessionPlan]:
    """Every model with its weights in fp16 and NF4, and the cache in fp16, 8 and 4 bits."""
    return [plan for name, preset in MODELS.items() for plan in _plans(name, _config(preset))]


def table(states: list[VisualState], plans: list[SessionPlan]) -> str:
    """Both as Markdown."""
    lines = ["| keys and values of an image | tokens: LLaVA-v1.5 | LLaVA-Mini | LLaVA-v1.5, MB | LLaVA-Mini, MB |"]
    lines.append("|---|---|---|---|---|")
    for state in states:
        kind = "standard" if state.views == SINGLE_VIEW else "HD"
        sizes = " | ".join(f"{size / 1e6:.2f}" for size in state.bytes)
        lines.append(f"| {state.model}, {kind} | {state.tokens[0]} | {state.tokens[1]} | {sizes} |")
    lines += [
        "",
        f"A session of {FRAMES:,} frames on a card of {_gib(CARD)} GiB; sizes in GiB, features in host memory.",
        "",
        "| model | weights | cache | weights | cache | working | sum | fits | most frames | features: fp16 | 8 bits |",
        "|---" * 11 + "|",
    ]
    for plan in plans:
        cache = "fp16" if plan.bits is None else f"{plan.bits} bits"
        taken = (plan.weight_bytes, plan.cache_bytes, plan.working_bytes, plan.total_bytes)
        sizes, stores = " | ".join(map(_gib, taken)), " | ".join(map(_gib, plan.store_bytes))
        fits = "yes" if plan.fits else "no"
        lines.append(f"| {plan.model} | {plan.weights} | {cache} | {sizes} | {fits} | {plan.largest:,} | {stores} |")
    return "\n".join(lines)


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f}"


def _plans(name: str, config: LlavaMiniConfig) -> list[SessionPlan]:
    frame, kv = FrameShape.of(config, tokens=1), KVShape.of(config.text_config)
    store = (FRAMES * frame.features_bytes(HALF), FRAMES * frame.features_bytes(INT8))

    def plan(weights: str, weight_bytes: int, bits: int | None) -> SessionPlan:
        def cache(frames: int) -> int:
            return kv.cache_bytes(frames + _TEXT, HALF, bits)

        def working(frames: int) -> int:
            return _working_bytes(config, kv, frames + _TEXT)

        largest = largest_frames(lambda frames: weight_bytes + cache(frames) + working(frames), CARD)
        return SessionPlan(name, weights, bits, weight_bytes, cache(FRAMES), working(FRAMES), largest, store)

    return [plan(weights, size, bits) for weights, size in _weights(config).items() for bits in (None, *BITS)]


def _working_bytes(config: LlavaMiniConfig, kv: KVShape, tokens: int) -> int:
    """The larger of a batch of frames and a chunk of the prompt, and CUDA's context."""
    text = config.text_config
    frames = _FRAME_BATCH * frame_bytes(config, SINGLE_VIEW, HALF)
    # A chunk's states around attention and MLP, as `frame_bytes` counts them; its keys and values in all layers before
    # they are frozen; which earlier tokens it sees, a byte each; one layer's keys and values repeated for every head.
    chunk = _CHUNK * (6 * text.hidden_size + 3 * text.intermediate_size) * HALF.itemsize
    chunk += _CHUNK * kv.token_bytes(HALF) + _CHUNK * tokens
    chunk += 2 * tokens * text.num_attention_heads * kv.head_dim * HALF.itemsize
    return max(frames, chunk) + _CONTEXT


def _weights(config: LlavaMiniConfig) -> dict[str, int]:
    """Bytes of all weights in fp16, and with the language model's layers in NF4."""
    with torch.device("meta"):
        model = LlavaMiniForConditionalGeneration(config)
    half = HALF.itemsize * sum(parameter.numel() for parameter in model.parameters())
    linears = (module for module in model.get_decoder().modules() if isinstance(module, nn.Linear))
    packed = sum(linear.weight.numel() for linear in linears)
    return {"fp16": half, "NF4": half - HALF.itemsize * packed + int(packed * _NF4_BITS / 8)}


def _config(preset: str) -> LlavaMiniConfig:
    model = resolve([f"model={preset}", "trainer.max_steps=1"], ())["model"]
    return LlavaMiniConfig(vision_config=model["vision_config"], text_config=model["text_config"], num_fusion_layers=4)
