"""Random weights for the parts that only LLaVA-Mini has, in a model whose other parts come from elsewhere."""

import torch

from llava_mini.models.compressors import build_compressor
from llava_mini.models.llava_mini import LlavaMiniForConditionalGeneration


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
