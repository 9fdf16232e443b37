"""FLOPs of a first token by part, counted while the code of `models` runs on meta tensors at real sizes.

Code that depends on data (where placeholders are, how many frames fit in memory) cannot run on meta. So the parts are
called one after the other, in the order of the forward pass. A multiply-add is two FLOPs. Attention products are
counted separately: the paper counts all of the encoder, but in decoder layers only products with weights (REFERENCE
section 4).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import DynamicCache

from llava_mini.evaluate.flops import count_flops
from llava_mini.inference.memory import KVShape
from llava_mini.models import LlavaMiniForConditionalGeneration
from llava_mini.models.configuration import PARTS
from llava_mini.models.inference_optimizations import InferenceOptimizations
from llava_mini.models.vision_tower import encode_views, prefusion_patches
from llava_mini.token_layout import SINGLE_VIEW

Result = TypeVar("Result")


@dataclass(frozen=True)
class Work:
    """Workload of one prompt."""

    views: int = SINGLE_VIEW  # of a frame
    frames: int = 1
    text_tokens: int = 40  # all after the frames
    cached: bool = False  # a follow-up question about frames whose reusable results are all cached
    last_logits: bool = True  # logits of the last position alone


@dataclass(frozen=True)
class Count:
    """FLOPs by part, separately for products with weights and for attention products."""

    weights: Mapping[str, int]
    attention: Mapping[str, int]

    @property
    def parts(self) -> dict[str, int]:
        """FLOPs by part as the paper counts them: attention products only in the vision tower."""
        return {part: self.weights[part] + (self.attention[part] if part == "vision_tower" else 0) for part in PARTS}

    @property
    def parts_with_attention(self) -> dict[str, int]:
        """FLOPs by part including all attention products."""
        return {part: self.weights[part] + self.attention[part] for part in PARTS}

    def as_dict(self) -> dict[str, Any]:
        """Return the totals and the parts, each as the paper counts them and with all attention products."""
        return {
            "flops": sum(self.parts.values()),
            "flops_with_attention": sum(self.parts_with_attention.values()),
            "parts": self.parts,
            "parts_with_attention": self.parts_with_attention,
        }


def count(model: LlavaMiniForConditionalGeneration, work: Work, optimizations: InferenceOptimizations) -> Count:
    """Count the FLOPs up to the first token of a model on the meta device.

    Without compression and pre-fusion it is LLaVA-v1.5, whose language model reads all patches of all views. The number
    of frames that `optimizations` puts into a call makes no difference.

    Raises:
        ValueError: it is a follow-up question, but pre-fusion is not split, so none of its results can be cached.
    """
    if work.cached and not optimizations.split_prefusion:
        raise ValueError("a follow-up question costs as much as the first where pre-fusion is not split")
    run = _Run(model, work, optimizations)
    run.answer(run.frames())
    return Count(run.weights, run.attention)


def is_plain(model: LlavaMiniForConditionalGeneration) -> bool:
    """Whether the model is LLaVA-v1.5: neither compression nor pre-fusion."""
    return model.config.num_fusion_layers == 0 and model.layout.frame() == model.side**2


class _Run:
    """One prefill on meta, part by part; work on cached frames was done for an earlier question and is not counted."""

    def __init__(
        self, model: LlavaMiniForConditionalGeneration, work: Work, optimizations: InferenceOptimizations
    ) -> None:
        self.model, self.work, self.optimizations = model, work, optimizations
        self.weights, self.attention = dict.fromkeys(PARTS, 0), dict.fromkeys(PARTS, 0)

    def frames(self) -> int:
        """Run the frames through all parts before the language model and return the number of vision tokens."""
        model, work, size = self.model, self.work, self.model.config.vision_config.image_size
        pixels = torch.empty(work.frames * work.views, 3, size, size, device="meta")

        def encode() -> Tensor:
            layer, stop = model.config.vision_feature_layer, self.optimizations.stop_tower
            return encode_views(model.vision_tower, pixels, layer=layer, num_patches=model.side**2, stop=stop)

        features = self._count("vision_tower", encode, work.cached).unflatten(0, (work.frames, work.views))
        if is_plain(model):
            patches = prefusion_patches(features, work.views)
            return self._count("projector", lambda: model.projector(patches), work.cached).shape[:2].numel()
        visual = self._count("projector", lambda: model.compress_and_project(features), work.cached)
        if model.config.num_fusion_layers:
            self._fuse(visual.patches_FPD, visual.compressed_FKD)
        return visual.compressed_FKD.shape[:2].numel()

    def _fuse(self, patches_FPD: Tensor, compressed_FKD: Tensor) -> None:
        """Run pre-fusion of every frame with the text."""
        fused, fusion = self.model.config.fuse_compressed_tokens, self.model.prefusion
        seen_FLD = torch.cat([patches_FPD, compressed_FKD], dim=1) if fused else patches_FPD
        text_FSD = self._rows(self.work.frames, self.work.text_tokens)
        if not self.optimizations.split_prefusion:
            whole_FLD = torch.cat([seen_FLD, text_FSD], dim=1)
            self._count("prefusion", lambda: fusion(whole_FLD, _visible(whole_FLD), None))
            return
        first, trim = patches_FPD.shape[1], self.optimizations.trim_last_layer
        _, seen = self._count("prefusion", lambda: fusion.prefill_visual(seen_FLD, first, trim), self.work.cached)
        self._count("prefusion", lambda: fusion.attend_text(text_FSD, seen, _visible(text_FSD)))

    def answer(self, tokens: int) -> None:
        """Run the language model up to the first token, after `tokens` vision tokens."""
        model, work = self.model, self.work
        cache = DynamicCache(config=model.config.text_config)
        if work.cached:
            shape = KVShape.of(model.config.text_config)
            held = torch.empty(1, shape.heads, tokens, shape.head_dim, device="meta")
            for layer in range(shape.layers):
                cache.update(held, held, layer)
        rows = self._rows(1, work.text_tokens + (0 if work.cached else tokens))
        given = {"inputs_embeds": rows, "past_key_values": cache, "logits_to_keep": int(work.last_logits)}
        self._count("language_model", lambda: model.language_model(**given))

    def _count(self, part: str, run: Callable[[], Result], cached: bool = False) -> Result:
        """Run a part and count it, unless its result is cached. The compressor runs within the projector's part."""
        counted = count_flops(self.model, run)
        compressor = counted.modules.get(type(self.model.compressor).__name__, 0)
        if not cached:
            self.weights[part] += counted.total - compressor
            attending = "compressor" if compressor else part  # the projector has no attention
            self.weights["compressor"] += compressor
            self.attention[attending] += counted.attention
            self.weights[attending] -= counted.attention
        return counted.result

    def _rows(self, sequences: int, length: int) -> Tensor:
        return torch.empty(sequences, length, self.model.config.text_config.hidden_size, device="meta")


def _visible(rows_FLD: Tensor) -> Tensor:
    return torch.ones(rows_FLD.shape[:2], dtype=torch.bool, device="meta")
