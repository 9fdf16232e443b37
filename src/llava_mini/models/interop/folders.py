"""First and last steps of every conversion of a folder: the source is checked, the target is complete or absent."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from llava_mini.errors import UserError, WriteError
from llava_mini.files import new_folder
from llava_mini.models.configuration import LlavaMiniConfig
from llava_mini.models.interop.json_config import check_plain, check_sizes, config_trusted, read_config
from llava_mini.models.llava_mini import LlavaMiniForConditionalGeneration

OWN_HEAD = "language_model.lm_head.weight"
PROCESSOR_FILE = "processor_config.json"


def source_config(source: Path, target: Path) -> dict[str, Any]:
    """Return config.json of `source`, after checks.

    Raises:
        UserError: there is none, it is that of a quantized or an impossible model, or the folders are not separate.
    """
    here, there = source.resolve(), target.resolve()
    if here == there or here in there.parents or there in here.parents:
        raise UserError(f"{target}: lies in {source} or around it; allowed is a folder apart from it")
    fields = read_config(source)
    check_plain(source, fields)
    check_sizes(source, fields)
    return fields


@contextmanager
def written(target: Path) -> Iterator[Path]:
    """Make a folder with `new_folder`; a full disk is a UserError too.

    Raises:
        UserError: `target` exists, or cannot be written.
    """
    try:
        with new_folder(target) as folder:
            yield folder
    except (WriteError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, WriteError) else error
        raise UserError(f"{target}: cannot be written ({reason})") from error


def on_meta(source: Path, config: LlavaMiniConfig) -> LlavaMiniForConditionalGeneration:
    """Build the model of a config on meta, that is, only its shapes.

    Raises:
        UserError: the model cannot be built; the message names `source`.
    """
    with config_trusted(source), torch.device("meta"):
        return LlavaMiniForConditionalGeneration(config)


def stored_shapes(model: LlavaMiniForConditionalGeneration) -> dict[str, list[int]]:
    """Shapes of the tensors that a checkpoint of the model contains, by name; a tied head is not one of them."""
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    if model.config.text_config.tie_word_embeddings:
        del shapes[OWN_HEAD]
    return shapes


def floating(model: LlavaMiniForConditionalGeneration) -> set[str]:
    """Names of the tensors that contain floating-point numbers."""
    return {name for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
