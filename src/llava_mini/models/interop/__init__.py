"""Weights and inputs of other projects' LLaVA models, in and out."""

from llava_mini.models.interop.official import from_official, official_batch

__all__ = ["from_official", "official_batch"]
