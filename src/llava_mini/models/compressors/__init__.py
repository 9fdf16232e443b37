"""Compressors, which turn all patches of a frame into the few tokens that the language model reads.

A compressor is one file here (or anywhere on the Python path) and one yaml in conf/compressor; nothing else names it.
"""

from llava_mini.models.compressors.base import Compressor, build_compressor, grid_side

__all__ = ["Compressor", "build_compressor", "grid_side"]
