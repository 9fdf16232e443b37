"""Linear layers whose weights lie in memory as a CPU's kernels read them (oneDNN's prepacked weights).

torch multiplies by MKL on a CPU, which copies the weight into its own order at every call. That is as much work as
multiplying it by a few dozen rows, and a question about frames that were seen, or a further token, is no more rows than
that. Packed once, the products are the same up to rounding, and there is no second copy of the weight.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

_ROWS = 64  # that the order is chosen for; any number is right, and also 1 and 600 were no slower for it
_PARTS = ("vision_tower", "projector", "prefusion", "language_model")


class PrepackedLinear(nn.Linear):
    """A linear layer for inference on a CPU; it gives no gradients.

    It is copied, pickled, saved and loaded as the plain layer, and becomes a plain layer when it is moved to another
    device or type.

    Args:
        linear: In float32 on the CPU; its bias is taken over as it is.

    Attributes:
        weight: [out, in], in an order of oneDNN's own: nothing but `forward` and `to_dense` can read it.
    """

    def __init__(self, linear: nn.Linear):
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight = _packed(linear.weight)
        self.bias = linear.bias

    @torch.compiler.disable  # type: ignore[untyped-decorator] # the compiler takes such weights for constants
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (nn.Linear's own name for it)
        """[..., in] -> [..., out].

        Raises:
            RuntimeError: a gradient is wanted, or another width or type.
        """
        if input.requires_grad and torch.is_grad_enabled():
            raise RuntimeError("prepacked weights are for inference: no gradient goes through them")
        fits = input.dtype == self.weight.dtype and input.shape[-1:] == (self.in_features,)
        if not fits or torch.is_autocast_enabled("cpu"):  # torch casts, or says what is wrong
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
    """Prepack what linear layers of a LLaVA-Mini model are on a CPU in float32, for good; others stay as they are.

    One layer at a time, so that only one is held twice. A weight that another layer reads too (the embedding's, where
    they are tied) is left as it is, and so are compressors, which may be anybody's. No parameter asks for gradients
    afterwards.

    Args:
        model: Of LLaVA-Mini, for inference; changed in place.
    """
    if not torch.backends.mkldnn.is_available():
        return
    model.requires_grad_(False)
    owners = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    for part in _PARTS:
        # A list of all modules would hold every plain layer until the last one is packed.
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
