"""Cache of encoded frames, so that a follow-up question can be fused with them.

The cache stores the compressed tokens of every frame and, in host memory, the vision tower's features. Within a budget
it also stores pre-fusion's keys and values of the frame's patches; a question then costs only its own tokens. For
frames beyond the budget, keys and values are computed again from the features for every question.

Shapes: F frames, V views, N patches of a view, L entries before an instruction, S tokens of it, K compressed tokens of
a frame, D width of the language model, Dv of the vision tower.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from llava_mini.errors import refused
from llava_mini.inference.memory import INT8, FrameShape
from llava_mini.inference.quantize import Quantized, dequantize, quantize
from llava_mini.models import LlavaMiniForConditionalGeneration
from llava_mini.models.prefusion import VisualKV

_KINDS = {"model": None, "float16": torch.float16, "int8": INT8}
KINDS = tuple(_KINDS)
_READ = 8  # frames that a chunk may always grow to: few frames with a question's few rows make small matrices
Kind = Literal["model", "float16", "int8"]


@dataclass(frozen=True)
class FrameCacheConfig:
    """Options for how frames are stored.

    Args:
        kv_budget: Bytes for keys and values; for frames beyond it they are computed again from the features. None: a
            quarter of the free memory on the device when a session begins.
        kv: Type of the keys and values: the model's, float16, or int8 with a scale for every token and head.
        kv_place: Memory of the keys and values: "device", or "host" to copy them to the device for every question.
        features: Type of the features: the model's, float16 or int8.

    Raises:
        UserError: a value is not allowed, or the budget is negative.
    """

    kv_budget: int | None = None
    kv: Kind = "model"
    kv_place: Literal["device", "host"] = "device"
    features: Kind = "model"

    def __post_init__(self) -> None:
        for name, given, allowed in (
            ("kv", self.kv, KINDS),
            ("kv_place", self.kv_place, ("device", "host")),
            ("features", self.features, KINDS),
        ):
            if given not in allowed:
                raise refused(f"keep.{name}", given, allowed=", ".join(allowed))
        if self.kv_budget is not None and self.kv_budget < 0:
            raise refused("keep.kv_budget", self.kv_budget, allowed="0 bytes and more")

    def kv_dtype(self, model: torch.dtype) -> torch.dtype:
        """Return the type of keys and values for a model of type `model`."""
        return _KINDS[self.kv] or model

    def features_dtype(self, model: torch.dtype) -> torch.dtype:
        """Return the type of features for a model of type `model`."""
        return _KINDS[self.features] or model


@dataclass(frozen=True)
class _Held:
    """A tensor as it is stored: `features` in a floating type, or the fields of `Quantized` in 8 bits."""

    parts: dict[str, Tensor]

    @classmethod
    def of(cls, values: Tensor, dtype: torch.dtype, device: torch.device) -> _Held:
        if dtype == INT8:
            return cls({name: part.to(device) for name, part in quantize(values, 8)._asdict().items()})
        return cls({"features": values.to(device, dtype, copy=True)})  # a view would keep the whole tensor in memory

    def get(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        if "features" in self.parts:
            return self.parts["features"].to(device, dtype)
        out = torch.empty(self.shape, dtype=dtype, device=device)
        dequantize(Quantized(**{name: part.to(device) for name, part in self.parts.items()}), 8, out)
        return out

    def joined(self, other: _Held) -> _Held:
        return _Held({name: torch.cat([part, other.parts[name]]) for name, part in self.parts.items()})

    @property
    def shape(self) -> torch.Size:
        return self.parts["features" if "features" in self.parts else "codes"].shape

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts.values())


@dataclass(frozen=True)
class Chunk:
    """Frames of one image or video, with the same number of views, stored together.

    Attributes:
        tokens: Compressed tokens after pre-fusion [F, K, D].
        features: Features of the vision tower [F, V, N, Dv]; None for a model without pre-fusion.
        kv: Keys and values of every pre-fusion layer; None: they are computed again from the features.
    """

    item: int
    tokens: Tensor
    features: _Held | None
    kv: tuple[tuple[_Held, _Held], ...] | None

    def joins(self, other: Chunk, most: int) -> bool:
        return (
            self.item == other.item
            and len(self.tokens) + len(other.tokens) <= most
            and self.tokens.shape[1:] == other.tokens.shape[1:]
            and (self.kv is None) == (other.kv is None)
        )

    def joined(self, other: Chunk) -> Chunk:
        features, kv = self.features, self.kv
        if features is not None and other.features is not None:
            features = features.joined(other.features)
        if kv is not None and other.kv is not None:
            kv = tuple(
                (keys.joined(more[0]), values.joined(more[1]))
                for (keys, values), more in zip(kv, other.kv, strict=True)
            )
        return replace(self, tokens=torch.cat([self.tokens, other.tokens]), features=features, kv=kv)


class FrameCache:
    """Cache of the frames of a session, in order; keys and values take at most `kv_budget` bytes in all."""

    def __init__(self, model: LlavaMiniForConditionalGeneration, keep: FrameCacheConfig, kv_budget: int):
        self.model, self.keep, self.kv_budget = model, keep, kv_budget
        self.chunks: list[Chunk] = []
        self.kv_bytes = 0

    def __len__(self) -> int:
        return sum(len(chunk.tokens) for chunk in self.chunks)

    def add(self, item: int, features_FVND: Tensor, most: int) -> None:
        """Compress frames of image or video `item`, read them with pre-fusion, and store what follow-up questions need.

        `most` is the number of frames that a question reads together, if it is more than 8.
        """
        tokens, seen = self._seen(features_FVND)
        features = None
        if seen is not None:
            features = _Held.of(features_FVND, self.keep.features_dtype(features_FVND.dtype), torch.device("cpu"))
        chunk = self._with_kv(Chunk(item, tokens.clone(), features, None), seen)
        if self.chunks and self.chunks[-1].joins(chunk, max(most, _READ)):
            self.chunks[-1] = self.chunks[-1].joined(chunk)
        else:
            self.chunks.append(chunk)

    @torch.no_grad()
    def restore(self, item: int, tokens_FKD: Tensor, parts: dict[str, Tensor]) -> None:
        """Add frames stored by another cache of the same model: its `Chunk.tokens` and `features.parts`.

        Raises:
            ValueError: the frames do not fit this model.
        """
        model, seen, features = self.model, None, None
        tokens_FKD = tokens_FKD.to(model.device, model.dtype)
        if tokens_FKD.dim() != 3 or not len(tokens_FKD) or tokens_FKD.shape[2] != model.config.text_config.hidden_size:
            raise ValueError(f"tokens of shape {list(tokens_FKD.shape)}")
        if model.config.num_fusion_layers:
            if set(parts) not in ({"features"}, set(Quantized._fields)):
                raise ValueError(f"features in the parts {sorted(parts)}")
            features = _Held(parts)
            expected = (len(tokens_FKD), model.side**2, model.config.vision_config.hidden_size)
            if (features.shape[0], *features.shape[2:]) != expected:
                raise ValueError(f"features of shape {list(features.shape)}")
            if self.kv_bytes + self._kv_bytes(features.shape[1], tokens_FKD) <= self.kv_budget:
                seen = self._seen(features.get(model.dtype, model.device))[1]
        elif parts:
            raise ValueError(f"{', '.join(sorted(parts))} of a model without pre-fusion")
        self.chunks.append(self._with_kv(Chunk(item, tokens_FKD, features, None), seen))

    def tokens_by_item(self) -> Counter[int]:
        """Return the number of compressed tokens of each image and video."""
        found = Counter[int]()
        for chunk in self.chunks:
            found[chunk.item] += chunk.tokens.shape[0] * chunk.tokens.shape[1]
        return found

    def frames_of(self, item: int) -> int:
        """Return the number of frames of an image or video."""
        return sum(len(chunk.tokens) for chunk in self.chunks if chunk.item == item)

    def tokens(self) -> Tensor:
        """Return the compressed tokens of all frames in order [sum of K, D]."""
        return torch.cat([chunk.tokens.flatten(0, 1) for chunk in self.chunks])

    def read(self, text_SD: Tensor) -> Tensor:
        """Return an instruction fused with every frame: its mean over the frames [S, D]."""
        if not self.chunks or self.model.config.num_fusion_layers == 0 or not len(text_SD):
            return text_SD
        # Half precision cannot represent a sum of thousands of frames.
        precise = torch.promote_types(text_SD.dtype, torch.float32)
        total = torch.zeros_like(text_SD, dtype=precise)
        visible_FS = torch.ones(1, len(text_SD), dtype=torch.bool, device=text_SD.device)
        for seen in self._all_seen():
            total += self.model.prefusion.attend_text(text_SD[None], seen, visible_FS).to(precise).sum(0)
        return (total / len(self)).to(text_SD.dtype)

    def held_bytes(self) -> dict[str, int]:
        """Return the number of stored bytes of tokens, features and kv."""
        features = sum(chunk.features.nbytes for chunk in self.chunks if chunk.features is not None)
        kv = sum(held.nbytes for chunk in self.chunks for pair in chunk.kv or () for held in pair)
        return {"tokens": sum(chunk.tokens.nbytes for chunk in self.chunks), "features": features, "kv": kv}

    def _all_seen(self) -> Iterator[VisualKV]:
        device, dtype = self.model.device, self.model.dtype
        for chunk in self.chunks:
            if chunk.kv is not None:
                layers = tuple((keys.get(dtype, device), values.get(dtype, device)) for keys, values in chunk.kv)
                yield VisualKV(layers)
            else:
                assert chunk.features is not None
                seen = self._seen(chunk.features.get(dtype, device))[1]
                assert seen is not None
                yield seen

    def _seen(self, features_FVND: Tensor) -> tuple[Tensor, VisualKV | None]:
        """Return compressed tokens [F, K, D] after pre-fusion, and its keys and values; None without pre-fusion."""
        model = self.model
        visual = model.compress_and_project(features_FVND)
        if model.config.num_fusion_layers == 0:
            return visual.compressed_FKD, None
        return model.prefill_visual(visual)

    def _with_kv(self, chunk: Chunk, seen: VisualKV | None) -> Chunk:
        """Return the chunk with its keys and values if they are within the budget, else without."""
        if seen is None or chunk.features is None:
            return chunk
        size = self._kv_bytes(chunk.features.shape[1], chunk.tokens)
        if self.kv_bytes + size > self.kv_budget:
            return chunk
        self.kv_bytes += size
        place = self.model.device if self.keep.kv_place == "device" else torch.device("cpu")
        kind = self.keep.kv_dtype(self.model.dtype)
        kv = tuple((_Held.of(keys, kind, place), _Held.of(values, kind, place)) for keys, values in seen.layers)
        return replace(chunk, kv=kv)

    def _kv_bytes(self, views: int, tokens_FKD: Tensor) -> int:
        shape = FrameShape.of(self.model.config, tokens_FKD.shape[1], views)
        return len(tokens_FKD) * shape.kv_bytes(self.keep.kv_dtype(self.model.dtype))
