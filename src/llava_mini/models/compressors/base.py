"""Interface of a compressor, and the search for the class that a model config names.

Shapes: F frames, P = height * width patches of the grid, K compressed tokens, D width.
"""

from __future__ import annotations

import importlib
import sys
from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from llava_mini.errors import UserError, named_as, refused


class Compressor(nn.Module, ABC):
    """Turns a grid of patches into K tokens of the same width.

    A concrete class takes `dim` (D, which only the parts around it know) and the keys of its yaml, all keyword-only.
    """

    @abstractmethod
    def num_tokens(self, height: int, width: int) -> int:
        """Number K of tokens for a grid of height x width patches."""

    @abstractmethod
    def forward(self, patches_FPD: Tensor, height: int, width: int) -> Tensor:
        """Compress [F, height * width, D] (row-major) to [F, K, D]."""

    def reset_parameters(self) -> None:
        """Initialize own parameters with functions of `transformers.initialization`, which spare loaded tensors."""


def grid_side(C: int) -> int:
    """Return C if it can be the side of a compression grid.

    Raises:
        UserError: when C is not a whole number of at least 1.
    """
    if isinstance(C, bool) or not isinstance(C, int) or C < 1:
        raise refused("C", C, "the side of the compression grid must be a whole number of at least 1")
    return C


def build_compressor(spec: dict[str, Any], dim: int, side: int | None = None) -> Compressor:
    """Build the compressor that a model config describes.

    Args:
        spec: Class (`_target_`) and its keyword arguments.
        dim: Width D of the patches that the compressor will read.
        side: Side of the grid of patches of one view; None where only the compressor itself matters.

    Raises:
        UserError: for a class that cannot be found or is not a compressor, arguments that it does not take, or a C
            beyond `side`, which would make more tokens than there are patches.
    """
    if dim < 1:
        raise UserError(f"a compressor cannot read patches of width {dim}: at least 1 is needed", key="dim", value=dim)
    arguments = dict(spec)
    target = arguments.pop("_target_", None)
    compressor_class = _find_class(target)
    try:
        with named_as({"C": "compressor.C"}):
            compressor = compressor_class(dim=dim, **arguments)
    except TypeError as error:
        raise UserError(f"compressor {target}: {error}", key="compressor", value=spec) from error
    C = arguments.get("C", 1)
    if side is not None and isinstance(C, int) and side < C:
        raise refused("compressor.C", C, allowed=f"1 to {side}, the side of the vision tower's grid of patches")
    return compressor


def _find_class(target: Any) -> type[Compressor]:
    """Find a class only in this package and in modules that the user imported: a checkpoint must not choose imports."""
    module_name, _, class_name = str(target).rpartition(".")
    if module_name.startswith("llava_mini.models.compressors."):
        try:
            importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            raise refused("compressor._target_", target, f"no module {module_name}") from error
    if module_name not in sys.modules:
        reason = f"import {module_name or 'its module'} first, or add its folder with --config-dir"
        raise refused("compressor._target_", target, reason)
    found = vars(sys.modules[module_name]).get(class_name)
    if not (isinstance(found, type) and issubclass(found, Compressor)):
        raise refused("compressor._target_", target, f"{class_name} is not a Compressor in {module_name}")
    return found
