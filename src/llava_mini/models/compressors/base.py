"""The contract of a compressor, and how a model finds the class that its config names.

Shapes: F frames, P = height * width patches of the grid, K compressed tokens, D width.
"""

from __future__ import annotations

import importlib
import sys
from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from llava_mini.errors import UserError


class Compressor(nn.Module, ABC):
    """Turns a grid of patches into K tokens of the same width.

    A concrete class takes `dim` (D, which only its neighbours know) and the keys of its yaml, all keyword-only.
    """

    @abstractmethod
    def num_tokens(self, height: int, width: int) -> int:
        """K for a grid of height x width patches."""

    @abstractmethod
    def forward(self, patches_FPD: Tensor, height: int, width: int) -> Tensor:
        """[F, height * width, D] (row-major) -> [F, K, D]."""

    def reset_parameters(self) -> None:
        """Initialise own parameters with functions of `transformers.initialization`, which spare loaded tensors."""


def grid_side(C: int) -> int:
    """C itself when it can be the side of a compression grid.

    Raises:
        UserError: when it is not a whole number of at least 1.
    """
    if isinstance(C, bool) or not isinstance(C, int) or C < 1:
        raise UserError(f"compressor.C={C!r}: the side of the compression grid must be a whole number of at least 1")
    return C


def build_compressor(spec: dict[str, Any], dim: int, side: int | None = None) -> Compressor:
    """Make the compressor that a model config describes.

    Args:
        spec: `_target_` and the class's own keyword arguments.
        dim: D, the width of the patches it will read.
        side: Of the grid of patches of one view; None where only the compressor itself is looked at.

    Raises:
        UserError: for a class that cannot be found or is no compressor, arguments it does not take, or a C beyond
            `side`, which would make more tokens than there are patches.
    """
    if dim < 1:
        raise UserError(f"a compressor cannot read patches of width {dim}: at least 1 is needed")
    arguments = dict(spec)
    target = arguments.pop("_target_", None)
    compressor_class = _find_class(target)
    try:
        compressor = compressor_class(dim=dim, **arguments)
    except TypeError as error:
        raise UserError(f"compressor {target}: {error}") from error
    C = arguments.get("C", 1)
    if side is not None and isinstance(C, int) and side < C:
        raise UserError(f"compressor.C={C}: allowed are 1 to {side}, the side of the vision tower's grid of patches")
    return compressor


def _find_class(target: Any) -> type[Compressor]:
    """Look at this package and at modules that the user imported only: a checkpoint must not choose what to import."""
    module_name, _, class_name = str(target).rpartition(".")
    if module_name.startswith("llava_mini.models.compressors."):
        try:
            importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            raise UserError(f"compressor {target}: no module {module_name}") from error
    if module_name not in sys.modules:
        raise UserError(
            f"compressor {target}: import {module_name or 'its module'} first, or add its folder with --config-dir"
        )
    found = vars(sys.modules[module_name]).get(class_name)
    if not (isinstance(found, type) and issubclass(found, Compressor)):
        raise UserError(f"compressor {target}: {class_name} is not a Compressor in {module_name}")
    return found
