"""FLOPs of a first token by part, counted by torch while the code of `models` runs on meta tensors at real sizes.

Code that depends on data (where placeholders are, how many frames fit in memory) cannot run on meta. So the parts are
called one after the other, in the order of the forward pass. A multiply-add is two FLOPs. Attention products are
counted separately: the paper counts all of the encoder, but in decoder layers only products with weights (REFERENCE
section 4).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count
from transformers import DynamicCache

from llava_mini.inference.memory import KVShape
from llava_mini.models import LlavaMiniForConditionalGeneration
from llava_mini.models.inference_optimizations import InferenceOptimizations
from llava_mini.models.vision_tower import encode_views, prefusion_patches
from llava_mini.token_layout import SINGLE_VIEW

PARTS = ("vision_tower", "compressor", "projector", "prefusion", "language_model")


@dataclass(frozen=True)
class Work:
    """Workload of one prompt.

    Attributes:
        views: Number of views per frame.
        frames: Number of frames in the prompt.
        text_tokens: Number of text tokens in the prompt; all are after the frames.
        cached: Whether this is a later question about frames whose reusable results are all cached.
        last_logits: Whether logits are computed only for the last position.
    """

    views: int = SINGLE_VIEW
    frames: int = 1
    text_tokens: int = 40
    cached: bool = False
    last_logits: bool = True


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
        return {part: self.weights[part] + self.attention[part] for part in PARTS}

    @property
    def flops(self) -> int:
        """Total FLOPs as the paper counts them."""
        return sum(self.parts.values())

    @property
    def flops_with_attention(self) -> int:
        """Total FLOPs including all attention products."""
        return sum(self.parts_with_attention.values())

    def as_dict(self) -> dict[str, Any]:
        """Return the totals and the parts as a dict."""
        return {
            "flops": self.flops,
            "flops_with_attention": self.flops_with_attention,
            "parts": self.parts,
            "parts_with_attention": self.parts_with_attention,
        }


def count(model: LlavaMiniForConditionalGeneration, work: Work, optimizations: InferenceOptimizations) -> Count:
    """Count the FLOPs up to the first token.

    Args:
        model: Model on the meta device. Without compression and pre-fusion it is LLaVA-v1.5, whose language model reads
            all patches of all views.
        work: Workload of the prompt.
        optimizations: Computation that is skipped; the number of frames per call makes no difference.

    Raises:
        ValueError: it is a later question, but pre-fusion is not split, so none of its results can be cached.
    """
    if work.cached and not optimizations.split_prefusion:
        raise ValueError("a later question costs as much as the first where pre-fusion is not split")
    meter = _Meter()
    hooks = (
        model.compressor.register_forward_pre_hook(lambda *_: meter.enter("compressor")),
        model.compressor.register_forward_hook(lambda *_: meter.leave()),
    )
    try:
        with torch.no_grad(), meter:
            tokens = _look(model, work, optimizations, meter)
            _answer(model, tokens, work, meter)
    finally:
        for hook in hooks:
            hook.remove()
    return Count(meter.weights, meter.attention)


def is_plain(model: LlavaMiniForConditionalGeneration) -> bool:
    """Whether the model is LLaVA-v1.5: neither compression nor pre-fusion."""
    return model.config.num_fusion_layers == 0 and model.layout.frame() == model.side**2


def _look(
    model: LlavaMiniForConditionalGeneration, work: Work, optimizations: InferenceOptimizations, meter: _Meter
) -> int:
    """Run the frames through all parts before the language model and return the number of vision tokens."""
    size = model.config.vision_config.image_size
    pixels = torch.empty(work.frames * work.views, 3, size, size, device="meta")
    with meter.part("vision_tower", counted=not work.cached):
        features = encode_views(
            model.vision_tower,
            pixels,
            layer=model.config.vision_feature_layer,
            num_patches=model.side**2,
            stop=optimizations.stop_tower,
        ).unflatten(0, (work.frames, work.views))
    with meter.part("projector", counted=not work.cached):
        if is_plain(model):
            return model.projector(prefusion_patches(features, work.views)).shape[:2].numel()
        visual = model.compress_and_project(features)
    if model.config.num_fusion_layers:
        _fuse(model, visual.patches_FPD, visual.compressed_FKD, work, optimizations, meter)
    return visual.compressed_FKD.shape[:2].numel()


def _fuse(
    model: LlavaMiniForConditionalGeneration,
    patches_FPD: Tensor,
    compressed_FKD: Tensor,
    work: Work,
    optimizations: InferenceOptimizations,
    meter: _Meter,
) -> None:
    """Run pre-fusion of every frame with the text."""
    seen_FLD = torch.cat([patches_FPD, compressed_FKD], dim=1) if model.config.fuse_compressed_tokens else patches_FPD
    text_FSD = _rows(model, work.frames, work.text_tokens)
    if not optimizations.split_prefusion:
        whole_FLD = torch.cat([seen_FLD, text_FSD], dim=1)
        with meter.part("prefusion"):
            model.prefusion(whole_FLD, _visible(whole_FLD), None)
        return
    with meter.part("prefusion", counted=not work.cached):
        _, seen = model.prefusion.prefill_visual(
            seen_FLD, first=patches_FPD.shape[1], trim=optimizations.trim_last_layer
        )
    with meter.part("prefusion"):
        model.prefusion.attend_text(text_FSD, seen, _visible(text_FSD))


def _answer(model: LlavaMiniForConditionalGeneration, tokens: int, work: Work, meter: _Meter) -> None:
    """Run the language model up to the first token."""
    cache = DynamicCache(config=model.config.text_config)
    if work.cached:
        shape = KVShape.of(model.config.text_config)
        held = torch.empty(1, shape.heads, tokens, shape.head_dim, device="meta")
        for layer in range(shape.layers):
            cache.update(held, held, layer)
    rows = work.text_tokens + (0 if work.cached else tokens)
    with meter.part("language_model"):
        model.language_model(
            inputs_embeds=_rows(model, 1, rows), past_key_values=cache, logits_to_keep=int(work.last_logits)
        )


def _rows(model: LlavaMiniForConditionalGeneration, sequences: int, length: int) -> Tensor:
    return torch.empty(sequences, length, model.config.text_config.hidden_size, device="meta")


def _visible(rows_FLD: Tensor) -> Tensor:
    return torch.ones(rows_FLD.shape[:2], dtype=torch.bool, device="meta")


class _Meter(TorchDispatchMode):
    """Add torch's FLOP count of each operation to the part that is running, with attention counted separately."""

    def __init__(self) -> None:
        super().__init__()
        self.weights, self.attention = dict.fromkeys(PARTS, 0), dict.fromkeys(PARTS, 0)
        self._attended = _Attended(self)
        self._parts: list[str | None] = [None]

    def __enter__(self) -> Self:
        self._attended.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._attended.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.credit(self.weights, flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=result))
        return result

    @contextmanager
    def part(self, name: str, counted: bool = True) -> Iterator[None]:
        """Attribute the block's operations to one part. Work that is not counted was done for an earlier question."""
        self.enter(name if counted else None)
        yield
        self.leave()

    def enter(self, name: str | None) -> None:
        """Enter a part, possibly within another part. Within a part that is not counted, it is not counted either."""
        self._parts.append(name if len(self._parts) == 1 or self._parts[-1] else None)

    def leave(self) -> None:
        self._parts.pop()

    def credit(self, counts: dict[str, int], flops: int) -> None:
        part = self._parts[-1]
        if part is not None:
            counts[part] += flops


class _Attended(TorchFunctionMode):
    """Count attention products without the kernel, which torch's counter does not know on CPU and meta.

    The result is an empty tensor.
    """

    def __init__(self, meter: _Meter):
        super().__init__()
        self._meter = meter

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        queries, keys, values = (given.shape for given in args[:3])
        heads = torch.Size([*queries[:2]])
        self._meter.credit(self._meter.attention, sdpa_flop_count(queries, (*heads, *keys[2:]), (*heads, *values[2:])))
        return torch.empty(*queries[:3], values[3], dtype=args[0].dtype, device="meta")
