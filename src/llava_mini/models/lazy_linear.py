"""A linear layer whose weight is still in its file: what will be packed into 4 bits need never lie in memory whole."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


class LazyLinear(nn.Linear):
    """Stands in a model until the layer is quantised; it computes nothing.

    Args:
        linear: The layer in whose place it stands, on meta. A bias is taken over as it is.
        read: Gives the weight, [out, in], from its file, anew at every call.
    """

    def __init__(self, linear: nn.Linear, read: Callable[[], Tensor]):
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.bias = linear.bias
        self.read = read

    def loaded(self) -> nn.Linear:
        """A plain layer with the weight in float32, from which 4 bits are made."""
        plain = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        plain.weight = nn.Parameter(self.read().float())
        plain.bias = self.bias
        return plain
