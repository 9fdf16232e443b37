"""Benchmark of FLOPs: LLaVA and LLaVA-Mini at real sizes on images, HD images and videos, as rows and as a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import yaml

from llava_mini.bench.flops import PARTS, Work, count, is_plain
from llava_mini.errors import UserError
from llava_mini.files import CONFIG_DIR
from llava_mini.models import LlavaMiniConfig, LlavaMiniForConditionalGeneration
from llava_mini.models.inference_optimizations import RELEASE, InferenceOptimizations
from llava_mini.token_layout import HD_VIEWS, SINGLE_VIEW

Row = dict[str, Any]

RESOLUTIONS = {"standard": SINGLE_VIEW, "hd": HD_VIEWS}
ORDERS = {"release": RELEASE, "exact": InferenceOptimizations()}
BASE, MINI = "llava-v1.5-7b", "llava-mini-7b"
TERA = 1e12
_ASKED = (("standard", 1), ("standard", 16), ("hd", 1))


@dataclass(frozen=True)
class Shape:
    """Shape of the model in a row.

    Attributes:
        preset: Name of a file in conf/model, for the shapes of the model's parts.
        side: Side of the compression grid, C; None: all patches.
        fusion_layers: Number of pre-fusion layers, N_fusion.
        order: Settings that differ from the release's order of work, as in conf/order.
    """

    preset: str = "llava_mini_vicuna_7b"
    side: int | None = 1
    fusion_layers: int = 4
    order: Mapping[str, bool] = field(default_factory=dict)

    def build(self) -> LlavaMiniForConditionalGeneration:
        """Return the model on the meta device, without gradients."""
        preset = yaml.safe_load((CONFIG_DIR / "model" / f"{self.preset}.yaml").read_text())
        compressor: dict[str, Any] = {"_target_": "llava_mini.models.compressors.none.NoCompressor"}
        if self.side is not None:
            compressor = {"_target_": "llava_mini.models.compressors.query.QueryCompressor", "C": self.side}
        with torch.device("meta"):
            model = LlavaMiniForConditionalGeneration(
                LlavaMiniConfig(
                    vision_config=preset["vision_config"],
                    text_config=preset["text_config"],
                    vision_feature_layer=preset["vision_feature_layer"],
                    compressor=compressor,
                    num_fusion_layers=self.fusion_layers,
                    **self.order,
                )
            )
        return model.eval().requires_grad_(False)


_8B = "llava_mini_llama31_8b"
MODELS = {
    BASE: Shape(side=None, fusion_layers=0),
    MINI: Shape(),
    "llava-llama31-8b": Shape(_8B, side=None, fusion_layers=0),
    "llava-mini-llama31-8b": Shape(_8B),
}
_PAST = {"fuse_compressed_tokens": False}
ABLATIONS = {
    **{f"{MINI}-{side**2}-tokens": Shape(side=side, order=_PAST) for side in (2, 4, 8)},
    **{f"{MINI}-{side**2}-tokens-no-prefusion": Shape(side=side, fusion_layers=0) for side in (1, 4, 8, 12)},
}
"""Of the paper. Several compressed tokens go past pre-fusion there, and its totals only fit if they do."""

PAPER = {
    (BASE, "standard"): 8.55,
    (MINI, "standard"): 1.96,
    (MINI, "hd"): 7.19,
    **{(f"{MINI}-{tokens}-tokens", "standard"): total for tokens, total in ((4, 2.01), (16, 2.16), (64, 2.79))},
    **{
        (f"{MINI}-{tokens}-tokens-no-prefusion", "standard"): total
        for tokens, total in ((1, 0.96), (16, 1.16), (64, 1.79), (144, 2.85))
    },
}
"""The paper's totals in T (REFERENCE section 4): in the release's order, first question."""


def rows(text_tokens: int) -> list[Row]:
    """Return rows of every model. The paper's ablations are only at standard resolution in the release's order.

    Raises:
        UserError: there is no text token.
    """
    if text_tokens < 1:
        raise UserError(f"text tokens: {text_tokens}; allowed are 1 and above")
    found = [
        row(name, text_tokens, resolution, frames, order, cached)
        for name in MODELS
        for resolution, frames in _ASKED
        for order, cached in (("release", False), ("exact", False), ("exact", True))
    ]
    return found + [row(name, text_tokens) for name in ABLATIONS]


def row(
    name: str,
    text_tokens: int,
    resolution: str = "standard",
    frames: int = 1,
    order: str = "release",
    cached: bool = False,
) -> Row:
    """Return the row of one model and workload.

    Args:
        name: Name of the model in `MODELS` or `ABLATIONS`.
        text_tokens: Number of text tokens in the prompt.
        resolution: Name of the resolution in `RESOLUTIONS`.
        frames: Number of frames in the prompt.
        order: Name of the order of work in `ORDERS`.
        cached: Whether this is a later question about cached frames.
    """
    model = {**MODELS, **ABLATIONS}[name].build()
    views = RESOLUTIONS[resolution]
    # Like the paper's totals, the release computes logits for the whole prompt.
    work = Work(views, frames, text_tokens, cached, last_logits=order != "release")
    per_frame = views * model.side**2 if is_plain(model) else model.layout.frame(views)
    return {
        "model": name,
        "resolution": resolution,
        "frames": frames,
        "order": order,
        "cached": cached,
        "text_tokens": text_tokens,
        "image_tokens": frames * per_frame,
        **count(model, work, ORDERS[order]).as_dict(),
    }


def find(found: list[Row], model: str, resolution: str = "standard", frames: int = 1, **which: Any) -> Row:
    """Return the row of a model, by default of the first question in the release's order."""
    wanted = {"model": model, "resolution": resolution, "frames": frames, "order": "release", "cached": False, **which}
    return next(row for row in found if wanted.items() <= row.items())


def table(found: list[Row]) -> str:
    """Return all rows, and the paper's totals next to ours, as Markdown."""
    return f"{_against_the_paper(found)}\n\n{_all(found)}\n"


def _against_the_paper(found: list[Row]) -> str:
    lines = ["| model | resolution | paper, T | here, T | differs |", "|---|---|---|---|---|"]
    for (model, resolution), paper in PAPER.items():
        here = find(found, model, resolution)["flops"] / TERA
        lines.append(f"| {model} | {resolution} | {paper:.2f} | {here:.3f} | {100 * (here / paper - 1):+.1f} % |")
    return "\n".join(lines)


def _all(found: list[Row]) -> str:
    head = ["model", "resolution", "frames", "work", "image tokens", "T", "less than LLaVA", *PARTS, "T with attention"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in found:
        work = "release" if row["order"] == "release" else "exact, later question" if row["cached"] else "exact"
        cells = [row["model"], row["resolution"], row["frames"], work, row["image_tokens"], _tera(row["flops"])]
        cells.append(_reduction(found, row))
        cells += [_tera(row["parts"][part]) for part in PARTS]
        lines.append(f"| {' | '.join(map(str, cells))} | {_tera(row['flops_with_attention'])} |")
    return "\n".join(lines)


def _reduction(found: list[Row], row: Row) -> str:
    """Return the percentage saved against the uncompressed model with the same language model, on the same frames."""
    base = "llava-llama31-8b" if "8b" in row["model"] else BASE
    plain = find(found, base, row["resolution"], row["frames"])
    return "" if row is plain else f"{100 * (1 - row['flops'] / plain['flops']):.1f} %"


def _tera(flops: int) -> str:
    return f"{flops / TERA:.3f}"
