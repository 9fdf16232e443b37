"""Files that a run with adapters or a 4-bit base writes to its `model` folder: what it trained, and on which base.

adapter/             adapter_config.json and adapter_model.safetensors, PEFT's layout for the language model
prefusion_adapter/   the files of pre-fusion in this layout
trained.safetensors  the parts that trained in full, under the model's names
base.json            where the base's weights came from, and their fingerprints
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from llava_mini.errors import UserError
from llava_mini.files import read_json, write_json
from llava_mini.finetune.adapters import (
    ADAPTER,
    adapted_parts,
    adapter_state,
    is_adapter,
    load_adapter_state,
)
from llava_mini.models import LlavaMiniForConditionalGeneration
from llava_mini.models.interop.checkpoint import check_shapes
from llava_mini.models.lazy_linear import LazyLinear
from llava_mini.models.tensor_files import load_tensors, save_tensors
from llava_mini.settings import Finetune

_FOLDERS = {"language_model": "adapter", "prefusion": "prefusion_adapter"}
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_SAMPLE = 4096  # most values of a tensor that its part's fingerprint reads


def fingerprints(model: nn.Module) -> dict[str, str]:
    """Return a hash of every part's weights, taken before anything is quantized, adapted or trained.

    Up to 4096 values of every tensor are read, evenly spaced: any other training of the part changes them, and a model
    of billions of weights takes a second.
    """
    found = {}
    for part, module in model.named_children():
        digest = hashlib.sha256()
        stored = {f"{path}.weight": each for path, each in module.named_modules() if isinstance(each, LazyLinear)}
        for name, tensor in sorted(module.named_parameters()):
            whole = stored[name].read() if name in stored else tensor.detach()
            flat = (whole.to_dense() if whole.is_mkldnn else whole).flatten()
            sample = flat[:: max(1, len(flat) // _SAMPLE)][:_SAMPLE].float().cpu()
            digest.update(f"{name} {list(tensor.shape)}".encode() + sample.numpy().tobytes())
        found[part] = digest.hexdigest()[:16]
    return found


def save_trained(
    model: LlavaMiniForConditionalGeneration, folder: Path, finetune: Finetune, base: Mapping[str, Any]
) -> None:
    """Save a run's adapters and trained parts.

    Args:
        model: Model after training.
        folder: Folder of the files; created if it does not exist.
        finetune: The config's `finetune` group.
        base: Content of base.json: `weights`, all places that the base's weights came from; `language_model`, the
            place that PEFT is to name; `fingerprints`; `finetune`, the settings as a mapping.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for part in adapted_parts(model, finetune):
        module = model.get_submodule(part)
        configs: Any = module.peft_config
        config = configs[ADAPTER]
        config.inference_mode = True
        config.base_model_name_or_path = base["language_model"]
        config.target_modules = sorted(config.target_modules)  # a set, whose order differs between processes
        config.save_pretrained(folder / _FOLDERS[part])
        tensors = {name: tensor.cpu().contiguous() for name, tensor in adapter_state(module).items()}
        save_tensors(tensors, folder / _FOLDERS[part] / "adapter_model.safetensors", {"format": "pt"})
    whole = _trained_whole(model)
    if whole:
        save_tensors({name: p.detach().cpu().contiguous() for name, p in whole.items()}, folder / "trained.safetensors")
    write_json(folder / "base.json", dict(base))


def load_trained(
    model: LlavaMiniForConditionalGeneration, folder: Path, finetune: Finetune, found: Mapping[str, str]
) -> None:
    """Load what `save_trained` wrote into the same base with the same adapters, untrained; all of it or nothing.

    Args:
        model: Model after `apply`, with gradients required for exactly what the run trained: a stage ensures that.
        folder: The run's `model` folder.
        finetune: The config's `finetune` group.
        found: Result of `fingerprints` for the model before `apply`.

    Raises:
        UserError: the base is another one, a file is missing or unreadable, or tensors are missing, unexpected,
            misshapen, of another type or not finite.
    """
    whole = _trained_whole(model)
    _check_base(model, folder, found)
    path = folder / "trained.safetensors"
    trained = _tensors(path, whole) if whole or path.exists() else {}
    adapters = {}
    for part in adapted_parts(model, finetune):
        path = folder / _FOLDERS[part] / "adapter_model.safetensors"
        adapters[part] = _tensors(path, adapter_state(model.get_submodule(part)))
    for part, tensors in adapters.items():
        load_adapter_state(model.get_submodule(part), tensors)
    with torch.no_grad():
        for name, tensor in trained.items():
            whole[name].copy_(tensor)


def _trained_whole(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return what trains and is no adapter, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad and not is_adapter(name)}


def _is_trained_whole(part: nn.Module) -> bool:
    return all(p.requires_grad for name, p in part.named_parameters() if not is_adapter(name))


def _check_base(model: nn.Module, folder: Path, found: Mapping[str, str]) -> None:
    """Check that a base is the one that base.json describes; a part that was trained in full may differ."""
    path = folder / "base.json"
    base = _base(path)
    if base["fingerprints"].keys() != found.keys():
        found_parts = ", ".join(base["fingerprints"]) or "no part"
        raise UserError(f"{path}: has fingerprints of {found_parts}; needed are those of {', '.join(found)}")
    for part, expected in base["fingerprints"].items():
        if found[part] != expected and not _is_trained_whole(model.get_submodule(part)):
            raise UserError(
                f"{folder}: made for another base: {part} has the fingerprint {found[part]}, "
                f"base.json says {expected} (weights: {', '.join(base['weights'])})"
            )


def _base(path: Path) -> dict[str, Any]:
    base = read_json(path)
    weights, known = base.get("weights"), base.get("fingerprints")
    if not isinstance(known, dict) or not isinstance(weights, list) or not all(isinstance(w, str) for w in weights):
        raise UserError(f"{path}: not what a run with adapters writes (weights are names, fingerprints by part)")
    return {"weights": weights, "fingerprints": known}


def _tensors(path: Path, needed: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a file's tensors, which must have the names and shapes of `needed` and be finite floating numbers."""
    try:
        tensors = load_tensors(path)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path}: not a readable safetensors file ({reason})") from error
    check_shapes(path, _shapes(tensors), _shapes(needed), str)
    for name, tensor in tensors.items():
        if tensor.dtype not in _FLOATS:
            allowed = ", ".join(map(_name, _FLOATS))
            raise UserError(f"{path}: {name} is stored as {_name(tensor.dtype)}; allowed are {allowed}")
        if not torch.isfinite(tensor).all():
            raise UserError(f"{path}: {name} contains numbers that are not finite")
    return tensors


def _shapes(tensors: Mapping[str, torch.Tensor]) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in tensors.items()}


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
