"""From frames to compressed tokens and fused text: vision tower, compressor, projector and pre-fusion of the model.

Training processes all frames of a batch at once. Without gradients, frames go through in micro-batches of one kind
each, and what an answer does not need is not computed (`InferenceOptimizations`).

Shapes: B samples, T tokens, S tokens of the longest instruction, F frames of the whole batch, V views of a frame, N
patches of a view, P patches of a frame that pre-fusion reads (N, or 5N for HD), K compressed tokens of a frame, D width
of the language model, Dv of the vision tower.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llava_mini.models.compressors import Compressor
from llava_mini.models.frame_batch import frames_at_once
from llava_mini.models.inference_optimizations import InferenceOptimizations
from llava_mini.models.inputs import check_features, check_pixels
from llava_mini.models.packed import Packed
from llava_mini.models.prefusion import Prefusion, VisualKV
from llava_mini.models.projector import Projector
from llava_mini.models.vision_tower import HD_VIEWS, SINGLE_VIEW, compression_grid, encode_views, prefusion_patches
from llava_mini.models.visual_tokens import VisualTokens


@dataclass(frozen=True)
class Frames:
    """Frames of a batch: pixels [F, V, 3, H, W], or features [F, V, N, Dv] that `encode` computed from them earlier.

    Attributes:
        pixel_values: Pixels [F, V, 3, H, W], or None.
        features: Features [F, V, N, Dv], or None.
        num_views: Number of real views of every frame, [F]; None: all V.
    """

    pixel_values: Tensor | None
    features: Tensor | None
    num_views: Tensor | None

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


class FramesMixin:
    """Processing of frames, as a mixin of a model.

    Attributes:
        optimizations: Computations to leave out when no gradients are recorded.
        vision_batch: Number of views that the vision tower encodes at once; None: all views of a call.
        offload_vision: Whether a frozen vision tower's weights stay in host memory and are copied to encode frames.
        runs_all_layers: Whether a batch without frames also runs the layers that read frames, as sharded weights need.
    """

    config: Any
    vision_tower: Any
    compressor: Compressor
    projector: Projector
    prefusion: Prefusion
    side: int
    optimizations: InferenceOptimizations
    vision_batch: int | None
    offload_vision: bool
    runs_all_layers: bool

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

    def tokens_per_frame(self, views: int = SINGLE_VIEW) -> int:
        """Number K of placeholders in input_ids for a frame of `views` views.

        Raises:
            ValueError: for a number of views that no frame has.
        """
        if views not in (SINGLE_VIEW, HD_VIEWS):
            raise ValueError(
                f"a frame has {views} views, expected {SINGLE_VIEW} or {HD_VIEWS} (2x2 crops and the whole)"
            )
        side = self.side * (2 if views == HD_VIEWS else 1)
        return self.compressor.num_tokens(side, side)

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

    def encode(self, pixel_values: Tensor, num_views: Tensor | None = None) -> Tensor:
        """Features of all real views, in the vision tower's type: [F, V, 3, H, W] -> [F, V, N, Dv]; zeros elsewhere."""
        check_pixels(pixel_values, num_views)
        frames, views = pixel_values.shape[:2]
        if num_views is None:
            return self._encode_views(pixel_values.flatten(0, 1)).unflatten(0, (frames, views))
        real_FV = torch.arange(views, device=num_views.device) < num_views[:, None]
        features = self._encode_views(pixel_values[real_FV])
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

    def fuse(
        self,
        frames: Frames,
        text_BTD: Tensor,
        instruction_BT: Tensor,
        turn_ids_BT: Tensor | None,
        num_frames_B: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Compress every frame and fuse it with its sample's instruction; fused text is the mean over the frames.

        Only the instruction goes through pre-fusion. Answers, placeholders and padding, which it must not read, cost
        nothing. Text outside the instruction, and samples without a frame, keep their plain embedding. Gradients do not
        flow back into text embeddings through pre-fusion (release).

        Returns:
            Compressed tokens of all frames in order [sum of K, D], and text [B, T, D].
        """
        owner_F = torch.arange(len(text_BTD), device=text_BTD.device).repeat_interleave(num_frames_B)
        fused_BT = instruction_BT & (num_frames_B > 0)[:, None]
        read = Packed.of(fused_BT)
        text_BSD = read.take(text_BTD)
        turn_ids_BS = None if turn_ids_BT is None else read.take(turn_ids_BT)
        precise = torch.promote_types(
            text_BSD.dtype, torch.float32
        )  # half precision cannot represent a sum over thousands of frames
        sum_BSD = torch.zeros_like(text_BSD, dtype=precise)
        tokens, frame_of_token = [], []
        for rows, part in self._batches(frames):
            owner = owner_F[rows]
            visual = self.compress_and_project(self._features(part), part.num_views)
            compressed_FKD, fused_FSD = self._fused(
                visual,
                text_BSD.detach()[owner],
                read.mask_BS[owner],
                None if turn_ids_BS is None else turn_ids_BS[owner],
            )
            sum_BSD = sum_BSD.index_add(0, owner, fused_FSD.to(precise))
            tokens.append(compressed_FKD[visual.compressed_mask_FK])
            frame_of_token.append(rows.repeat_interleave(visual.compressed_mask_FK.sum(1)))
        order = torch.argsort(torch.cat(frame_of_token), stable=True)
        if self.config.num_fusion_layers == 0:
            return torch.cat(tokens)[order], text_BTD
        mean_BSD = (sum_BSD / num_frames_B.clamp(min=1)[:, None, None]).to(text_BTD.dtype)
        return torch.cat(tokens)[order], text_BTD.masked_scatter(fused_BT[..., None], mean_BSD[read.mask_BS])

    def prefill_visual(self, visual: VisualTokens) -> tuple[Tensor, VisualKV]:
        """Run the part of pre-fusion that needs no question.

        Args:
            visual: Patches and compressed tokens of frames of one kind.

        Returns:
            Compressed tokens [F, K, D] as the language model reads them, and what `prefusion.attend_text` needs.
        """
        nothing = visual.patches_FPD[:, :0]
        compressed_FKD, _, seen = self._seen_with(visual, nothing)
        return compressed_FKD, seen

    def _seen_with(self, visual: VisualTokens, text_FSD: Tensor) -> tuple[Tensor, Tensor, VisualKV]:
        """Like `prefill_visual`, with a text after it: compressed tokens, fused text, and keys and values of all."""
        fuses, patches = self.config.fuse_compressed_tokens, visual.patches_FPD.shape[1]
        parts = [visual.patches_FPD, *([visual.compressed_FKD] if fuses else []), text_FSD]
        rows_FRD, seen = self.prefusion.prefill_visual(
            torch.cat(parts, dim=1), patches, self.optimizations.trim_last_layer
        )
        tokens = visual.compressed_FKD.shape[1] if fuses else 0
        return rows_FRD[:, :tokens] if fuses else visual.compressed_FKD, rows_FRD[:, tokens:], seen

    def _batches(self, frames: Frames) -> Iterator[tuple[Tensor, Frames]]:
        """Frames that are processed together, and their indices: all at once when gradients are recorded."""
        views_F = frames.views()
        every = torch.arange(len(frames), device=views_F.device)
        if torch.is_grad_enabled() or self.runs_all_layers:
            yield every, frames
            return
        for views in views_F.unique().tolist():
            size = self.optimizations.frame_batch or frames_at_once(self.config, views, self.dtype, views_F.device)
            for rows in every[views_F == views].split(size):
                yield rows, frames.take(rows, views)

    def _features(self, frames: Frames) -> Tensor:
        if frames.features is not None:
            return frames.features
        assert frames.pixel_values is not None
        return self.encode(frames.pixel_values, frames.num_views)

    def _fused(
        self, visual: VisualTokens, text_FSD: Tensor, visible_FS: Tensor, turn_ids_FS: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Compressed tokens [F, K, D] and text [F, S, D] of frames, after pre-fusion."""
        if self.config.num_fusion_layers == 0:
            return visual.compressed_FKD, text_FSD
        if self._splits_prefusion():
            if turn_ids_FS is None:  # text ends the sequence, and its padding comes after all that attends
                return self._seen_with(visual, text_FSD)[:2]
            compressed_FKD, seen = self.prefill_visual(visual)
            return compressed_FKD, self.prefusion.attend_text(text_FSD, seen, visible_FS, turn_ids_FS)
        fuses, patches = self.config.fuse_compressed_tokens, visual.patches_FPD.shape[1]
        seen_FLD = torch.cat([visual.patches_FPD, visual.compressed_FKD], dim=1) if fuses else visual.patches_FPD
        length = seen_FLD.shape[1]
        masks = [visual.patch_mask_FP, visual.compressed_mask_FK] if fuses else [visual.patch_mask_FP]
        visible_FL = torch.cat([*masks, visible_FS], dim=1)
        turn_ids_FL = None if turn_ids_FS is None else nn.functional.pad(turn_ids_FS, (length, 0))
        first = patches if fuses else length
        trim = (
            self.optimizations.trim_last_layer and not self.runs_all_layers
        )  # sharded weights need a call of each whole layer
        fused_FRD = self.prefusion(torch.cat([seen_FLD, text_FSD], dim=1), visible_FL, turn_ids_FL, first, trim)
        tokens = length - first
        return fused_FRD[:, :tokens] if fuses else visual.compressed_FKD, fused_FRD[:, tokens:]

    def _splits_prefusion(self) -> bool:
        """Whether pre-fusion is split: frames are then of one kind, without padding.

        Eager attention is not split: it needs its mask, and is for inspection.
        """
        return (
            self.optimizations.split_prefusion
            and not (torch.is_grad_enabled() or self.runs_all_layers or self.prefusion.training)
            and self.prefusion.config._attn_implementation == "sdpa"
        )

    def _encode_views(self, views_3HW: Tensor) -> Tensor:
        return encode_views(
            self.vision_tower,
            views_3HW,
            layer=self.config.vision_feature_layer,
            num_patches=self.side**2,
            batch=self.vision_batch,
            offload=self.offload_vision,
            stop=self.optimizations.stop_tower,
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
            return patches, self.projector(self.compressor(grid, side, side))
        return patches, self.compressor(self.projector(grid), side, side)
