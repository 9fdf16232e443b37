"""LLaVA-Mini Lab: train, compare and run multimodal models that read an image as one token.

The model classes can be imported from here. They are loaded on first use, so that the command line starts fast.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
__all__ = ["LlavaMiniConfig", "LlavaMiniForConditionalGeneration", "LlavaMiniProcessor"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return vars(import_module("llava_mini.models"))[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
