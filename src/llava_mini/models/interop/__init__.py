"""Import and export of weights and inputs of other projects' LLaVA models."""

from llava_mini.models.interop.official import from_official, official_batch

__all__ = ["from_official", "official_batch"]
