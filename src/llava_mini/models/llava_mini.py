"""LLaVA-Mini: images, HD images, videos and text through vision tower, compressor, pre-fusion and language model.

The forward pass reads as the paper's Figure 6: embed, encode, compress, project, fuse, splice, decode.

Shapes: B samples, T tokens, F frames of the whole batch, V views of a frame, N patches of a view, P patches of a frame
that pre-fusion reads (N, or 5N for HD), K compressed tokens of a frame, D width of the language model, Dv of the vision
tower.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from llava_mini.models.attention import mask_for, packed_positions
from llava_mini.models.compressors import Compressor, build_compressor
from llava_mini.models.configuration import LlavaMiniConfig
from llava_mini.models.generation import FramesGenerationMixin
from llava_mini.models.inputs import (
    check_features,
    check_frames,
    check_no_frames,
    check_pixels,
    check_placeholders,
    instruction,
)
from llava_mini.models.language_model import build_language_model
from llava_mini.models.loss import next_token_loss, next_token_loss_of_hidden
from llava_mini.models.packed import Packed
from llava_mini.models.prefusion import Prefusion
from llava_mini.models.projector import Projector
from llava_mini.models.vision_tower import (
    HD_VIEWS,
    SINGLE_VIEW,
    build_vision_tower,
    compression_grid,
    encode_views,
    patches_per_side,
    prefusion_patches,
)
from llava_mini.models.visual_tokens import VisualTokens, splice


class LlavaMiniForConditionalGeneration(PreTrainedModel, FramesGenerationMixin):
    """LLaVA-Mini with a language-model head.

    Args:
        config: Shapes and order of work; weights are random until loaded.

    Attributes:
        loss_chunk: Tokens whose logits are held at once in training; None: all that are learnt.
        vision_batch: Views that the vision tower encodes at once; None: all of a batch.
        offload_vision: Whether a frozen vision tower's weights wait in host memory when features are made.
        runs_all_layers: Whether also a batch without a frame runs the layers that read frames, as sharded weights need.
    """

    config_class = LlavaMiniConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ("image", "video", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _skip_keys_device_placement = ["past_key_values"]

    def __init__(self, config: LlavaMiniConfig):
        super().__init__(config)
        vision_dim, text_dim = config.vision_config.hidden_size, config.text_config.hidden_size
        compressor_dim = vision_dim if config.compress_before_projection else text_dim
        self.vision_tower = build_vision_tower(config.vision_config)
        self.side = patches_per_side(config.vision_config)
        self.compressor = build_compressor(config.compressor, compressor_dim, self.side)
        self.projector = Projector(vision_dim=vision_dim, text_dim=text_dim, activation=config.projector_hidden_act)
        self.prefusion = Prefusion(text_config=config.text_config, num_layers=config.num_fusion_layers)
        self.language_model = build_language_model(config.text_config)
        self.loss_chunk: int | None = None
        self.vision_batch: int | None = None
        self.offload_vision = False
        self.runs_all_layers = False
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        if isinstance(module, Compressor):
            module.reset_parameters()
        else:
            super()._init_weights(module)

    @property
    def dtype(self) -> torch.dtype:
        """The projector's, which reads the features: parts that are frozen may be stored in half precision."""
        return next(self.projector.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where inputs go: the projector's, as the vision tower may wait in host memory."""
        return next(self.projector.parameters()).device

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: torch.nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> torch.nn.Module:
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, value: torch.nn.Module) -> None:
        self.language_model.set_output_embeddings(value)

    def get_decoder(self) -> PreTrainedModel:
        return self.language_model.get_decoder()

    def set_attn_implementation(self, attn_implementation: str | dict[str, Any], **kwargs: Any) -> None:
        """As in transformers; pre-fusion follows the language model."""
        super().set_attn_implementation(attn_implementation, **kwargs)
        self.prefusion.config._attn_implementation = self.config.text_config._attn_implementation

    def tokens_per_frame(self, views: int = SINGLE_VIEW) -> int:
        """K: placeholders that a frame of `views` views takes in input_ids."""
        side = self.side * (2 if views == HD_VIEWS else 1)
        return self.compressor.num_tokens(side, side)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        num_frames: Tensor | None = None,
        num_views: Tensor | None = None,
        image_features: Tensor | None = None,
        turn_ids: Tensor | None = None,
        instruction_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits, and the loss when labels are given; in training the loss alone, and no logits but those it needs.

        Args:
            input_ids: [B, T]; every frame stands as K placeholders `config.image_token_id`, in the order of the frames.
            attention_mask: [B, T (with a cache: past + T)]; 0 is padding, on either side.
            pixel_values: [F, V, 3, H, W] normalised; V = 1, or 5 (four crops row by row, then the whole image).
            num_frames: [B], frames of each sample; needed with pixel_values or image_features.
            num_views: [F], 1 or 5: real views of every frame, when they differ; the rest of V is padding.
            image_features: [F, V, N, Dv] from `encode`, instead of pixel_values.
            turn_ids: [B, T]; 0 for the shared prefix, i for the i-th of turns that do not see one another.
            instruction_mask: [B, T]; text that pre-fusion sees. Default: where labels are -100 (release), or all text.
            position_ids: [B, T]; default: counted over unmasked tokens.
            past_key_values: Cache of earlier tokens; frames must then have been given with them.
            labels: [B, T]; -100 is not predicted.
            use_cache: Default: no when labels are given, else the config's.
            logits_to_keep: As in transformers: only the last so many positions.
            **kwargs: For the language model, as in transformers.

        Raises:
            ValueError: when frames, views or placeholders do not match.
        """
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        if attention_mask is None:
            attention_mask = input_ids.new_ones(len(input_ids), past + input_ids.shape[1])
        placeholder_BT = input_ids == self.config.image_token_id
        inputs_embeds = self.embed(input_ids, placeholder_BT)
        features = self.features(pixel_values, image_features, num_views)
        if features is not None:
            num_frames = check_frames(num_frames, len(features), len(input_ids))
            visual = self.compress_and_project(features, num_views)
            check_placeholders(placeholder_BT, visual.compressed_mask_FK, num_frames)
            instruction_BT = instruction(attention_mask, placeholder_BT, labels, instruction_mask)
            compressed, text = self.fuse(visual, inputs_embeds, instruction_BT, turn_ids, num_frames)
            inputs_embeds = splice(text, placeholder_BT, compressed, visual.compressed_mask_FK)
        elif past == 0:
            check_no_frames(placeholder_BT, num_frames)
            if self.runs_all_layers:
                inputs_embeds = inputs_embeds + self._nothing_seen()
        if use_cache is None and labels is not None:
            use_cache = False
        return self.decode(
            inputs_embeds,
            attention_mask,
            position_ids,
            turn_ids,
            labels,
            past_key_values=past_key_values,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            **kwargs,
        )

    def embed(self, input_ids: Tensor, placeholder_BT: Tensor) -> Tensor:
        """Token embeddings [B, T, D]; placeholders, whose id may lie beyond the vocabulary, are filled in later."""
        return self.get_input_embeddings()(input_ids.masked_fill(placeholder_BT, 0))

    def features(
        self, pixel_values: Tensor | None, image_features: Tensor | None, num_views: Tensor | None
    ) -> Tensor | None:
        """Features [F, V, N, Dv] of all frames, encoded now or before; None without a frame."""
        if pixel_values is not None and image_features is not None:
            raise ValueError("pixel_values and image_features: give one of them, the frames or their features")
        if image_features is not None:
            check_features(image_features, num_views, self.side**2, self.config.vision_config.hidden_size)
            return image_features.to(self.dtype) if len(image_features) else None
        if pixel_values is None or len(pixel_values) == 0:
            return None
        return self.encode(pixel_values, num_views).to(self.dtype)

    def encode(self, pixel_values: Tensor, num_views: Tensor | None = None) -> Tensor:
        """Features of all real views, in the tower's own type: [F, V, 3, H, W] -> [F, V, N, Dv]; zeros elsewhere."""
        check_pixels(pixel_values, num_views)
        frames, views = pixel_values.shape[:2]
        encode = partial(
            encode_views,
            self.vision_tower,
            layer=self.config.vision_feature_layer,
            num_patches=self.side**2,
            batch=self.vision_batch,
            offload=self.offload_vision,
        )
        if num_views is None:
            return encode(pixel_values.flatten(0, 1)).unflatten(0, (frames, views))
        real_FV = torch.arange(views, device=num_views.device) < num_views[:, None]
        features = encode(pixel_values[real_FV])
        padded = features.new_zeros(frames, views, *features.shape[1:])
        padded[real_FV] = features
        return padded

    def compress_and_project(self, features_FVND: Tensor, num_views: Tensor | None = None) -> VisualTokens:
        """Compressed tokens and patches in the language model's width, in the configured order.

        Frames with one view and HD frames lie in different grids, so each of the two kinds is worked on at once.
        """
        if num_views is None:
            return VisualTokens.of_one_kind(*self._compress_group(features_FVND, features_FVND.shape[1]))
        kinds = [(num_views == views, views) for views in num_views.unique().tolist()]
        return VisualTokens.of_kinds(
            [(chosen, *self._compress_group(features_FVND[chosen], views)) for chosen, views in kinds]
        )

    def fuse(
        self,
        visual: VisualTokens,
        text_BTD: Tensor,
        instruction_BT: Tensor,
        turn_ids_BT: Tensor | None,
        num_frames_B: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Pre-fusion of every frame with its sample's instruction; fused text is the mean over the sample's frames.

        Only the instruction goes through it: answers, placeholders and padding, which it must not see, cost nothing.
        Text outside the instruction, and samples without a frame, keep their plain embedding. Gradients do not flow
        back into text embeddings through pre-fusion (release).

        Returns:
            Compressed tokens [F, K, D] and text [B, T, D].
        """
        if self.config.num_fusion_layers == 0 or len(visual.patches_FPD) == 0:
            return visual.compressed_FKD, text_BTD
        owner_F = torch.arange(len(text_BTD), device=text_BTD.device).repeat_interleave(num_frames_B)
        fused_BT = instruction_BT & (num_frames_B > 0)[:, None]
        read = Packed.of(fused_BT)
        text_BSD = read.take(text_BTD)
        parts, masks = [visual.patches_FPD], [visual.patch_mask_FP]
        if self.config.fuse_compressed_tokens:
            parts.append(visual.compressed_FKD)
            masks.append(visual.compressed_mask_FK)
        seen = sum(part.shape[1] for part in parts)
        hidden_FLD = torch.cat([*parts, text_BSD.detach()[owner_F]], dim=1)
        visible_FL = torch.cat([*masks, read.mask_BS[owner_F]], dim=1)
        turn_ids_FL = None
        if turn_ids_BT is not None:
            turn_ids_FL = torch.nn.functional.pad(read.take(turn_ids_BT)[owner_F], (seen, 0))
        fused_FLD = self.prefusion(hidden_FLD, visible_FL, turn_ids_FL)
        compressed_FKD = visual.compressed_FKD
        if self.config.fuse_compressed_tokens:
            compressed_FKD = fused_FLD[:, visual.patches_FPD.shape[1] : seen]
        sum_BSD = torch.zeros_like(text_BSD).index_add(0, owner_F, fused_FLD[:, seen:].to(text_BTD.dtype))
        mean_BSD = sum_BSD / num_frames_B.clamp(min=1)[:, None, None].to(text_BTD.dtype)
        return compressed_FKD, text_BTD.masked_scatter(fused_BT[..., None], mean_BSD[read.mask_BS])

    def decode(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor | None,
        turn_ids_BT: Tensor | None,
        labels_BT: Tensor | None,
        past_key_values: Any,
        logits_to_keep: int | Tensor,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """The language model over spliced embeddings [B, T, D], and its loss where there are labels."""
        if turn_ids_BT is not None and past_key_values is not None:
            raise ValueError("turn_ids: independent turns are for training and evaluation, not for cached generation")
        if position_ids is None and attention_mask.dim() == 2:
            position_ids = packed_positions(attention_mask.bool(), turn_ids_BT)[:, -inputs_embeds.shape[1] :]
        if turn_ids_BT is not None:
            implementation = self.config.text_config._attn_implementation
            attention_mask = mask_for(implementation, attention_mask.bool(), turn_ids_BT, inputs_embeds.dtype)
        kwargs |= {
            "inputs_embeds": inputs_embeds,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "past_key_values": past_key_values,
        }
        if labels_BT is not None and self.training:
            decoded = self.get_decoder()(**kwargs)
            loss = next_token_loss_of_hidden(
                decoded.last_hidden_state, self.get_output_embeddings(), labels_BT, turn_ids_BT, self.loss_chunk
            )
            return CausalLMOutputWithPast(loss=loss, hidden_states=decoded.hidden_states)
        outputs = self.language_model(**kwargs, logits_to_keep=logits_to_keep)
        if labels_BT is not None:
            outputs.loss = next_token_loss(outputs.logits, labels_BT, turn_ids_BT)
        return outputs

    def _nothing_seen(self) -> Tensor:
        """Zero, by way of every part that reads frames."""
        width = self.config.vision_config.hidden_size
        features = torch.zeros(1, 1, self.side**2, width, dtype=self.dtype, device=self.device)
        visual = self.compress_and_project(features)
        hidden_FLD = torch.cat([visual.patches_FPD, visual.compressed_FKD], dim=1)
        seen_FL = torch.ones(hidden_FLD.shape[:2], dtype=torch.bool, device=hidden_FLD.device)
        return 0 * self.prefusion(hidden_FLD, seen_FL, None).sum()

    def _compress_group(self, features_FVND: Tensor, views: int) -> tuple[Tensor, Tensor]:
        """Patches [F, P, D] and compressed tokens [F, K, D] of frames that all have `views` views."""
        if views not in (SINGLE_VIEW, HD_VIEWS):
            raise ValueError(
                f"a frame has {views} views, expected {SINGLE_VIEW} or {HD_VIEWS} (2x2 crops and the whole)"
            )
        grid = compression_grid(features_FVND, views)
        side = self.side * (2 if views == HD_VIEWS else 1)
        patches = self.projector(prefusion_patches(features_FVND, views))
        if self.config.compress_before_projection:
            return patches, self.projector(self.compressor(grid, side, side))
        return patches, self.compressor(self.projector(grid), side, side)
