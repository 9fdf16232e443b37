"""What a run with adapters or a 4-bit base leaves in its `model` folder: what it trained over which base.

adapter/             adapter_config.json and adapter_model.safetensors, PEFT's layout for the language model
prefusion_adapter/   the same for pre-fusion
trained.safetensors  the parts that trained whole, under the model's names
base.json            the base's weights and their fingerprints
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from llava_mini.errors import UserError
from llava_mini.files import write_json
from llava_mini.finetune.adapters import (
    ADAPTER,
    Finetune,
    adapted_parts,
    adapter_state,
    is_adapter,
    load_adapter_state,
)
from llava_mini.models import LlavaMiniForConditionalGeneration
from llava_mini.models.stored import StoredLinear

_FOLDERS = {"language_model": "adapter", "prefusion": "prefusion_adapter"}
_SAMPLE = 4096  # values of a tensor that its part's fingerprint reads


def fingerprints(model: nn.Module) -> dict[str, str]:
    """A hash of every part's weights, as they were before anything was quantised, adapted or trained.

    It reads up to 4096 values of every tensor, evenly spaced: any other training of the part changes them, and a model
    of billions of weights is done in a second.
    """
    found = {}
    for part, module in model.named_children():
        digest = hashlib.sha256()
        stored = {f"{path}.weight": each for path, each in module.named_modules() if isinstance(each, StoredLinear)}
        for name, tensor in sorted(module.named_parameters()):
            flat = (stored[name].read() if name in stored else tensor.detach()).flatten()
            sample = flat[:: max(1, len(flat) // _SAMPLE)][:_SAMPLE].float().cpu()
            digest.update(f"{name} {list(tensor.shape)}".encode() + sample.numpy().tobytes())
        found[part] = digest.hexdigest()[:16]
    return found


def save_trained(
    model: LlavaMiniForConditionalGeneration, folder: Path, finetune: Finetune, base: Mapping[str, Any]
) -> None:
    """Write a run's adapters and trained parts.

    Args:
        model: As it was trained.
        folder: Made when it is not there.
        finetune: The config's group.
        base: What base.json says: `weights`, and `fingerprints` of the base.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for part in adapted_parts(model, finetune):
        module = model.get_submodule(part)
        config: Any = module.peft_config
        config[ADAPTER].inference_mode = True
        config[ADAPTER].base_model_name_or_path = ", ".join(base["weights"])
        config[ADAPTER].save_pretrained(folder / _FOLDERS[part])
        tensors = {name: tensor.cpu().contiguous() for name, tensor in adapter_state(module).items()}
        save_file(tensors, folder / _FOLDERS[part] / "adapter_model.safetensors", metadata={"format": "pt"})
    whole = {name: p for name, p in model.named_parameters() if p.requires_grad and not is_adapter(name)}
    if whole:
        save_file({name: p.detach().cpu().contiguous() for name, p in whole.items()}, folder / "trained.safetensors")
    write_json(folder / "base.json", {**base, "finetune": dict(finetune)})


def load_trained(
    model: LlavaMiniForConditionalGeneration, folder: Path, finetune: Finetune, found: Mapping[str, str]
) -> None:
    """Load what `save_trained` wrote into the same base with the same adapters, untrained.

    Args:
        model: After `apply`.
        folder: A run's `model` folder.
        finetune: The config's group.
        found: `fingerprints` of the model before `apply`.

    Raises:
        UserError: for another base, a missing or unreadable file, or tensors that do not fit.
    """
    base = _base(folder)
    path = folder / "trained.safetensors"
    whole = _tensors(path) if path.exists() else {}
    names = dict(model.named_parameters())
    for part, expected in base["fingerprints"].items():
        own = [name for name in names if name.startswith(f"{part}.") and not is_adapter(name)]
        if found.get(part) != expected and not all(name in whole for name in own):
            raise UserError(
                f"{folder}: made for another base: {part} has the fingerprint {found.get(part)}, "
                f"base.json says {expected} (weights {', '.join(base['weights'])})"
            )
    for name, tensor in whole.items():
        if name not in names or names[name].shape != tensor.shape:
            has = f"shape {list(names[name].shape)}" if name in names else "no such tensor"
            raise UserError(f"{path}: {name} has shape {list(tensor.shape)}, the model has {has}")
    for part in adapted_parts(model, finetune):
        path = folder / _FOLDERS[part] / "adapter_model.safetensors"
        if unfit := load_adapter_state(model.get_submodule(part), _tensors(path)):
            raise UserError(f"{path}: {unfit[0]} and {len(unfit) - 1} more do not fit the adapters of this config")
    with torch.no_grad():
        for name, tensor in whole.items():
            names[name].copy_(tensor)


def _base(folder: Path) -> dict[str, Any]:
    path = folder / "base.json"
    try:
        base = json.loads(path.read_text())
        return {"weights": list(base["weights"]), "fingerprints": dict(base["fingerprints"])}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: not what a run with adapters writes ({type(error).__name__})") from error


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})") from error
