"""Linear layer whose weight is still in its file: a model to be packed into 4 bits is never in memory as a whole."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


class LazyLinear(nn.Linear):
    """Substitute for a linear layer of a model until the layer is quantized; it computes nothing.

    A bias of the layer, which is on meta, is taken over unchanged. `read` reads the weight, [out, in], from its file
    again at every call.
    """

    def __init__(self, linear: nn.Linear, read: Callable[[], Tensor]):
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.bias = linear.bias
        self.read = read

    def loaded(self) -> nn.Linear:
        """Return a plain layer with the weight in float32, which is then quantized to 4 bits."""
        plain = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        plain.weight = nn.Parameter(self.read().float())
        plain.bias = self.bias
        return plain
