"""KV cache of a session: the language model's keys and values of all tokens read, for follow-up questions.

Tokens are added without copying those before them each time. A follow-up question cuts the cache back to the shared
beginning. The beginning may be quantized (`freeze`); a forward pass then reads one layer at a time in full precision.

Shapes: H heads of keys and values, L cached tokens, T new tokens, E width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, DynamicLayer

from llava_mini.errors import refused
from llava_mini.inference.quantize import BITS, Quantized, dequantize, quantize

BLOCK = 64  # tokens


def capacity(tokens: int) -> int:
    """Return the number of tokens to allocate room for when `tokens` are stored: an eighth more, in whole blocks.

    Growing by a fixed share copies each token about nine times at most, however long the prompt becomes.
    """
    return -(-(tokens + tokens // 8) // BLOCK) * BLOCK


class SessionCache(Cache):
    """Keys and values of one conversation, as `past_key_values` of LLaVA-Mini or of its language model alone.

    Frozen keys and values have 8 or 4 `bits`; None: they stay in the model's type.

    Raises:
        UserError: `bits` is another number.
    """

    layers: list[SessionLayer]

    def __init__(self, config: PreTrainedConfig, bits: int | None = None):
        if bits is not None and bits not in BITS:
            raise refused("kv_bits", bits, allowed=f"{', '.join(map(str, BITS))} and none")
        self.bits = bits
        layers = config.get_text_config(decoder=True).num_hidden_layers
        super().__init__(layers=[SessionLayer(bits) for _ in range(layers)])

    def freeze(self) -> None:
        """Quantize everything that is stored in full precision now; do nothing without bits."""
        for layer in self.layers:
            layer.freeze()

    def cut(self, length: int) -> None:
        """Keep only the first `length` tokens.

        Raises:
            ValueError: `length` is negative, or fewer tokens are stored.
        """
        held = self.get_seq_length()
        if not 0 <= length <= held:
            raise ValueError(f"cut to {length} tokens, {held} are held")
        self.crop(length - held)

    @property
    def used_bytes(self) -> int:
        """Bytes of the stored tokens."""
        return sum(rows.used_bytes for layer in self.layers for rows in layer.rows())

    @property
    def held_bytes(self) -> int:
        """Bytes of allocated memory: those of the tokens, and the room for more."""
        return sum(rows.held_bytes for layer in self.layers for rows in layer.rows())


class SessionLayer(DynamicLayer):
    """Keys and values of one layer: a frozen beginning in few bits, and later tokens in full precision."""

    def __init__(self, bits: int | None):
        super().__init__()
        self.bits = bits
        self._recent: tuple[_Rows, ...] = ()
        self._frozen: tuple[tuple[_Rows, ...], ...] = ()

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self._recent = (_Rows(), _Rows())
        self._frozen = tuple(tuple(_Rows() for _ in Quantized._fields) for _ in self._recent)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Add keys and values [1, H, T, E] and return all [1, H, L, E]; the result is valid until the next update.

        Raises:
            ValueError: there are several conversations, or keys with gradients; neither can be stored.
        """
        if len(key_states) != 1:
            raise ValueError(f"a SessionCache stores one conversation, the batch has {len(key_states)}")
        if key_states.requires_grad:
            raise ValueError("a SessionCache stores no gradients: call the model under torch.no_grad()")
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        keys, values = (
            self._whole(rows, new, frozen)
            for rows, new, frozen in zip(self._recent, (key_states, value_states), self._frozen, strict=True)
        )
        return keys, values

    def freeze(self) -> None:
        if self.bits is None or not self.is_initialized:
            return
        for rows, frozen in zip(self._recent, self._frozen, strict=True):
            if rows.length:
                for part, new in zip(frozen, quantize(rows.tensor, self.bits), strict=True):
                    part.append(new)
            rows.clear()

    def get_seq_length(self) -> int:
        return self.frozen_tokens + self._recent[0].length if self.is_initialized else 0

    @property
    def frozen_tokens(self) -> int:
        """Number of tokens that are stored in few bits."""
        return self._frozen[0][0].length if self.is_initialized else 0

    def crop(self, tokens_to_remove: int) -> None:
        """Drop the last -`tokens_to_remove` tokens, as in transformers."""
        if tokens_to_remove > 0:
            raise ValueError(f"crop({tokens_to_remove}): the number of tokens to remove is given as a negative number")
        if not self.is_initialized:
            return
        frozen = self.frozen_tokens
        length = self.get_seq_length() + tokens_to_remove
        for rows in self._recent:
            rows.cut(max(0, length - frozen))
        for part in (part for parts in self._frozen for part in parts):
            part.cut(min(length, frozen))

    def rows(self) -> list[_Rows]:
        """Return all parts that take memory."""
        return [*self._recent, *(part for parts in self._frozen for part in parts)]

    def _whole(self, rows: _Rows, new: Tensor, frozen: tuple[_Rows, ...]) -> Tensor:
        rows.append(new)
        if not frozen[0].length:
            return rows.tensor
        whole = new.new_empty(*new.shape[:2], frozen[0].length + rows.length, new.shape[3])
        assert self.bits is not None
        dequantize(Quantized(*(part.tensor for part in frozen)), self.bits, whole[:, :, : frozen[0].length])
        whole[:, :, frozen[0].length :] = rows.tensor
        return whole


class _Rows:
    """A tensor that grows along its second-to-last dimension, with room for more."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self._held = torch.empty(0)
        self.length = 0

    @property
    def tensor(self) -> Tensor:
        """View of the stored rows [..., L, E]."""
        return self._held[..., : self.length, :]

    def append(self, new: Tensor) -> None:
        """Add rows [..., T, E]."""
        length = self.length + new.shape[-2]
        if not self.length or length > self._held.shape[-2]:
            self._hold(new, length)
        self._held[..., self.length : length, :] = new
        self.length = length

    def cut(self, length: int) -> None:
        """Keep only the first `length` rows; free the memory if there is more room than `capacity` allows."""
        self.length = length
        if not length:
            self.clear()
        elif self._held.shape[-2] > capacity(length):
            self._hold(self._held, length)

    @property
    def used_bytes(self) -> int:
        return self._held.nbytes // max(1, self._held.shape[-2]) * self.length if self.length else 0

    @property
    def held_bytes(self) -> int:
        return self._held.nbytes

    def _hold(self, like: Tensor, length: int) -> None:
        """Allocate room for `length` rows and more, and copy the stored rows."""
        before = self.tensor if self.length else None
        with torch.inference_mode(False):  # a tensor made in inference mode could not be written to outside it
            self._held = like.new_empty(*like.shape[:-2], capacity(length), like.shape[-1])
        if before is not None:
            rows = min(before.shape[-2], length)
            self._held[..., :rows, :] = before[..., :rows, :]
