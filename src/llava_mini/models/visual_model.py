"""The visual part of LLaVA-Mini: vision tower, compressor, projector and pre-fusion, and the steps that use them.

Training processes all frames of a batch at once. Without gradients, frames go through in micro-batches of one kind
each, and what an answer does not need is not computed (`InferenceOptimizations`).

Shapes: B samples, S tokens of the longest instruction, F frames of the whole batch, V views of a frame, N patches of a
view, P patches of a frame that pre-fusion reads (N, or 5N for HD), K compressed tokens of a frame, D width of the
language model, Dv of the vision tower.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from llava_mini.errors import UserError
from llava_mini.models.compressors import build_compressor
from llava_mini.models.configuration import LlavaMiniConfig
from llava_mini.models.frame_batch import frames_at_once
from llava_mini.models.frames import Frames
from llava_mini.models.fused_frames import FusedFrames, Instruction
from llava_mini.models.inference_optimizations import InferenceOptimizations
from llava_mini.models.inputs import check_features, check_pixels
from llava_mini.models.prefusion import Prefusion, VisualKV
from llava_mini.models.projector import Projector
from llava_mini.models.vision_tower import (
    build_vision_tower,
    compression_grid,
    encode_views,
    patches_per_side,
    prefusion_patches,
)
from llava_mini.models.visual_tokens import VisualTokens
from llava_mini.token_layout import HD_VIEWS, TokenLayout


class VisualModel(PreTrainedModel):
    """Vision tower, compressor, projector and pre-fusion.

    Args:
        config: Config with shapes and order of operations; weights are random until loaded.

    Attributes:
        side: Number of patches along a side of a view.
        optimizations: Computations to leave out when no gradients are recorded.
        vision_batch: Number of views that the vision tower encodes at once; None: all views of a call.
        offload_vision: Whether a frozen vision tower's weights stay in host memory and are copied to encode frames.
        runs_all_layers: Whether a batch without frames also runs the layers that read frames, as sharded weights need.
    """

    config_class = LlavaMiniConfig

    def __init__(self, config: LlavaMiniConfig):
        super().__init__(config)
        vision_dim, text_dim = config.vision_config.hidden_size, config.text_config.hidden_size
        compressor_dim = vision_dim if config.compress_before_projection else text_dim
        self.vision_tower = build_vision_tower(config.vision_config)
        self.side = patches_per_side(config.vision_config)
        self.compressor = build_compressor(config.compressor, compressor_dim, self.side)
        self.projector = Projector(vision_dim=vision_dim, text_dim=text_dim, activation=config.projector_hidden_act)
        self.prefusion = Prefusion(text_config=config.text_config, num_layers=config.num_fusion_layers)
        self.optimizations = InferenceOptimizations()
        self.vision_batch: int | None = None
        self.offload_vision = False
        self.runs_all_layers = False

    @property
    def dtype(self) -> torch.dtype:
        """Type of the projector's parameters, which read the features; frozen parts may be stored in half precision.

        For a projector whose weights are packed bits, this is the type of its biases.
        """
        return next(each.dtype for each in self.projector.parameters() if each.is_floating_point())

    @property
    def device(self) -> torch.device:
        """Device of the projector, where inputs go; the vision tower may be in host memory."""
        return next(self.projector.parameters()).device

    @property
    def layout(self) -> TokenLayout:
        """How many tokens of the language model frames take."""
        count, side, hd_side = self.compressor.num_tokens, self.side, 2 * self.side
        return TokenLayout(single_view=count(side, side), hd=count(hd_side, hd_side))

    def frames(
        self, pixel_values: Tensor | None, image_features: Tensor | None, num_views: Tensor | None
    ) -> Frames | None:
        """Return the given frames, or None if there are none.

        Raises:
            ValueError: when both pixels and features are given, or shapes do not fit.
        """
        if pixel_values is not None and image_features is not None:
            raise ValueError("pixel_values and image_features: give one of them, the frames or their features")
        if image_features is not None:
            check_features(image_features, num_views, self.side**2, self.config.vision_config.hidden_size)
            return Frames(None, image_features, num_views) if len(image_features) else None
        if pixel_values is None or len(pixel_values) == 0:
            return None
        check_pixels(pixel_values, num_views)
        return Frames(pixel_values, None, num_views)

    def fuse_frames(
        self,
        frames: Frames,
        text_BTD: Tensor,
        instruction_BT: Tensor,
        turn_ids_BT: Tensor | None,
        num_frames_B: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Encode, compress and project every frame, and fuse it with its sample's instruction, part by part.

        What is made on the way ends with this call: a step's memory must not contain it while the language model runs.

        Args:
            frames: Frames of the batch.
            text_BTD: Embeddings of all text.
            instruction_BT: Mask of the instruction.
            turn_ids_BT: Turn of every token; None: one conversation.
            num_frames_B: Number of frames of each sample.

        Returns:
            Compressed tokens of all frames in order [sum of K, D], and the text with the instruction fused [B, T, D].
        """
        fused = FusedFrames(text_BTD, instruction_BT, turn_ids_BT, num_frames_B)
        for rows_F, part in self.parts(frames):
            features_FVND = self.encode_frames(part)
            visual = self.compress_and_project(features_FVND, part.num_views)
            compressed_FKD, text_FSD = self.fuse(visual, fused.instruction_of(rows_F))
            fused.add(rows_F, visual, compressed_FKD, text_FSD)
        return fused.tokens(), fused.text() if self.config.num_fusion_layers > 0 else text_BTD

    def parts(self, frames: Frames) -> Iterator[tuple[Tensor, Frames]]:
        """Yield the frames that are processed together, after their indices: all at once when gradients are recorded.

        Without gradients they are micro-batches of one kind each, as many frames as memory allows.
        """
        views_F = frames.views()
        every = torch.arange(len(frames), device=views_F.device)
        if torch.is_grad_enabled() or self.runs_all_layers:
            yield every, frames
            return
        for views in views_F.unique().tolist():
            size = self.optimizations.frame_batch or frames_at_once(self.config, views, self.dtype, views_F.device)
            for rows in every[views_F == views].split(size):
                yield rows, frames.take(rows, views)

    def encode_frames(self, frames: Frames) -> Tensor:
        """Features [F, V, N, Dv] of frames: computed from their pixels, or those that were given."""
        if frames.features is not None:
            return frames.features
        assert frames.pixel_values is not None
        return self.encode(frames.pixel_values, frames.num_views)

    def encode(self, pixel_values: Tensor, num_views: Tensor | None = None) -> Tensor:
        """Features of all real views, in the vision tower's type: [F, V, 3, H, W] -> [F, V, N, Dv]; zeros elsewhere."""
        check_pixels(pixel_values, num_views)
        frames, views = pixel_values.shape[:2]
        real_FV = None if num_views is None else torch.arange(views, device=num_views.device) < num_views[:, None]
        features = encode_views(
            self.vision_tower,
            pixel_values.flatten(0, 1) if real_FV is None else pixel_values[real_FV],
            layer=self.config.vision_feature_layer,
            num_patches=self.side**2,
            batch=self.vision_batch,
            offload=self.offload_vision,
            stop=self.optimizations.stop_tower,
        )
        if real_FV is None:
            return features.unflatten(0, (frames, views))
        padded = features.new_zeros(frames, views, *features.shape[1:])
        padded[real_FV] = features
        return padded

    def compress_and_project(self, features_FVND: Tensor, num_views: Tensor | None = None) -> VisualTokens:
        """Return compressed tokens and patches in the language model's width, in the configured order of operations.

        Frames with one view and HD frames have different grids, so each of the two kinds is processed as one group.
        """
        features_FVND = features_FVND.to(self.dtype)
        if num_views is None:
            return VisualTokens.of_one_kind(*self._compress_group(features_FVND, features_FVND.shape[1]))
        kinds = [(num_views == views, views) for views in num_views.unique().tolist()]
        return VisualTokens.of_kinds(
            [(chosen, *self._compress_group(features_FVND[chosen], views)) for chosen, views in kinds]
        )

    def fuse(self, visual: VisualTokens, instruction: Instruction) -> tuple[Tensor, Tensor]:
        """Fuse every frame with its sample's instruction (paper section 4.2).

        Args:
            visual: Patches and compressed tokens of F frames.
            instruction: Instruction of each frame's sample, S entries.

        Returns:
            Compressed tokens [F, K, D] as the language model reads them, and the instruction [F, S, D], which has read
            the patches. Without pre-fusion layers both are unchanged.
        """
        text_FSD, visible_FS, turn_ids_FS = instruction.text_FSD, instruction.visible_FS, instruction.turn_ids_FS
        if self.config.num_fusion_layers == 0:
            return visual.compressed_FKD, text_FSD
        if self._splits_prefusion():
            if turn_ids_FS is None:  # text ends the sequence, and its padding comes after all that attends
                return self._seen_with(visual, text_FSD)[:2]
            compressed_FKD, seen = self.prefill_visual(visual)
            return compressed_FKD, self.prefusion.attend_text(text_FSD, seen, visible_FS, turn_ids_FS)
        hidden_FLD, patches = self._sequence(visual, text_FSD), visual.patches_FPD.shape[1]
        compressed_mask = [visual.compressed_mask_FK] if self.config.fuse_compressed_tokens else []
        visible_FL = torch.cat([visual.patch_mask_FP, *compressed_mask, visible_FS], dim=1)
        before_text = hidden_FLD.shape[1] - text_FSD.shape[1]
        turn_ids_FL = None if turn_ids_FS is None else nn.functional.pad(turn_ids_FS, (before_text, 0))
        # sharded weights need a call of each whole layer
        trim = self.optimizations.trim_last_layer and not self.runs_all_layers
        return self._split_rows(visual, self.prefusion(hidden_FLD, visible_FL, turn_ids_FL, patches, trim))

    def prefill_visual(self, visual: VisualTokens) -> tuple[Tensor, VisualKV]:
        """Run the part of pre-fusion that needs no question, on frames of one kind.

        Return compressed tokens [F, K, D] as the language model reads them, and what `prefusion.attend_text` needs.
        """
        compressed_FKD, _, seen = self._seen_with(visual, visual.patches_FPD[:, :0])
        return compressed_FKD, seen

    def _seen_with(self, visual: VisualTokens, text_FSD: Tensor) -> tuple[Tensor, Tensor, VisualKV]:
        """Like `prefill_visual`, with a text after it: compressed tokens, fused text, and keys and values of all."""
        rows_FRD, seen = self.prefusion.prefill_visual(
            self._sequence(visual, text_FSD), visual.patches_FPD.shape[1], self.optimizations.trim_last_layer
        )
        return *self._split_rows(visual, rows_FRD), seen

    def _sequence(self, visual: VisualTokens, text_FSD: Tensor) -> Tensor:
        """Sequence that pre-fusion reads, [F, L, D]: patches, in the release's order compressed tokens, then text."""
        compressed = [visual.compressed_FKD] if self.config.fuse_compressed_tokens else []
        return torch.cat([visual.patches_FPD, *compressed, text_FSD], dim=1)

    def _split_rows(self, visual: VisualTokens, rows_FRD: Tensor) -> tuple[Tensor, Tensor]:
        """Compressed tokens [F, K, D] and text [F, S, D] of what pre-fusion makes of the rows after the patches."""
        if not self.config.fuse_compressed_tokens:
            return visual.compressed_FKD, rows_FRD
        tokens = visual.compressed_FKD.shape[1]
        return rows_FRD[:, :tokens], rows_FRD[:, tokens:]

    def _splits_prefusion(self) -> bool:
        """Whether pre-fusion is split: frames are then of one kind, without padding.

        Eager attention is not split: it needs its mask, and is for inspection.
        """
        return (
            self.optimizations.split_prefusion
            and not (torch.is_grad_enabled() or self.runs_all_layers or self.prefusion.training)
            and self.prefusion.config._attn_implementation == "sdpa"
        )

    def _nothing_seen(self) -> Tensor:
        """Zero, computed through every part that reads features."""
        width = self.config.vision_config.hidden_size
        features = torch.zeros(1, 1, self.side**2, width, device=self.device)
        visual = self.compress_and_project(features)
        hidden_FLD = torch.cat([visual.patches_FPD, visual.compressed_FKD], dim=1)
        seen_FL = torch.ones(hidden_FLD.shape[:2], dtype=torch.bool, device=hidden_FLD.device)
        return 0 * self.prefusion(hidden_FLD, seen_FL, None).sum()

    def _compress_group(self, features_FVND: Tensor, views: int) -> tuple[Tensor, Tensor]:
        """Patches [F, P, D] and compressed tokens [F, K, D] of frames that all have `views` views."""
        grid = compression_grid(features_FVND, views)
        side = self.side * (2 if views == HD_VIEWS else 1)
        patches = self.projector(prefusion_patches(features_FVND, views))
        if self.config.compress_before_projection:
            tokens = self.projector(self.compressor(grid, side, side))
        else:
            tokens = self.compressor(self.projector(grid), side, side)
        if tokens.shape[1] != (count := self.compressor.num_tokens(side, side)):
            name = type(self.compressor).__name__
            raise UserError(f"compressor {name}: forward returns {tokens.shape[1]} tokens, and num_tokens says {count}")
        return patches, tokens
