"""Random weights for the parts that only LLaVA-Mini has, in a model whose other parts come from elsewhere."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from llava_mini.models.compressors import build_compressor
from llava_mini.models.llava_mini import LlavaMiniForConditionalGeneration


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Set torch's default dtype in the block: tensors created there have this type, unless they specify another."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def initialize(
    model: LlavaMiniForConditionalGeneration, parts: tuple[str, ...], device: torch.device | str = "cpu"
) -> None:
    """Initialize parts (compressor, projector, prefusion) of a model on meta in place with a new model's weights."""
    if "compressor" in parts:  # built again: a user's compressor may set values only in its constructor
        config = model.config
        width = (config.vision_config if config.compress_before_projection else config.text_config).hidden_size
        with torch.device(device):
            model.compressor = build_compressor(config.compressor, width)
        model.compressor.apply(model._init_weights)
    for part in (name for name in parts if name != "compressor"):
        model.get_submodule(part).to_empty(device=device).apply(model._init_weights)
