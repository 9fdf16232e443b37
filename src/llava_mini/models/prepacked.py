"""Linear layers whose weights lie in memory as a CPU's kernels read them (oneDNN's prepacked weights).

torch multiplies by MKL on a CPU, which copies the weight into its own order at every call. That is as much work as
multiplying it by a few dozen rows, and a question about frames that were seen, or a further token, is no more rows than
that. Packed once, the products are the same up to rounding, and there is no second copy of the weight.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_PARTS = ("vision_tower", "projector", "prefusion", "language_model")


class PrepackedLinear(nn.Linear):
    """A linear layer for inference on a CPU; it gives no gradients, and stays where it is.

    Args:
        linear: In float32 on the CPU; its bias is taken over as it is.

    Attributes:
        weight: [out, in], in an order of oneDNN's own: nothing but `forward` and `to_dense` can read it. The state
            dict has it in the usual order, bit by bit as it was.
    """

    def __init__(self, linear: nn.Linear):
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().contiguous(), None)
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.bias = linear.bias

    @torch.compiler.disable  # type: ignore[untyped-decorator] # the compiler takes such weights for constants
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (nn.Linear's own name for it)
        """[..., in] -> [..., out].

        Raises:
            RuntimeError: a gradient is wanted.
        """
        if input.requires_grad and torch.is_grad_enabled():
            raise RuntimeError("prepacked weights are for inference: no gradient goes through them")
        output: Tensor = torch.ops.mkldnn._linear_pointwise(input, self.weight, self.bias, "none", [], "")
        return output

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = self.weight.to_dense()


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
    owners: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    for part in _PARTS:
        for parent in list(model.get_submodule(part).modules()):
            for name, child in list(parent.named_children()):
                if type(child) is nn.Linear and owners[id(child.weight)] == 1 and _fits(child.weight):
                    setattr(parent, name, PrepackedLinear(child))


def _fits(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.float32
