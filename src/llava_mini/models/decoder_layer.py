"""Parts of a decoder layer of transformers: keys and values of all rows, everything else for some rows.

Llama, Mistral and Qwen2 use the same names for their parts. The layers' own forward pass computes every row of its
input; the results are the same (tested for each family).

Shapes: F sequences, L entries, R rows that are computed, D width, H heads of keys and values, E width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.models.llama.modeling_llama import rotate_half

Rope = tuple[Tensor, Tensor]  # cosines and sines [F or 1, 1, L, E]
KeysValues = tuple[Tensor, Tensor]  # [F, H, L, E] each


def layer_rows(
    layer: Any,
    hidden_FLD: Tensor,
    rope: Rope,
    *,
    before: KeysValues | None = None,
    first: int = 0,
    mask: Tensor | None = None,
) -> tuple[Tensor, KeysValues]:
    """Return the layer's output for rows from `first` on, and the keys and values of all rows of its input.

    Args:
        layer: Decoder layer without dropout in its attention.
        hidden_FLD: Input of the layer; a single sequence may represent F sequences that differ only in `before`.
        rope: Cosines and sines for these entries.
        before: Keys and values of earlier entries, to which the rows attend too.
        first: Index of the first row to compute; L for none.
        mask: Mask [F or 1, 1, R, entries before and L] bool; None: each row attends to all entries up to itself.

    Returns:
        Output [F, L - first, D], and keys (rotated by their positions) and values [F, H, L, E].
    """
    attention = layer.self_attn
    normed_FLD = layer.input_layernorm(hidden_FLD)
    keys = _turned(_heads(attention.k_proj(normed_FLD), attention.head_dim), rope)
    own = keys, _heads(attention.v_proj(normed_FLD), attention.head_dim)
    if first == hidden_FLD.shape[1]:
        return hidden_FLD[:, first:], own
    # Contiguous, so that a few rows of many sequences are multiplied as one matrix, not sequence by sequence.
    rows_FRD, normed_FRD = hidden_FLD[:, first:].contiguous(), normed_FLD[:, first:].contiguous()
    queries = _heads(attention.q_proj(normed_FRD), attention.head_dim)
    queries = _turned(queries, (rope[0][:, :, first:], rope[1][:, :, first:]))
    keys, values = own
    if before is not None:
        queries, keys, values = (each.expand(len(before[0]), -1, -1, -1) for each in (queries, keys, values))
        keys, values = torch.cat([before[0], keys], dim=2), torch.cat([before[1], values], dim=2)
    rows, entries = queries.shape[2], keys.shape[2]
    if mask is None and rows < entries:
        mask = torch.ones(rows, entries, dtype=torch.bool, device=rows_FRD.device).tril(entries - rows)[None, None]
    rows_FRD = rows_FRD + attention.o_proj(_attended(queries, keys, values, mask, attention.scaling))
    return rows_FRD + layer.mlp(layer.post_attention_layernorm(rows_FRD)), own


def _attended(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Attention output [F, R, D]; with a mask, queries that share keys are stacked, so no key or value is repeated."""
    heads, rows = queries.shape[1:3]
    groups = heads // keys.shape[1]
    if mask is None:
        mixed = scaled_dot_product_attention(queries, keys, values, is_causal=True, scale=scale, enable_gqa=groups > 1)
    else:
        stacked = queries.unflatten(1, (-1, groups)).flatten(2, 3)
        mixed = scaled_dot_product_attention(stacked, keys, values, mask.repeat(1, 1, groups, 1), scale=scale)
        mixed = mixed.unflatten(2, (groups, rows)).flatten(1, 2)
    return mixed.transpose(1, 2).flatten(2)


def _heads(rows_FLD: Tensor, head_dim: int) -> Tensor:
    return rows_FLD.unflatten(2, (-1, head_dim)).transpose(1, 2)


def _turned(heads: Tensor, rope: Rope) -> Tensor:
    cos, sin = rope
    return heads * cos + rotate_half(heads) * sin
