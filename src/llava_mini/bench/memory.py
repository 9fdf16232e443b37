"""Memory of images and frames at real sizes: the visual state of one image, and sessions of ten thousand frames.

All of it is arithmetic over the published shapes (`inference.memory`, `inference.session_plan`). Nothing of that size
is allocated.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from llava_mini.config import resolve
from llava_mini.inference.memory import FrameShape, KVShape
from llava_mini.inference.session_plan import SessionPlan, session_plans
from llava_mini.inference.session_plan import table as sessions_table
from llava_mini.models import LlavaMiniConfig, LlavaMiniForConditionalGeneration
from llava_mini.token_layout import HD_VIEWS, SINGLE_VIEW

MODELS = {"LLaVA-Mini, Vicuna-7B": "llava_mini_vicuna_7b", "LLaVA-Mini, Llama-3.1-8B": "llava_mini_llama31_8b"}
FRAMES = 10_000
CARD = int(23.5 * 2**30)  # bytes that a 24 GB GPU has, as in conf/hardware/rtx4090_24gb.yaml
HALF = torch.float16


@dataclass(frozen=True)
class VisualState:
    """What the language model stores of an image.

    Attributes:
        model: Name of the model.
        views: Number of views of the image.
        tokens: Numbers of vision tokens of LLaVA-v1.5 (all patches) and of LLaVA-Mini.
        bytes: Sizes of their keys and values in half precision, in the order of `tokens`.
    """

    model: str
    views: int
    tokens: tuple[int, int]
    bytes: tuple[int, int]


def visual_states() -> list[VisualState]:
    """Return the visual states of an image and an HD image, for every model."""
    states = []
    for name, preset in MODELS.items():
        config = _config(preset)
        token = KVShape.of(config.text_config).token_bytes(HALF)
        for views in (SINGLE_VIEW, HD_VIEWS):
            tokens = (FrameShape.of(config, tokens=1, views=views).patches, 1)
            states.append(VisualState(name, views, tokens, (tokens[0] * token, tokens[1] * token)))
    return states


def all_session_plans() -> list[SessionPlan]:
    """Return session plans for `FRAMES` frames on `CARD`, for every model.

    The weights are in fp16 and NF4, the KV cache in fp16, 8 and 4 bits.
    """
    plans = []
    for name, preset in MODELS.items():
        with torch.device("meta"):
            model = LlavaMiniForConditionalGeneration(_config(preset))
        plans += session_plans(name, model, FRAMES, CARD)
    return plans


def table(states: list[VisualState], plans: list[SessionPlan]) -> str:
    """Return the visual states and the session plans as Markdown."""
    lines = ["| keys and values of an image | tokens: LLaVA-v1.5 | LLaVA-Mini | LLaVA-v1.5, MB | LLaVA-Mini, MB |"]
    lines.append("|---|---|---|---|---|")
    for state in states:
        kind = "standard" if state.views == SINGLE_VIEW else "HD"
        sizes = " | ".join(f"{size / 1e6:.2f}" for size in state.bytes)
        lines.append(f"| {state.model}, {kind} | {state.tokens[0]} | {state.tokens[1]} | {sizes} |")
    return "\n".join([*lines, "", sessions_table(plans)])


def _config(preset: str) -> LlavaMiniConfig:
    model = resolve([f"model={preset}", "trainer.max_steps=1"]).model
    return LlavaMiniConfig(vision_config=model.vision_config, text_config=model.text_config, num_fusion_layers=4)
