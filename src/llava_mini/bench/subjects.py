"""What is measured: models with random weights at the shapes of conf/, their inputs, and ways to a first token.

All ways work with the same weights: transformers' LLaVA, and our model in several variants. This module needs only
torch and transformers (which brings PyYAML), so that a machine with a GPU needs nothing else.

Shapes: B prompts, F frames per prompt, V views, T text tokens.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import LlavaConfig, LlavaForConditionalGeneration

from llava_mini.bench.flop_count import Count, Work, count
from llava_mini.inference.cache import SessionCache
from llava_mini.inference.frame_cache import FrameCache, FrameCacheConfig
from llava_mini.models import LlavaMiniConfig, LlavaMiniForConditionalGeneration
from llava_mini.models.frame_batch import frames_at_once
from llava_mini.models.inference_optimizations import RELEASE, InferenceOptimizations
from llava_mini.models.initialization import default_dtype
from llava_mini.models.prepacked import prepack
from llava_mini.settings import conf
from llava_mini.units import GIB

TRANSFORMERS, UNCOMPRESSED = "transformers' LLaVA", "ours, no compression"
RELEASED, OURS = "LLaVA-Mini, release's order", "LLaVA-Mini, ours"
WAYS = (TRANSFORMERS, UNCOMPRESSED, RELEASED, OURS)

_TINY_VOCABULARY = 64  # tokens; the toy world's preset has as many as its tokenizer


def card_gib(hardware: str) -> float:
    """Return the GiB of memory of a card in conf/hardware."""
    return float(conf(f"hardware/{hardware}")["hardware"]["memory_gib"])


def card_bytes(hardware: str) -> int:
    """Return the bytes of memory of a card in conf/hardware."""
    return int(card_gib(hardware) * GIB)


def model_config(preset: str, compressor: str = "query", fusion_layers: int | None = None, **fields: Any) -> Any:
    """Return the LlavaMiniConfig of a preset, whose last token is the placeholder.

    `fusion_layers`: None for as many as in conf/config.yaml. `fields` are further fields of the config; `C` is the
    compressor's.
    """
    parts, spec = conf(f"model/{preset}"), conf(f"compressor/{compressor}")
    if "C" in fields:
        spec["C"] = fields.pop("C")
    text = {"vocab_size": _TINY_VOCABULARY, **parts["text_config"]}
    return LlavaMiniConfig(
        vision_config=parts["vision_config"],
        text_config=text,
        image_token_id=text["vocab_size"] - 1,
        vision_feature_layer=parts["vision_feature_layer"],
        compressor=spec,
        num_fusion_layers=conf("config")["fusion"]["num_layers"] if fusion_layers is None else fusion_layers,
        **fields,
    )


def mid_size() -> LlavaMiniConfig:
    """Return the mid-size config for CPUs: 331 GFLOPs for an image without compression, 64 with it.

    It keeps the real proportions: nearly all work of the uncompressed model is in the language model.
    """
    vision = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 6}
    text = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 32, "num_attention_heads": 12}
    return LlavaMiniConfig(
        vision_config={**vision, "patch_size": 14, "image_size": 336, "projection_dim": 384},
        text_config={**text, "vocab_size": 32000, "max_position_embeddings": 4096},
        image_token_id=31999,
        num_fusion_layers=4,
    )


def on_meta(config: LlavaMiniConfig) -> LlavaMiniForConditionalGeneration:
    """Return a model on the meta device, in evaluation mode and without gradients."""
    with torch.device("meta"):
        return LlavaMiniForConditionalGeneration(config).eval().requires_grad_(False)


def changed(config: LlavaMiniConfig, **fields: Any) -> LlavaMiniConfig:
    """Return the config with other values of some fields."""
    kept = {name: value for name, value in config.to_dict().items() if name != "model_type"}
    return LlavaMiniConfig(**{**kept, **fields})


def plain_config(config: LlavaMiniConfig) -> LlavaMiniConfig:
    """Return the config without compression and pre-fusion."""
    return changed(config, compressor=conf("compressor/none"), num_fusion_layers=0)


class Models:
    """All compared models, which share one vision tower, projector and language model. Weights are random.

    The config's placeholder id is in the vocabulary, as transformers' LLaVA needs. With `prepacked` linear layers are
    prepacked as `inference.loading.load` does on a CPU, for all models, as they share the layers.
    """

    def __init__(self, config: LlavaMiniConfig, device: torch.device, dtype: torch.dtype, prepacked: bool = False):
        self.config, self.device, self.dtype = config, device, dtype
        with device, default_dtype(dtype):
            self.mini = LlavaMiniForConditionalGeneration(config).eval().requires_grad_(False)
        if prepacked:
            prepack(self.mini)
        self.plain = on_meta(plain_config(config))
        with torch.device("meta"):
            theirs = LlavaConfig(
                vision_config=config.vision_config,
                text_config=config.text_config,
                image_token_index=config.image_token_id,
                vision_feature_layer=config.vision_feature_layer,
                projector_hidden_act=config.projector_hidden_act,
            )
            self.llava = LlavaForConditionalGeneration(theirs).eval()
        mini, llava = self.mini, self.llava.model
        self.plain.vision_tower, self.plain.projector = mini.vision_tower, mini.projector
        self.plain.language_model = mini.language_model
        llava.vision_tower, llava.language_model = mini.vision_tower, mini.language_model.model
        self.llava.lm_head = mini.language_model.lm_head
        llava.multi_modal_projector.linear_1 = mini.projector.linear_1
        llava.multi_modal_projector.linear_2 = mini.projector.linear_2

    def of(self, way: str) -> Any:
        """Return the model of a way, with its inference optimizations set."""
        if way == TRANSFORMERS:
            return self.llava
        model = self.plain if way == UNCOMPRESSED else self.mini
        model.optimizations = RELEASE if way == RELEASED else InferenceOptimizations()
        return model

    def prompt(self, way: str, work: Work, batch: int = 1) -> dict[str, Any]:
        """Return random inputs [B, F·K + T] for a way's model. transformers' LLaVA reads views as images."""
        size, placeholder = self.config.vision_config.image_size, self.config.image_token_id
        model = self.of(way)
        per_frame = work.views * self.mini.side**2 if way == TRANSFORMERS else model.layout.frame(work.views)
        text = torch.randint(0, placeholder, (batch, work.text_tokens), device=self.device)
        frames = torch.full((batch, work.frames * per_frame), placeholder, device=self.device)
        shape = (batch * work.frames, work.views, 3, size, size)
        pixels = torch.randn(shape, device=self.device, dtype=self.dtype)
        inputs = {"input_ids": torch.cat([frames, text], dim=1)}
        if way == TRANSFORMERS:
            return inputs | {"pixel_values": pixels.flatten(0, 1)}
        return inputs | {"pixel_values": pixels, "num_frames": torch.full((batch,), work.frames, device=self.device)}

    def flops(self, way: str, work: Work) -> int:
        """Return the FLOPs up to the first token of one prompt, including attention."""
        config = plain_config(self.config) if way in (TRANSFORMERS, UNCOMPRESSED) else self.config
        optimizations = RELEASE if way == RELEASED else InferenceOptimizations(stop_tower=way != TRANSFORMERS)
        return sum(count(on_meta(config), work, optimizations).parts_with_attention.values())

    def later_flops(self, work: Work, shared: int) -> int:
        """Return the FLOPs of a follow-up question about cached frames.

        The language model has already read the first `shared` tokens of its text.
        """

        def counted(text_tokens: int) -> Count:
            later = replace(work, cached=True, text_tokens=text_tokens)
            return count(on_meta(self.config), later, InferenceOptimizations())

        whole = counted(work.text_tokens).parts_with_attention
        few = counted(work.text_tokens - shared).parts_with_attention
        return sum(whole.values()) - whole["language_model"] + few["language_model"]


def first_token(model: Any, inputs: dict[str, Any]) -> Any:
    """Run a prefill and return the KV cache."""
    return model(**inputs, use_cache=True, logits_to_keep=1).past_key_values


def further_tokens(model: Any, cache: Any, tokens: int) -> None:
    """Decode greedily after the cache's content, then crop the cache to its earlier length."""
    length = cache.get_seq_length()
    ids = torch.zeros(1, 1, dtype=torch.int64, device=model.device)
    for _ in range(tokens):
        ids = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1:].argmax(-1)
    cache.crop(length - cache.get_seq_length())


class FollowUp:
    """Frames that are encoded and stored as `Session` stores them, ready for a follow-up question.

    `shared` text tokens before the frames, such as a system text, are the same in every question. Pre-fusion reads them
    with the question; the language model has already read them.
    """

    def __init__(self, models: Models, work: Work, shared: int = 0):
        self.model, self.shared = models.of(OURS), shared
        inputs = models.prompt(OURS, work)
        self.text_ids = inputs["input_ids"][:, -work.text_tokens :]
        self.store = FrameCache(self.model, FrameCacheConfig(), kv_budget=2**62)
        most = frames_at_once(models.config, work.views, models.dtype, models.device)
        for pixels in inputs["pixel_values"].split(most):
            self.store.add(0, self.model.encode(pixels), most)
        self.cache = SessionCache(models.config)
        begins_ND = torch.cat([self._text()[:shared], self.store.tokens()])
        self.begins = len(begins_ND)
        self.model.get_decoder()(inputs_embeds=begins_ND[None], past_key_values=self.cache, use_cache=True)

    def ask(self) -> Any:
        """Answer a question up to its first token and return the language model's output."""
        self.cache.cut(self.begins)
        asked_SD = self._text()[self.shared :]
        return self.model.language_model(inputs_embeds=asked_SD[None], past_key_values=self.cache, logits_to_keep=1)

    def _text(self) -> Tensor:
        return self.store.read(self.model.get_input_embeddings()(self.text_ids[0]))
