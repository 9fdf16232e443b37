"""Peak memory of a config's step for any number of samples: the planner's result, and what the GPU adds to it."""

from __future__ import annotations

import warnings
from dataclasses import replace

import torch
from transformers import PreTrainedTokenizerBase

from llava_mini import assembly
from llava_mini.config import Config
from llava_mini.finetune import compute_dtype
from llava_mini.models.memory_options import decoder_layers
from llava_mini.plan.fakes import linear_4bit
from llava_mini.plan.ledger import FROZEN, GRADIENTS, OPTIMIZER, QUANTIZED, TRAINED, WORKSPACE
from llava_mini.plan.planner import Peak, Planner
from llava_mini.plan.report import CUBLAS
from llava_mini.plan.sample import Sample, largest_planned
from llava_mini.plan.step import Mode
from llava_mini.views import NUM_VIEWS

_SHARDED = (FROZEN, TRAINED, QUANTIZED, GRADIENTS, OPTIMIZER)


class Peaks:
    """Peak memory by number of samples. Up to `largest_planned` a step is simulated once; above, it is estimated.

    `new_tokens` are those of an answer; None: a training step is planned.
    """

    def __init__(
        self,
        config: Config,
        sample: Sample,
        new_tokens: int | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        self.config, self.sample, self.new_tokens = config, sample, new_tokens
        self.tokenizer = assembly.build_tokenizer(as_planned(config)) if tokenizer is None else tokenizer
        self.planner = planner_of(config, sample, self.tokenizer)
        self.largest_planned = largest_planned(self.planner.model, sample)
        self._known: dict[int, Peak] = {}

    def of(self, config: Config) -> Peaks:
        """Return the peaks of another config with the same tokenizer."""
        return Peaks(config, self.sample, self.new_tokens, self.tokenizer)

    def __call__(self, size: int) -> Peak:
        """Return the peak for a batch of `size` samples."""
        if size not in self._known:
            self._known[size] = self._planned(size) if size <= self.largest_planned else self._estimated(size)
        return self._known[size]

    def bytes(self, size: int) -> int:
        """Return the peak for a batch of `size` samples as a number of bytes, without its parts."""
        return self(size).bytes

    def _planned(self, size: int) -> Peak:
        if self.new_tokens is not None:
            return _on_card(self.planner.answer(size, self.new_tokens), self.config)
        return _on_card(self.planner.step(size), self.config, self.planner)

    def _estimated(self, size: int) -> Peak:
        """Extrapolate from the largest simulated batches: at every moment of a step memory is linear in its samples."""
        last = self.largest_planned
        below = last - max(1, last // 8)
        first, second = self(below).breakdown, self(last)
        parts = {
            part: high + max(0, high - first[part]) * (size - last) // (last - below)
            for part, high in second.breakdown.items()
        }
        return Peak(sum(parts.values()), parts, second.host_bytes)


def sample_of(config: Config, text_tokens: int = 300, frames: int = 1) -> Sample:
    """Return the assumed sample: an image with the config's views, or a video, whose frames have one view."""
    return Sample(
        text_tokens=text_tokens,
        frames=frames,
        views=NUM_VIEWS[config.data.views] if frames == 1 else 1,
        stored_features=bool(config.data.features),
        independent_turns=config.data.turns == "independent",
    )


def as_planned(config: Config) -> Config:
    """Return the config without downloading weights, if the preset gives their shape."""
    model = config.model
    if model.weights == "parts" and model.vision_config and "vocab_size" in model.text_config:
        return config.changed({"model": {"weights": "random"}})
    return config


def planner_of(config: Config, sample: Sample, tokenizer: PreTrainedTokenizerBase) -> Planner:
    """Return a planner for a config, without downloading or reading weights."""
    config = as_planned(config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about weights on meta, which are never initialized
        assembly.check_model(config)
        model = assembly.build_model(config, tokenizer, device="meta")
        stage = assembly.build_stage(config, model, linear_4bit=linear_4bit)
    trainer = config.trainer
    mixed, dtype = trainer.precision.endswith("-mixed"), compute_dtype(trainer.precision)
    if not mixed and dtype != torch.float32:
        stage.to(dtype)
    mode = Mode(
        autocast=dtype if mixed else None,
        on_gpu=on_gpu(config),
        clip=trainer.gradient_clip_val,
        accumulate=config.accumulate,
    )
    return Planner(stage, mode, sample)


def on_gpu(config: Config) -> bool:
    """Whether the run is meant for a GPU, even if there is none here; `auto` means a GPU only if there is one."""
    accelerator = config.trainer.accelerator
    return accelerator in ("gpu", "cuda") or (accelerator == "auto" and torch.cuda.is_available())


def _on_card(peak: Peak, config: Config, planner: Planner | None = None) -> Peak:
    """Return a peak as it is on one GPU: with cuBLAS' workspace, and with parts sharded across GPUs or stored twice."""
    if not on_gpu(config):
        return peak
    parts = dict(peak.breakdown)
    parts[WORKSPACE] += CUBLAS
    ranks = assembly.num_ranks(config)
    if ranks > 1 and config.trainer.strategy == "fsdp" and planner is not None:
        for part in _SHARDED:
            parts[part] = -(-parts[part] // ranks)
        layers = decoder_layers(planner.model)
        parts[WORKSPACE] += 2 * max(sum(p.numel() * p.element_size() for p in layer.parameters()) for layer in layers)
    elif ranks > 1:
        parts[GRADIENTS] *= 2
    return replace(peak, bytes=sum(parts.values()), breakdown=parts)
