"""Modality pre-fusion: N_fusion decoder layers that let the instruction read all patches before they are compressed.

Sequence of a frame: [all patches ; compressed tokens (release) ; instruction], causal, positions counted over visible
entries only (paper section 4.2, REFERENCE section 2).

Entries before the instruction cannot read it, so the sequence can be processed in two steps: `prefill_visual` for
patches and compressed tokens, once for a frame, and `attend_text` for any instruction against their keys and values
(REFERENCE section 4).

Shapes: F frames, L entries of the sequence, P patches, K compressed tokens, S entries of the instruction, D width, H
heads of keys and values, E width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from llava_mini.errors import refused
from llava_mini.models.attention import mask_for, packed_mask, packed_positions
from llava_mini.models.decoder_layer import KeysValues, Rope, layer_rows
from llava_mini.models.language_model import build_decoder_layers


@dataclass(frozen=True)
class VisualKV:
    """Keys and values [F, H, L, E] of the entries before the instruction, a pair for every pre-fusion layer."""

    layers: tuple[KeysValues, ...]

    @property
    def length(self) -> int:
        """Number L of entries before the instruction."""
        return self.layers[0][0].shape[2]


class Prefusion(nn.Module):
    """Stack of decoder layers of the language model's class; with 0 layers a module that is never called."""

    def __init__(self, *, text_config: PreTrainedConfig, num_layers: int):
        super().__init__()
        self.layers, self.rotary_emb, self.config = build_decoder_layers(text_config, num_layers)

    def forward(
        self, hidden_FLD: Tensor, visible_FL: Tensor, turn_ids_FL: Tensor | None, first: int = 0, trim: bool = False
    ) -> Tensor:
        """Fuse a sequence; output rows of hidden entries have arbitrary values, and nothing may read them.

        Args:
            hidden_FLD: Input embeddings, [F, L, D].
            visible_FL: Mask of the visible entries, [F, L] bool.
            turn_ids_FL: Turn of every entry, [F, L] int64; 0 for patches, compressed tokens and shared text; None: one
                conversation.
            first: Index of the first row to return.
            trim: Whether the last layer computes only keys and values for rows before `first`; not with eager attention
                or dropout in that layer, which `layer_rows` does not do.

        Returns:
            Rows from `first` on, [F, L - first, D].
        """
        position_ids = packed_positions(visible_FL, turn_ids_FL)
        cos_FLE, sin_FLE = self.rotary_emb(hidden_FLD, position_ids=position_ids)
        mask = mask_for(self.config._attn_implementation, visible_FL, turn_ids_FL, hidden_FLD.dtype)
        last = len(self.layers) - 1
        for number, layer in enumerate(self.layers):
            if number == last and trim and 0 < first < hidden_FLD.shape[1] and self._has_parts(layer):
                return _rows_from(first, layer, hidden_FLD, (cos_FLE[:, None], sin_FLE[:, None]), mask)
            hidden_FLD = layer(
                hidden_FLD, attention_mask=mask, position_embeddings=(cos_FLE, sin_FLE), position_ids=position_ids
            )
        return hidden_FLD[:, first:]

    def prefill_visual(self, hidden_FLD: Tensor, first: int, trim: bool = True) -> tuple[Tensor, VisualKV]:
        """Process the part of the sequence before the instruction; no entry of it is hidden.

        Args:
            hidden_FLD: Patches, followed by the entries that are fused with them, [F, L, D].
            first: Index of the first row to return; L for none.
            trim: Whether the last layer computes only keys and values for rows before `first`.

        Returns:
            Rows from `first` on, [F, L - first, D], and the keys and values that `attend_text` needs.
        """
        rope = self._rope(hidden_FLD, torch.arange(hidden_FLD.shape[1], device=hidden_FLD.device)[None])
        kept = []
        for layer in self.layers[:-1]:
            hidden_FLD, own = layer_rows(layer, hidden_FLD, rope)
            kept.append(own)
        rows_FRD, own = layer_rows(self.layers[-1], hidden_FLD, rope, first=first if trim else 0)
        return rows_FRD if trim else rows_FRD[:, first:], VisualKV((*kept, own))

    def attend_text(
        self, text_FSD: Tensor, seen: VisualKV, visible_FS: Tensor, turn_ids_FS: Tensor | None = None
    ) -> Tensor:
        """Fuse an instruction with frames that were prefilled; equals `forward` of both together, row by row.

        Args:
            text_FSD: Embeddings of the instruction, [F, S, D]; [1, S, D] where it is the same for all frames.
            seen: Keys and values of the frames.
            visible_FS: Mask of the visible entries, [F or 1, S] bool.
            turn_ids_FS: Turn of every entry, [F or 1, S] int64; 0 for shared text; None: one conversation.

        Returns:
            Fused instruction, [F, S, D].
        """
        # A frozen embedding may be in half precision. The norm gives the type: that of 4-bit weights is no guide.
        text_FSD = text_FSD.to(self.layers[0].get_parameter("input_layernorm.weight").dtype)
        rope = self._rope(text_FSD, seen.length + packed_positions(visible_FS, turn_ids_FS))
        text_mask = packed_mask(visible_FS, turn_ids_FS, text_FSD.dtype)
        mask = nn.functional.pad(text_mask, (seen.length, 0), value=True)
        for layer, before in zip(self.layers, seen.layers, strict=True):
            text_FSD, _ = layer_rows(layer, text_FSD, rope, before=before, mask=mask)
        return text_FSD

    def copy_from(self, language_model: PreTrainedModel) -> None:
        """Start from the language model's first layers (initialization `copy`).

        Raises:
            UserError: when the language model has fewer layers than pre-fusion.
        """
        source = language_model.get_decoder().layers
        check_copy(len(self.layers), len(source))
        for layer, first in zip(self.layers, source, strict=False):
            layer.load_state_dict(first.state_dict())

    def become_identity(self) -> None:
        """Set what every layer adds to its input to zero, so that pre-fusion returns its input (init `identity`).

        The other weights stay, and training begins with the output projections: the block expansion of LLaMA Pro
        (arXiv 2401.02415). A pretrained language model then reads its own embeddings at first, as without pre-fusion.
        """
        for name, parameter in self.layers.named_parameters():
            if is_layer_output(name):
                nn.init.zeros_(parameter)

    def _has_parts(self, layer: Any) -> bool:
        """Whether `layer_rows` does everything that the layer itself does."""
        drops = layer.training and self.config.attention_dropout > 0
        return self.config._attn_implementation == "sdpa" and not drops

    def _rope(self, hidden_FLD: Tensor, position_ids: Tensor) -> Rope:
        cos, sin = self.rotary_emb(hidden_FLD, position_ids=position_ids)
        return cos[:, None], sin[:, None]


def is_layer_output(name: str) -> bool:
    """Whether a parameter of decoder layers belongs to a projection whose output is added to the layer's input."""
    return name.rpartition(".")[0].endswith((".self_attn.o_proj", ".mlp.down_proj"))


def check_copy(num_layers: int, available: int) -> None:
    """Raises UserError when the language model has fewer layers than pre-fusion starts from."""
    if num_layers > available:
        reason = f"init 'copy' and 'identity' allow at most the language model's {available} layers"
        raise refused("fusion.num_layers", num_layers, reason)


def _rows_from(first: int, layer: Any, hidden_FLD: Tensor, rope: Rope, mask: Tensor) -> Tensor:
    """Return the layer's output for rows from `first` on; activations are recomputed where the layer's own would be."""
    rows = partial(layer_rows, layer, rope=rope, first=first, mask=mask[:, :, first:])
    if layer.gradient_checkpointing and layer.training:
        return layer._gradient_checkpointing_func(rows, hidden_FLD)[0]
    return rows(hidden_FLD)[0]
