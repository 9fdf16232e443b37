"""The projector: a two-layer MLP from the vision tower's width to the language model's, as in LLaVA-v1.5."""

from torch import Tensor, nn
from transformers.activations import ACT2FN


class Projector(nn.Module):
    """Linear, activation (by its name in transformers), linear."""

    def __init__(self, *, vision_dim: int, text_dim: int, activation: str = "gelu"):
        super().__init__()
        self.linear_1 = nn.Linear(vision_dim, text_dim)
        self.activation = ACT2FN[activation]
        self.linear_2 = nn.Linear(text_dim, text_dim)

    def forward(self, features: Tensor) -> Tensor:
        """Project features: [..., vision_dim] -> [..., text_dim]."""
        return self.linear_2(self.activation(self.linear_1(features)))
