"""Random weights for the parts that only LLaVA-Mini has, in a model whose other parts come from elsewhere."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from llava_mini.models.compressors import build_compressor
from llava_mini.models.llava_mini import LlavaMiniForConditionalGeneration


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Tensors that are made in the block have this type, unless they say another."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def initialise(
    model: LlavaMiniForConditionalGeneration, parts: tuple[str, ...], device: torch.device | str = "cpu"
) -> None:
    """Give parts of a model on meta the weights that a new model has.

    Args:
        model: Changed in place.
        parts: Of "compressor", "projector" and "prefusion".
        device: Where their weights go.
    """
    for part in parts:
        if part == "compressor":  # made anew: a compressor of one's own may set something in its constructor only
            config = model.config
            width = (config.vision_config if config.compress_before_projection else config.text_config).hidden_size
            with torch.device(device):
                model.compressor = build_compressor(config.compressor, width)
        else:
            model.get_submodule(part).to_empty(device=device)
        model.get_submodule(part).apply(model._init_weights)
