"""config.json of other projects' checkpoints, which is read, and refused where no model can be built from it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from llava_mini.errors import UserError
from llava_mini.files import read_json

_SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim", "image_size", "patch_size", "num_channels",
)  # fmt: skip
_IMPOSSIBLE = (
    StrictDataclassError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError, RuntimeError,
)  # fmt: skip


def read_config(folder: Path) -> dict[str, Any]:
    """Return config.json of a folder.

    Raises:
        UserError: there is no folder, or no config that can be read.
    """
    if not os.path.isdir(folder):  # False for an invalid name, for which Path.is_dir raises
        raise UserError(f"{folder}: no such folder")
    if not (folder / "config.json").exists() and (folder / "model" / "config.json").exists():
        raise UserError(f"{folder}: no model, it has no config.json; {folder / 'model'} is one")
    return read_json(folder / "config.json")


def check_plain(where: Path | str, config: Mapping[str, Any]) -> None:
    """Refuse a checkpoint whose config.json says that it is quantized: its tensors are codes, not weights.

    Raises:
        UserError: the checkpoint is quantized, or its language model is.
    """
    for part in (config, config.get("text_config")):
        how = part.get("quantization_config") if isinstance(part, Mapping) else None
        if how is not None:
            method = how.get("quant_method") if isinstance(how, Mapping) else how
            raise UserError(
                f"{where}: a quantized checkpoint (quantization_config: {method}); allowed are weights in "
                "float64, float32, float16, bfloat16, which `finetune=qlora` quantizes itself"
            )


@contextmanager
def config_trusted(where: Path | str) -> Iterator[None]:
    """Report what transformers, torch or this package raises for impossible values in a config.json as one line.

    Raises:
        UserError: instead of the original error.
    """
    try:
        yield
    except UserError as error:
        raise error.with_line(f"{where}: {error}") from error
    except _IMPOSSIBLE as error:
        reason = " ".join(str(error).split())[:200]
        kind = type(error).__name__
        raise UserError(f"{where}: no model can be built of its config.json: {kind}: {reason}") from error


def check_sizes(where: Path | str, config: Mapping[str, Any]) -> None:
    """Refuse sizes that are zero or less, by which transformers divides, before a config is built from them.

    Raises:
        UserError: naming the first such size.
    """
    for part in ("", "text_config", "vision_config"):
        fields: Any = config.get(part) if part else config
        for key in _SIZES if isinstance(fields, Mapping) else ():
            if isinstance(fields.get(key), int) and fields[key] < 1:
                name = f"{part}.{key}" if part else key
                raise UserError(f"{where}: config.json: {name}={fields[key]}: allowed are whole numbers above 0")
