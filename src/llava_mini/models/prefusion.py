"""Modality pre-fusion: N_fusion decoder layers that let the instruction read all patches before they are compressed.

Sequence of a frame: [all patches ; compressed tokens (release) ; instruction], causal, positions counted over visible
entries only (paper section 4.2, REFERENCE section 2).

Shapes: F frames, L entries of the sequence, D width.
"""

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from llava_mini.errors import UserError
from llava_mini.models.attention import mask_for, packed_positions
from llava_mini.models.language_model import build_decoder_layers


class Prefusion(nn.Module):
    """Decoder layers of the language model's own class.

    Args:
        text_config: The language model's config.
        num_layers: N_fusion; 0 makes a module that is never called.
    """

    def __init__(self, *, text_config: PreTrainedConfig, num_layers: int):
        super().__init__()
        self.layers, self.rotary_emb, self.config = build_decoder_layers(text_config, num_layers)

    def forward(self, hidden_FLD: Tensor, visible_FL: Tensor, turn_ids_FL: Tensor | None) -> Tensor:
        """Fuse; rows of hidden entries come back with values that nothing may read.

        Args:
            hidden_FLD: [F, L, D].
            visible_FL: [F, L] bool.
            turn_ids_FL: [F, L] int64, 0 for patches, compressed tokens and shared text; None: one conversation.

        Returns:
            [F, L, D].
        """
        position_ids = packed_positions(visible_FL, turn_ids_FL)
        position_embeddings = self.rotary_emb(hidden_FLD, position_ids=position_ids)
        mask = mask_for(self.config._attn_implementation, visible_FL, turn_ids_FL, hidden_FLD.dtype)
        for layer in self.layers:
            hidden_FLD = layer(
                hidden_FLD, attention_mask=mask, position_embeddings=position_embeddings, position_ids=position_ids
            )
        return hidden_FLD

    def copy_from(self, language_model: PreTrainedModel) -> None:
        """Start from the language model's first layers (initialisation `copy`).

        Raises:
            UserError: when there are fewer of them than pre-fusion layers.
        """
        self.check_copy(language_model)
        for layer, first in zip(self.layers, language_model.get_decoder().layers, strict=False):
            layer.load_state_dict(first.state_dict())

    def check_copy(self, language_model: PreTrainedModel) -> None:
        """Raises UserError when the language model has fewer layers than are to be copied."""
        source = language_model.get_decoder().layers
        if len(self.layers) > len(source):
            raise UserError(
                f"fusion.num_layers={len(self.layers)}: "
                f"init 'copy' allows at most the language model's {len(source)} layers"
            )
