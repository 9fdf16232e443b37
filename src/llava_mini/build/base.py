"""The language model of a run that freezes it: never in float32 as a whole, however it is stored.

Its weights go from their files into the type in which they are kept. Those that will be packed into 4 bits stay in
their files until their own turn, so the host's memory holds the packed model and one layer more.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llava_mini.models import LlavaMiniForConditionalGeneration
from llava_mini.models.interop.checkpoint import Checkpoint, check_shapes
from llava_mini.models.lazy_linear import LazyLinear

log = logging.getLogger("llava_mini")

_PREFIX = "language_model."
_HEAD = "lm_head.weight"
_COMPUTED = "rotary_emb.inv_freq"  # which checkpoints of old versions hold


def is_kept_small(config: dict[str, Any]) -> bool:
    """Whether a run freezes the language model and keeps it in another type than float32."""
    small = config["finetune"]["quantize"] is not None or config["memory"]["frozen_dtype"] is not None
    rate = config["stage"]["learning_rates"].get("language_model")
    return small and (rate is None or config["finetune"]["language_model"] != "full")


def frozen_dtype(config: dict[str, Any]) -> torch.dtype | None:
    """Of the weights that do not train, where they are not as they were loaded."""
    name = config["memory"]["frozen_dtype"]
    return None if name is None else {"float16": torch.float16, "bfloat16": torch.bfloat16}[name]


@dataclass(frozen=True)
class Base:
    """Where the language model's tensors lie.

    Args:
        held: By its own names: the checkpoint, and the name there. What stands in two is the later one's.
        prefix: What the names there begin with.
    """

    held: dict[str, tuple[Checkpoint, str]]
    prefix: str

    @classmethod
    def of(cls, folders: list[Path], prefix: str = _PREFIX) -> Base:
        """The tensors of folders whose names begin with `prefix`.

        Raises:
            UserError: a folder holds no checkpoint that can be read.
        """
        held: dict[str, tuple[Checkpoint, str]] = {}
        for checkpoint in map(Checkpoint.of, folders):
            names = [name for name in checkpoint.shapes if name.startswith(prefix) and not name.endswith(_COMPUTED)]
            held |= {name.removeprefix(prefix): (checkpoint, name) for name in names}
        return cls(held, prefix)

    def read(self, name: str) -> Tensor:
        """One tensor, as it is stored, in memory of its own.

        Raises:
            UserError: it holds a number that is not finite.
        """
        checkpoint, theirs = self.held[name]
        return next(tensor for _, tensor in checkpoint.stream({theirs})).clone()

    def check(self, language_model: nn.Module, where: str) -> None:
        """Compare with the model that the tensors are for.

        Raises:
            UserError: for weights of another type, and for missing, unexpected or misshapen tensors.
        """
        needed = _needed(language_model)
        for checkpoint, name in self.held.values():
            checkpoint.check_floats([name])
        ignored = {_HEAD} - needed.keys()  # a tied head, which a checkpoint may hold all the same
        found = {name: each.shapes[theirs] for name, (each, theirs) in self.held.items() if name not in ignored}
        check_shapes(where, found, needed, lambda name: self.prefix + name)


@torch.no_grad()
def load_base(
    model: LlavaMiniForConditionalGeneration, base: Base, device: torch.device, dtype: torch.dtype, *, packed: bool
) -> None:
    """Put a frozen language model into a model that has it on meta.

    Args:
        model: Changed in place.
        base: Its tensors.
        device: Where they go.
        dtype: In which type they are kept.
        packed: Whether linear layers of the decoder will be packed, and so stay in their files until then.
    """
    language_model = model.language_model
    decoder = language_model.get_decoder()
    decoder.rotary_emb.to_empty(device=device).apply(model._init_weights)
    linears = {f"{path}.weight" for path, each in decoder.named_modules() if isinstance(each, nn.Linear)}
    waiting = {f"{language_model.base_model_prefix}.{name}" for name in linears} if packed else set()
    for name in _needed(language_model):
        path, _, leaf = name.rpartition(".")
        owner = language_model.get_submodule(path)
        if name in waiting:
            parent, _, place = path.rpartition(".")
            setattr(language_model.get_submodule(parent), place, LazyLinear(owner, partial(base.read, name)))
        else:
            setattr(owner, leaf, nn.Parameter(base.read(name).to(device, dtype)))
    language_model.tie_weights()
    log.info("language_model: weights of %s", ", ".join(sorted({str(each.folder) for each, _ in base.held.values()})))


@torch.no_grad()
def copy_to_prefusion(model: LlavaMiniForConditionalGeneration, base: Base) -> None:
    """Pre-fusion's start from the language model's first layers, as these are stored and not as they are kept.

    Raises:
        UserError: there are fewer of them.
    """
    model.prefusion.check_copy(model.language_model)
    for name, parameter in model.prefusion.layers.named_parameters():
        parameter.copy_(base.read(f"{model.language_model.base_model_prefix}.layers.{name}"))


def _needed(language_model: nn.Module) -> dict[str, list[int]]:
    """Shapes of what a checkpoint of the language model holds; a tied head is none of it."""
    return {name: list(parameter.shape) for name, parameter in language_model.named_parameters()}
