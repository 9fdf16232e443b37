"""Memory of a session before it is allocated: what a token and a frame cost in bytes, and how many frames fit.

Everything is arithmetic over shapes, so it is also true for a model that is not on this machine. A frame always costs
its compressed tokens in the language model's KV cache, and what is stored of it so that a follow-up question can be
fused with its patches.

LLaVA-Mini-7B in half precision, 576 patches, one token a frame: 512 KiB in the KV cache and 8 KiB as compressed token;
for fusion 36.1 MiB as keys and values of four layers (18.6 MiB in 8 bits), or 1.1 MiB as features (0.6 MiB in 8 bits),
from which they are computed again.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import PreTrainedConfig

from llava_mini.errors import UserError
from llava_mini.inference.cache import capacity
from llava_mini.inference.quantize import entry_bytes
from llava_mini.models import LlavaMiniConfig
from llava_mini.models.language_model import head_dim
from llava_mini.models.vision_tower import patches_per_side
from llava_mini.token_layout import SINGLE_VIEW
from llava_mini.units import size_text

INT8 = torch.int8  # used like a type: 8 bits, with a scale and an offset for every entry


@dataclass(frozen=True)
class KVShape:
    """Shape of the keys and values of a stack of decoder layers."""

    layers: int
    heads: int
    head_dim: int

    @classmethod
    def of(cls, text_config: PreTrainedConfig, layers: int | None = None) -> KVShape:
        """Return the shape for the language model, or for `layers` layers of its kind (pre-fusion)."""
        return cls(
            text_config.num_hidden_layers if layers is None else layers,
            text_config.num_key_value_heads,
            head_dim(text_config),
        )

    def token_bytes(self, dtype: torch.dtype, bits: int | None = None) -> int:
        """Return bytes of a token's keys and values in all layers; `bits`: quantized, as in a frozen `SessionCache`."""
        head = self.head_dim * dtype.itemsize if bits is None else entry_bytes(self.head_dim, bits)
        return 2 * self.layers * self.heads * head

    def cache_bytes(self, tokens: int, dtype: torch.dtype, bits: int | None = None) -> int:
        """Return the most bytes that a `SessionCache` takes: with room for more tokens, and while it is read or grows.

        In few bits all tokens count as frozen, so a chunk that is being read comes in addition (`token_bytes`).
        """
        cache_size = capacity(tokens) * self.token_bytes(dtype, bits)
        # A layer in full precision, and its keys or values while they are unpacked; or a buffer that is reallocated.
        layer = KVShape(1, self.heads, self.head_dim).token_bytes(dtype)
        unpacked = 0 if bits is None else layer // 2 * (2 if dtype == torch.bfloat16 else 1)
        return cache_size + tokens * (layer // 2 if bits is None else layer + unpacked)


@dataclass(frozen=True)
class FrameShape:
    """Shape of a frame in a model, and of what may be stored of it.

    `patches` are those of all views. `fused` says whether compressed tokens pass through pre-fusion and have keys and
    values there too (release).
    """

    prefusion: KVShape
    patches: int
    tokens: int
    vision_dim: int
    text_dim: int
    fused: bool

    @classmethod
    def of(cls, config: LlavaMiniConfig, tokens: int, views: int = SINGLE_VIEW) -> FrameShape:
        """Return the shape of a frame with `views` views and `tokens` compressed tokens (`model.layout.frame`)."""
        return cls(
            KVShape.of(config.text_config, config.num_fusion_layers),
            views * patches_per_side(config.vision_config) ** 2,
            tokens,
            config.vision_config.hidden_size,
            config.text_config.hidden_size,
            config.fuse_compressed_tokens,
        )

    def kv_bytes(self, dtype: torch.dtype) -> int:
        """Return bytes of pre-fusion's keys and values for patches and fused compressed tokens; `INT8`: in 8 bits."""
        entries = self.patches + (self.tokens if self.fused else 0)
        return entries * self.prefusion.token_bytes(dtype, 8 if dtype == INT8 else None)

    def features_bytes(self, dtype: torch.dtype) -> int:
        """Return bytes of the vision tower's features, from which all else is computed again; `INT8`: in 8 bits."""
        return self.patches * (entry_bytes(self.vision_dim, 8) if dtype == INT8 else self.vision_dim * dtype.itemsize)

    def tokens_bytes(self, dtype: torch.dtype) -> int:
        """Return bytes of the compressed tokens; without pre-fusion nothing else is needed."""
        return self.tokens * self.text_dim * dtype.itemsize


def largest_frames(need: Callable[[int], int], budget: int) -> int:
    """Return the largest number of frames whose `need` in bytes is within the budget; `need` grows with the number."""
    return bisect_right(range(1, 2**40), budget, key=need)


def check_frames(frames: int, need: Callable[[int], int], budget: int, where: str, earlier: int = 0) -> None:
    """Check that the `need` of frames in bytes is within a budget before any is read.

    The message names the memory, `where`. It counts `earlier` frames of the same video that are stored already, which
    `need` does not.

    Raises:
        UserError: the frames do not fit; the message gives the largest number that does.
    """
    if need(frames) > budget:
        raise UserError(
            f"{frames + earlier} frames need {size_text(need(frames))}{' more' if earlier else ''} of {where}, "
            f"{size_text(budget)} are free: at most {largest_frames(need, budget) + earlier} frames fit "
            "(a lower fps, or count=...)",
            hint="count=...",
        )
