"""Bytes of a session before they are taken: what a token and a frame cost, and how many frames fit.

Everything is arithmetic over shapes, so it holds for a model that is not here. A frame costs its compressed tokens in
the language model's cache, always, and what is kept of it so that a later question can be fused with its patches.

LLaVA-Mini-7B in half precision, 576 patches, one token a frame: 512 KiB in the cache; for fusion 36.1 MiB as keys and
values of four layers, 18.6 MiB of them in 8 bits, or 1.1 MiB as features, from which they are computed again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import PreTrainedConfig

from llava_mini.errors import UserError
from llava_mini.hardware import memory_text
from llava_mini.inference.cache import capacity
from llava_mini.inference.quantize import entry_bytes
from llava_mini.models import LlavaMiniConfig
from llava_mini.models.language_model import head_dim
from llava_mini.models.vision_tower import SINGLE_VIEW, patches_per_side

INT8 = torch.int8  # in place of a type: 8 bits, with a scale and an offset for every entry


@dataclass(frozen=True)
class KVShape:
    """Keys and values of a stack of decoder layers.

    Attributes:
        layers: How many.
        heads: Of keys and values.
        head_dim: Channels of a head.
    """

    layers: int
    heads: int
    head_dim: int

    @classmethod
    def of(cls, text_config: PreTrainedConfig, layers: int | None = None) -> KVShape:
        """The language model's, or that of so many layers of its kind (pre-fusion)."""
        return cls(
            text_config.num_hidden_layers if layers is None else layers,
            text_config.num_key_value_heads,
            head_dim(text_config),
        )

    def token_bytes(self, dtype: torch.dtype, bits: int | None = None) -> int:
        """Keys and values of a token in all layers; `bits`: quantised, as a frozen `SessionCache` holds them."""
        head = self.head_dim * dtype.itemsize if bits is None else entry_bytes(self.head_dim, bits)
        return 2 * self.layers * self.heads * head

    def cache_bytes(self, tokens: int, dtype: torch.dtype, bits: int | None = None) -> int:
        """The most that a `SessionCache` of so many tokens takes: with room for more, and while it is read or grows.

        In few bits all tokens are taken to be frozen, so a chunk that is being read comes on top (`token_bytes`).
        """
        held = capacity(tokens) * self.token_bytes(dtype, bits)
        # A layer in full precision, and its keys or values while they are unpacked; or a buffer that is made anew.
        layer = KVShape(1, self.heads, self.head_dim).token_bytes(dtype)
        unpacked = 0 if bits is None else layer // 2 * (2 if dtype == torch.bfloat16 else 1)
        return held + tokens * (layer // 2 if bits is None else layer + unpacked)


@dataclass(frozen=True)
class FrameShape:
    """A frame of a model: what may be kept of it.

    Attributes:
        prefusion: Its keys and values.
        patches: P, of all views.
        tokens: K, compressed.
        vision_dim: Channels of a feature.
        text_dim: Width of the language model.
        fused: Whether the compressed tokens pass through pre-fusion and leave keys and values too (release).
    """

    prefusion: KVShape
    patches: int
    tokens: int
    vision_dim: int
    text_dim: int
    fused: bool

    @classmethod
    def of(cls, config: LlavaMiniConfig, tokens: int, views: int = SINGLE_VIEW) -> FrameShape:
        """Of a frame with so many views, which is compressed to `tokens` (the model's `tokens_per_frame`)."""
        return cls(
            KVShape.of(config.text_config, config.num_fusion_layers),
            views * patches_per_side(config.vision_config) ** 2,
            tokens,
            config.vision_config.hidden_size,
            config.text_config.hidden_size,
            config.fuse_compressed_tokens,
        )

    def kv_bytes(self, dtype: torch.dtype) -> int:
        """Keys and values of pre-fusion for patches and, where they are fused, compressed tokens; `INT8`: in 8 bits."""
        entries = self.patches + (self.tokens if self.fused else 0)
        return entries * self.prefusion.token_bytes(dtype, 8 if dtype == INT8 else None)

    def features_bytes(self, dtype: torch.dtype) -> int:
        """The vision tower's features, from which all else is computed again; `INT8`: in 8 bits."""
        return self.patches * (entry_bytes(self.vision_dim, 8) if dtype == INT8 else self.vision_dim * dtype.itemsize)

    def tokens_bytes(self, dtype: torch.dtype) -> int:
        """Compressed tokens: all that is needed where there is no pre-fusion."""
        return self.tokens * self.text_dim * dtype.itemsize


def largest_frames(need: Callable[[int], int], budget: int) -> int:
    """The largest number of frames whose `need` in bytes is within the budget; `need` grows with them."""
    if need(1) > budget:
        return 0
    fits = 1
    while need(2 * fits) <= budget:
        fits *= 2
    too_many = 2 * fits
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        fits, too_many = (middle, too_many) if need(middle) <= budget else (fits, middle)
    return fits


def check_frames(frames: int, need: Callable[[int], int], budget: int, where: str, earlier: int = 0) -> None:
    """See that frames fit before any is read.

    Args:
        frames: As many as are wanted.
        need: Bytes of so many frames.
        budget: Bytes that may be taken.
        where: Of what memory it is, for the message: "GPU memory".
        earlier: Frames of the same video that are there already and counted in the message, not in `need`.

    Raises:
        UserError: they do not; it names the largest number that does.
    """
    if need(frames) > budget:
        raise UserError(
            f"{frames + earlier} frames need {memory_text(need(frames))}{' more' if earlier else ''} of {where}, "
            f"{memory_text(budget)} are free: at most {largest_frames(need, budget) + earlier} frames fit "
            "(a lower fps, or count=...)"
        )
