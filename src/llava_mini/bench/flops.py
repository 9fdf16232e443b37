"""Study of FLOPs: LLaVA and LLaVA-Mini at real sizes on images, HD images and videos, by part."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

from llava_mini.bench.flop_count import Work, count, is_plain
from llava_mini.bench.report import Report, markdown
from llava_mini.bench.subjects import model_config, on_meta
from llava_mini.errors import refused
from llava_mini.models import LlavaMiniForConditionalGeneration
from llava_mini.models.configuration import PARTS
from llava_mini.models.inference_optimizations import RELEASE, InferenceOptimizations
from llava_mini.token_layout import HD_VIEWS, SINGLE_VIEW

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, Any]

RESOLUTIONS = {"standard": SINGLE_VIEW, "hd": HD_VIEWS}
ORDERS = {"release": RELEASE, "exact": InferenceOptimizations()}
BASE, MINI, BASE_8B = "llava-v1.5-7b", "llava-mini-7b", "llava-llama31-8b"
TERA = 1e12
_ASKED = (("standard", 1), ("standard", 16), ("hd", 1))
_7B, _8B = {"preset": "llava_mini_vicuna_7b"}, {"preset": "llava_mini_llama31_8b"}
_PLAIN: dict[str, Any] = {"compressor": "none", "fusion_layers": 0}

MODELS: dict[str, dict[str, Any]] = {
    BASE: {**_7B, **_PLAIN},
    MINI: _7B,
    BASE_8B: {**_8B, **_PLAIN},
    "llava-mini-llama31-8b": _8B,
}
"""Arguments of `model_config` for every model."""

ABLATIONS: dict[str, dict[str, Any]] = {
    **{f"{MINI}-{side**2}-tokens": {**_7B, "C": side, "fuse_compressed_tokens": False} for side in (2, 4, 8)},
    **{f"{MINI}-{side**2}-tokens-no-prefusion": {**_7B, "C": side, "fusion_layers": 0} for side in (1, 4, 8, 12)},
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

_NAMED = ("model", "resolution", "frames", "order")  # fields that name a row's metric
_SHOWN: dict[str, tuple[str, dict[str, Any]]] = {
    "LLaVA-v1.5": (BASE, {}),
    "LLaVA-Mini, release's order": (MINI, {}),
    "LLaVA-Mini, ours": (MINI, {"order": "exact"}),
    "ours, follow-up question": (MINI, {"order": "exact", "cached": True}),
}


def rows(text_tokens: int) -> list[Row]:
    """Return rows of every model. The paper's ablations are only at standard resolution in the release's order.

    Raises:
        UserError: there is no text token.
    """
    if text_tokens < 1:
        raise refused("text_tokens", text_tokens, allowed="1 and above")
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
    """Return the row of a model of `MODELS` or `ABLATIONS`; `cached`: of a follow-up question about cached frames."""
    model = _model(name)
    views = RESOLUTIONS[resolution]
    # Like the paper's totals, the release computes logits for the whole prompt.
    work = Work(views, frames, text_tokens, cached, last_logits=order != "release")
    plain = frames * views * model.side**2
    return {
        "model": name,
        "resolution": resolution,
        "frames": frames,
        "order": order,
        "cached": cached,
        "text_tokens": text_tokens,
        "image_tokens": plain if is_plain(model) else model.layout.frames(frames, views),
        **count(model, work, ORDERS[order]).as_dict(),
    }


@cache
def _model(name: str) -> LlavaMiniForConditionalGeneration:
    return on_meta(model_config(**{**MODELS, **ABLATIONS}[name]))


def find(found: list[Row], model: str, resolution: str = "standard", frames: int = 1, **which: Any) -> Row:
    """Return the row of a model, by default of the first question in the release's order."""
    wanted = {"model": model, "resolution": resolution, "frames": frames, "order": "release", "cached": False, **which}
    return next(row for row in found if wanted.items() <= row.items())


def study(text_tokens: int) -> Iterator[Report]:
    """Count all rows."""
    found = rows(text_tokens)
    named = {
        ".".join([*(str(row[name]) for name in _NAMED), *(["later"] if row["cached"] else [])]): row for row in found
    }
    yield Report(
        f"T = {text_tokens} text tokens.\n\n{table(found)}",
        {"text_tokens": text_tokens, "rows": found},
        {name: row["flops"] for name, row in named.items()},
        lambda: draw(found),
    )


def table(found: list[Row]) -> str:
    """Return all rows, and the paper's totals next to ours, as Markdown."""
    against = []
    for (model, resolution), paper in PAPER.items():
        here = find(found, model, resolution)["flops"] / TERA
        against.append((model, resolution, f"{paper:.2f}", f"{here:.3f}", f"{100 * (here / paper - 1):+.1f} %"))
    head = ("model", "resolution", "frames", "work", "image tokens", "T", "less than LLaVA", *PARTS, "T with attention")
    compared = markdown(("model", "resolution", "paper, T", "here, T", "differs"), against)
    return f"{compared}\n\n{markdown(head, [_cells(found, row) for row in found])}"


def _cells(found: list[Row], row: Row) -> list[object]:
    work = "release" if row["order"] == "release" else "exact, follow-up question" if row["cached"] else "exact"
    # Saved against the uncompressed model with the same language model, on the same frames.
    plain = find(found, BASE_8B if "8b" in row["model"] else BASE, row["resolution"], row["frames"])
    less = "" if row is plain else f"{100 * (1 - row['flops'] / plain['flops']):.1f} %"
    flops = [row["flops"], *(row["parts"][part] for part in PARTS), row["flops_with_attention"]]
    total, *parts = (f"{each / TERA:.3f}" for each in flops)
    return [row["model"], row["resolution"], row["frames"], work, row["image_tokens"], total, less, *parts]


def draw(found: list[Row]) -> Figure:
    """Draw the share of each part for an image, an HD image and a video."""
    from matplotlib.figure import Figure

    from llava_mini.bench.plots import BLUE, PALE, Bar, draw_bars

    colors = (BLUE, "#CC79A7", "#F0E442", "#009E73", PALE)  # Okabe and Ito's, gray for the language model
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    asked = {"image": ("standard", 1), "HD image": ("hd", 1), "video of 16 frames": ("standard", 16)}
    parts = [part.replace("_", " ") for part in PARTS]
    for axes, (title, (resolution, frames)) in zip(figure.subplots(1, 3, sharey=True), asked.items(), strict=True):
        bars = []
        for name, (model, which) in _SHOWN.items():
            widths = [flops / TERA for flops in find(found, model, resolution, frames, **which)["parts"].values()]
            bars.append(Bar(name, widths, colors, f"{sum(widths):.2f}"))
        draw_bars(axes, f"{title}, TFLOP", bars, parts)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower right", ncols=len(PARTS), frameon=False, fontsize=8.5)
    return figure
