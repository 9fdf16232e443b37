"""Loading of a language model that the run freezes: never in float32 as a whole, however it is stored.

Its weights are read from their files into the type in which they are kept. Those that will be packed into 4 bits stay
in their files until their own turn, so host memory contains the packed model and one layer more.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from llava_mini.config import Config
from llava_mini.models import LlavaMiniForConditionalGeneration
from llava_mini.models.interop.checkpoint import COMPUTED, Checkpoint, check_shapes
from llava_mini.models.lazy_linear import LazyLinear
from llava_mini.models.prefusion import check_copy

log = logging.getLogger("llava_mini")

_PREFIX = "language_model."
_HEAD = "lm_head.weight"


def is_kept_small(config: Config) -> bool:
    """Whether a run freezes the language model and stores it in a type other than float32."""
    small = config.finetune.quantize is not None or config.memory.frozen_dtype is not None
    rate = config.stage.get("learning_rates", {}).get("language_model")
    return small and (rate is None or config.finetune.language_model != "full")


def frozen_dtype(config: Config) -> torch.dtype | None:
    """Return the type of the frozen weights; None if they stay as they were loaded."""
    name = config.memory.frozen_dtype
    return None if name is None else {"float16": torch.float16, "bfloat16": torch.bfloat16}[name]


@dataclass(frozen=True)
class Base:
    """Location of the language model's tensors: the checkpoint of each, and its name there."""

    places: dict[str, tuple[Checkpoint, str]]  # by the language model's own name; of two the later
    prefix: str  # of the names in the checkpoints

    @classmethod
    def of(cls, folders: list[Path], prefix: str = _PREFIX) -> Base:
        """Find the tensors of folders whose names begin with `prefix`.

        Raises:
            UserError: a folder contains no checkpoint that can be read.
        """
        places: dict[str, tuple[Checkpoint, str]] = {}
        for checkpoint in map(Checkpoint.of, folders):
            names = [name for name in checkpoint.shapes if name.startswith(prefix) and not name.endswith(COMPUTED)]
            places |= {name.removeprefix(prefix): (checkpoint, name) for name in names}
        return cls(places, prefix)

    def read(self, name: str) -> Tensor:
        """Return one tensor in the type in which it is stored, in its own memory.

        Raises:
            UserError: the tensor contains a number that is not finite.
        """
        checkpoint, theirs = self.places[name]
        return next(tensor for _, tensor in checkpoint.stream({theirs})).clone()

    def check(self, language_model: nn.Module, where: str) -> None:
        """Check the tensors against the model that they are for.

        Raises:
            UserError: weights have another type, or tensors are missing, unexpected or misshapen.
        """
        needed = _needed(language_model)
        for checkpoint, name in self.places.values():
            checkpoint.check_floats([name])
        ignored = {_HEAD} - needed.keys()  # a tied head, which a checkpoint may contain anyway
        found = {name: each.shapes[theirs] for name, (each, theirs) in self.places.items() if name not in ignored}
        check_shapes(where, found, needed, lambda name: self.prefix + name)


@torch.no_grad()
def load_base(
    model: LlavaMiniForConditionalGeneration, base: Base, device: torch.device, dtype: torch.dtype, *, packed: bool
) -> None:
    """Load a frozen language model into a model that has it on the meta device.

    If it will be `packed`, linear layers of the decoder stay in their files until then.
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
    log.info("language_model: weights of %s", ", ".join(sorted({str(each.folder) for each, _ in base.places.values()})))


@torch.no_grad()
def copy_to_prefusion(model: LlavaMiniForConditionalGeneration, base: Base) -> None:
    """Initialize pre-fusion from the language model's first layers as stored in the files, not as kept in memory.

    Raises:
        UserError: the language model has fewer layers than pre-fusion.
    """
    check_copy(len(model.prefusion.layers), len(model.language_model.get_decoder().layers))
    for name, parameter in model.prefusion.layers.named_parameters():
        parameter.copy_(base.read(f"{model.language_model.base_model_prefix}.layers.{name}"))


def _needed(language_model: nn.Module) -> dict[str, list[int]]:
    """Return the shapes of the tensors in a checkpoint of the language model; a tied head is not among them."""
    return {name: list(parameter.shape) for name, parameter in language_model.named_parameters()}
