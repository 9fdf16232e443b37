"""Load a model and its processor from a folder or the Hub for inference; any problem there is reported in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig

from llava_mini.errors import UserError, refused
from llava_mini.files import why_unreadable
from llava_mini.hardware import drives, find_cards
from llava_mini.inference.prompts import end_of_answer
from llava_mini.models import LlavaMiniConfig, LlavaMiniForConditionalGeneration, LlavaMiniProcessor
from llava_mini.models.prepacked import prepack

DTYPES = ("float32", "float16", "bfloat16")
_MODEL_TYPE = LlavaMiniConfig.model_type
# What transformers, safetensors and the Hub raise for folders without a usable model.
_UNREADABLE = (
    OSError, ValueError, LookupError, TypeError, AttributeError, ImportError, RuntimeError, SafetensorError,
    StrictDataclassError,
)  # fmt: skip


def load(
    place: str, *, device: str = "auto", dtype: str | None = None
) -> tuple[LlavaMiniForConditionalGeneration, LlavaMiniProcessor]:
    """Return a model in evaluation mode, and its processor.

    Answers end at the token that ends them in the chat template, whatever token ends a text of the language model. On a
    CPU in float32, linear layers are prepacked (`models/prepacked.py`): such a model is fast, and for inference only.

    Args:
        place: Folder or Hub id, as `from_pretrained` accepts it.
        device: Name of the device: "auto" (a GPU if torch can use one), "cpu", "cuda", "cuda:1".
        dtype: Type of the weights: float32, float16, bfloat16. Default: float32 on a CPU, else the saved type.

    Raises:
        UserError: there is no LLaVA-Mini model with a processor and a chat template, or no such device or type.
    """
    if dtype not in (None, *DTYPES):
        raise refused("dtype", dtype, allowed=", ".join(DTYPES))
    where = device_named(device)
    model_fields(place)
    if reason := why_unreadable(Path(place), "*.json"):  # transformers skips some files without read permission
        raise UserError(f"{place}: the model cannot be loaded: {reason}")
    chosen = dtype or ("float32" if where.type == "cpu" else "auto")
    try:
        model, info = LlavaMiniForConditionalGeneration.from_pretrained(place, dtype=chosen, output_loading_info=True)
    except _UNREADABLE as error:
        raise UserError(f"{place}: the model cannot be loaded: {_reason(error, place)}") from error
    if missing := sorted(info["missing_keys"]):
        raise UserError(f"{place}: {len(missing)} tensors are missing, {missing[0]} for one")
    processor = _processor(place)
    _end_answers(model, processor)
    model = model.eval().to(where)
    prepack(model)
    return model, processor


def device_named(name: str) -> torch.device:
    """Return the device with a name.

    Raises:
        UserError: there is no such device.
    """
    cards = torch.cuda.is_available() and all(drives(torch.cuda.get_arch_list(), c.capability) for c in find_cards())
    if name == "auto":
        return torch.device("cuda" if cards else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise refused("device", name, allowed="auto, cpu, cuda, cuda:0, ...")
    if device.type == "cuda" and (not cards or (device.index or 0) >= torch.cuda.device_count()):
        raise refused("device", name, "torch finds no such GPU here; `llava-mini doctor` says why")
    return device


def model_fields(place: str) -> dict[str, Any]:
    """Return what config.json says of the LLaVA-Mini model in a folder or at a Hub id, without loading the model.

    Raises:
        UserError: there is no LLaVA-Mini model.
    """
    try:
        _check_place(place)
    except OSError as error:  # a folder without read permission, or an invalid name
        raise UserError(f"{error.filename}: {error.strerror}") from error
    try:
        fields: dict[str, Any] = PreTrainedConfig.get_config_dict(place)[0]
    except _UNREADABLE as error:
        raise UserError(f"{place}: no config.json can be read there: {_reason(error, place)}") from error
    if (kind := fields.get("model_type")) != _MODEL_TYPE:
        raise UserError(
            f"{place}: a model of type {kind!r}, which this program gives no images to; allowed is {_MODEL_TYPE!r} "
            "(`llava-mini train` and `convert` make one)"
        )
    return fields


def _check_place(place: str) -> None:
    folder = Path(place)
    if folder.is_dir() and not (folder / "config.json").is_file():
        if (folder / "base.json").is_file():
            raise UserError(
                f"{place}: adapters and trained parts of a run; `llava-mini merge` makes a model of the run"
            )
        inside = folder / "model"
        hint = f"; {inside} is one" if (inside / "config.json").is_file() else ""
        raise UserError(f"{place}: no model, it has no config.json{hint}")
    if not folder.is_dir() and (folder.exists() or place.count("/") != 1 or place.startswith((".", "~", "/"))):
        raise UserError(f"{place}: no such folder, and no Hub id (owner/name)")


def _processor(place: str) -> LlavaMiniProcessor:
    try:
        processor = LlavaMiniProcessor.from_pretrained(place)
    except _UNREADABLE as error:
        raise UserError(
            f"{place}: contains a model, but no processor that can be loaded: {_reason(error, place)}"
        ) from error
    if processor.chat_template is None:
        raise UserError(
            f"{place}: its processor has no chat template, so it is unknown how to ask it; write the template of its "
            "training (llava_mini.data.text.templates, chat_template()) to chat_template.jinja there"
        )
    return processor


def _end_answers(model: LlavaMiniForConditionalGeneration, processor: LlavaMiniProcessor) -> None:
    """Add the chat template's end token to those that end a text, and set a padding token."""
    own = model.generation_config.eos_token_id
    ends = [own] if isinstance(own, int) else list(own or [])
    found = end_of_answer(processor)
    model.generation_config.eos_token_id = ends if found is None or found in ends else [*ends, found]
    pad = processor.tokenizer.pad_token_id
    model.generation_config.pad_token_id = processor.tokenizer.eos_token_id if pad is None else pad


def _reason(error: Exception, place: str) -> str:
    """Return the reason; it names the file, which transformers and safetensors do not."""
    if reason := why_unreadable(Path(place)):
        return reason
    if isinstance(error, SafetensorError):
        for path in sorted(Path(place).glob("*.safetensors")):
            try:
                safe_open(path, "pt")
            except SafetensorError as damage:
                return f"{path}: {damage}"
    return " ".join(str(error).split())[:200] or type(error).__name__
