"""Frames of a batch as a model gets them: pixels, or features that were computed earlier.

Shapes: F frames of the whole batch, V views of a frame, N patches of a view, Dv width of the vision tower.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Frames:
    """Frames of a batch: pixels [F, V, 3, H, W], or features [F, V, N, Dv] that `encode` computed from them earlier."""

    pixel_values: Tensor | None  # [F, V, 3, H, W], or None
    features: Tensor | None  # [F, V, N, Dv], or None
    num_views: Tensor | None  # real views of every frame, [F]; None: all V

    def __len__(self) -> int:
        return len(self._given)

    def views(self) -> Tensor:
        """Number of real views of every frame, [F]."""
        if self.num_views is not None:
            return self.num_views
        return torch.full((len(self),), self._given.shape[1], device=self._given.device)

    def take(self, rows: Tensor, views: int) -> Frames:
        """Return the frames at `rows`, which have `views` views."""
        if self.pixel_values is not None:
            return Frames(self.pixel_values[rows, :views], None, None)
        return Frames(None, self._given[rows, :views], None)

    @property
    def _given(self) -> Tensor:
        given = self.pixel_values if self.features is None else self.features
        assert given is not None
        return given
