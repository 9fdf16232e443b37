"""Linear layers whose weights are stored in memory as a CPU's kernels read them (oneDNN's prepacked weights).

torch multiplies with MKL on a CPU, which copies the weight into its own order at every call. That is as much work as
multiplying it by a few dozen rows. A question about encoded frames, or a further token, has no more rows than that.
Packed once, the products are the same up to rounding, and there is no second copy of the weight.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from llava_mini.models.configuration import PARTS

_ROWS = 64  # rows that the order is chosen for; any number is correct, and 1 and 600 rows were no slower


class PrepackedLinear(nn.Linear):
    """Linear layer for inference on a CPU; it computes no gradients.

    It is copied, pickled, saved and loaded like the plain layer. It becomes a plain layer when it is moved to another
    device or type.

    Args:
        linear: Layer in float32 on the CPU; its bias is taken over unchanged.

    Attributes:
        weight: Weight [out, in], in an order that oneDNN defines: only `forward` and `to_dense` can read it.
    """

    def __init__(self, linear: nn.Linear):
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight = _packed(linear.weight)
        self.bias = linear.bias

    @torch.compiler.disable  # type: ignore[untyped-decorator] # the compiler treats such weights as constants
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (nn.Linear's own name for it)
        """Apply the layer: [..., in] -> [..., out].

        Raises:
            RuntimeError: a gradient is required, or the width or type is another.
        """
        if input.requires_grad and torch.is_grad_enabled():
            raise RuntimeError("prepacked weights are for inference: no gradient goes through them")
        fits = input.dtype == self.weight.dtype and input.shape[-1:] == (self.in_features,)
        if not fits or torch.is_autocast_enabled("cpu"):  # torch casts, or raises an error
            return nn.functional.linear(input, self.weight.to_dense(), self.bias)
        output: Tensor = torch.ops.mkldnn._linear_pointwise(input, self.weight, self.bias, "none", [], "")
        return output

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        packed, weight = self.weight, fn(self.weight.to_dense())
        self._parameters["weight"] = None
        super()._apply(fn, recurse)
        stays = _fits(weight)
        self.weight = packed if stays else nn.Parameter(weight, requires_grad=False)
        if not stays:
            self.__class__ = nn.Linear  # type: ignore[assignment]
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = self.weight.to_dense()

    def _load_from_state_dict(self, *arguments: Any, **keywords: Any) -> None:
        self.weight = nn.Parameter(self.weight.to_dense(), requires_grad=False)
        super()._load_from_state_dict(*arguments, **keywords)
        self.weight = _packed(self.weight)

    def __getstate__(self) -> dict[str, Any]:
        plain = nn.Parameter(self.weight.to_dense(), requires_grad=False)
        return {**self.__dict__, "_parameters": {**self._parameters, "weight": plain}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.weight = _packed(self.weight)


def prepack(model: nn.Module) -> None:
    """Prepack the linear layers of a LLaVA-Mini model that are on a CPU in float32, permanently; others stay unchanged.

    Layers are packed one at a time, so that only one is in memory twice. A weight that another layer reads too (the
    embedding's, where they are tied) is not packed, and neither are compressors, which may be a user's code. No
    parameter requires gradients afterwards.
    """
    if not torch.backends.mkldnn.is_available():
        return
    model.requires_grad_(False)
    owners = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    for part in (name for name in PARTS if name != "compressor"):
        # A list of all modules would keep every plain layer in memory until the last one is packed.
        parents = [module for module in model.get_submodule(part).modules() if not isinstance(module, nn.Linear)]
        for parent in parents:
            for name in [name for name, child in parent.named_children() if type(child) is nn.Linear]:
                if owners[id(getattr(parent, name).weight)] == 1 and _fits(getattr(parent, name).weight):
                    setattr(parent, name, PrepackedLinear(getattr(parent, name)))


def _packed(weight: Tensor) -> nn.Parameter:
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), _ROWS)
    return nn.Parameter(packed, requires_grad=False)


def _fits(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.numel() > 0
