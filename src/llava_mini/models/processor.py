"""LlavaMiniProcessor: PIL images, video frames and text to the inputs of the model.

In the text `<image>` stands for one image and `<video>` for all frames of a video; each becomes one placeholder for
every compressed token. High resolution cuts every image 2x2 and adds the whole (REFERENCE section 1).

Shapes: B samples, T tokens, F frames of the whole batch, V views, H x W pixels of a view.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature, ProcessorMixin

from llava_mini.errors import UserError
from llava_mini.views import ImageTransform

Frame = Image.Image | np.ndarray


class LlavaMiniProcessor(ProcessorMixin):
    """Image processor and tokenizer in one.

    Args:
        image_processor: An image processor of transformers (the PIL ones need no torchvision).
        tokenizer: With `image_token` in its vocabulary.
        num_image_tokens: K, compressed tokens of a frame (`model.tokens_per_frame()`).
        num_hd_image_tokens: K of a frame with five views (`model.tokens_per_frame(5)`).
        high_resolution: Cut every image 2x2: five views. Frames of a video always have one view.
        image_token: The placeholder.
        chat_template: A Jinja template for `apply_chat_template`.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        num_image_tokens: int = 1,
        num_hd_image_tokens: int = 1,
        high_resolution: bool = False,
        image_token: str = "<image>",
        video_token: str = "<video>",
        chat_template: str | None = None,
    ):
        self.num_image_tokens = num_image_tokens
        self.num_hd_image_tokens = num_hd_image_tokens
        self.high_resolution = high_resolution
        self.image_token = image_token
        self.video_token = video_token
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    def __call__(
        self,
        text: str | Sequence[str],
        images: Frame | Sequence[Any] | None = None,
        videos: Sequence[Any] | None = None,
        audio: None = None,
        padding_side: str = "left",
        return_tensors: str = "pt",
        add_special_tokens: bool = True,
    ) -> BatchFeature:
        """A batch for `generate` or the model.

        Args:
            text: One prompt or B prompts; each `<image>` takes the next image, each `<video>` the next video.
            images: An image, or images of the whole batch in order (lists of lists are read in order too).
            videos: Videos of the whole batch in order, each a sequence of frames (lists of videos are read in order
                too).
            audio: None; `apply_chat_template` passes it on.
            padding_side: "left" for generation, "right" for training.
            return_tensors: "pt"; the model reads nothing else.
            add_special_tokens: Whether the tokenizer puts its own before the text; not where a chat template has them.

        Returns:
            input_ids and attention_mask [B, T]; with images or videos also pixel_values [F, V, 3, H, W], num_frames [B]
            and, where their views differ, num_views [F].

        Raises:
            UserError: when the text names another number of images or videos than given, a video has no frame, or
                audio or other tensors than torch's are wanted.
        """
        if audio is not None or return_tensors != "pt":
            raise UserError(f"processor: audio={audio!r} must be None and return_tensors={return_tensors!r} 'pt'")
        texts = [text] if isinstance(text, str) else list(text)
        image_list, video_list = _flat_images(images), _flat_videos(videos)
        marks = re.compile(f"({re.escape(self.image_token)}|{re.escape(self.video_token)})")
        found = [part for prompt in texts for part in marks.findall(prompt)]
        for token, given, name in ((self.image_token, image_list, "images"), (self.video_token, video_list, "videos")):
            if found.count(token) != len(given):
                raise UserError(f"{name}: the text has {found.count(token)} {token}, {len(given)} {name} were given")
        frames: list[Tensor] = []
        num_frames, prompts = [], []
        rest = {self.image_token: iter(image_list), self.video_token: iter(video_list)}
        for prompt in texts:
            first, pieces = len(frames), []
            for piece in marks.split(prompt):
                if piece in rest:
                    new = self._frames(next(rest[piece]), is_video=piece == self.video_token)
                    frames += new
                    piece = self.image_token * sum(self.tokens_of(len(frame)) for frame in new)
                pieces.append(piece)
            num_frames.append(len(frames) - first)
            prompts.append("".join(pieces))
        encoded = self.tokenizer(
            prompts, padding=True, padding_side=padding_side, return_tensors="pt", add_special_tokens=add_special_tokens
        )
        data = {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]}
        return BatchFeature({**data, **(stack_frames(frames, num_frames) if frames else {})})

    def tokens_of(self, views: int) -> int:
        """Placeholders of a frame with so many views."""
        return self.num_image_tokens if views == 1 else self.num_hd_image_tokens

    def views(self, image: Frame, high_resolution: bool) -> Tensor:
        """One frame as the vision tower reads it: [1, 3, H, W], or [5, 3, H, W] (crops row by row, then the whole)."""
        picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
        return ImageTransform(self.image_processor, hd=high_resolution)(picture.convert("RGB"))

    def batch_decode(self, *args: Any, **kwargs: Any) -> list[str]:
        """The tokenizer's `batch_decode`."""
        return self.tokenizer.batch_decode(*args, **kwargs)

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "pixel_values", "num_frames", "num_views"]

    def _frames(self, item: Any, is_video: bool) -> list[Tensor]:
        if not is_video:
            return [self.views(item, self.high_resolution)]
        if len(item) == 0:
            raise UserError("videos: a video has no frame, at least one is needed")
        return [self.views(frame, high_resolution=False) for frame in item]


def stack_frames(frames: list[Tensor], num_frames: list[int]) -> dict[str, Tensor]:
    """Frames [V, 3, H, W] of a batch as model inputs; frames with fewer views than others are padded with zeros."""
    views = [len(frame) for frame in frames]
    padding = [torch.nn.functional.pad(frame, (0, 0) * 3 + (0, max(views) - len(frame))) for frame in frames]
    stacked = {"pixel_values": torch.stack(padding), "num_frames": torch.tensor(num_frames)}
    if len(set(views)) > 1:
        stacked["num_views"] = torch.tensor(views)
    return stacked


def _is_frame(item: Any) -> bool:
    return isinstance(item, Image.Image) or (isinstance(item, np.ndarray) and item.ndim < 4)


def _is_video(item: Any) -> bool:
    return isinstance(item, np.ndarray) or (isinstance(item, (list, tuple)) and len(item) > 0 and _is_frame(item[0]))


def _flat_images(images: Any) -> list[Frame]:
    """Images in order, out of lists of any depth."""
    if images is None:
        return []
    if _is_frame(images):
        return [images]
    if not isinstance(images, (list, tuple)):
        raise UserError(f"images: {images!r} is neither a PIL image nor an array, nor a list of them")
    return [image for item in images for image in _flat_images(item)]


def _flat_videos(videos: Any) -> list[Sequence[Frame]]:
    """Videos in order, out of lists of any depth; a video is a list of frames, or an array of them."""
    if videos is None:
        return []
    if not isinstance(videos, (list, tuple)):
        raise UserError(f"videos: {videos!r} is not a list of videos, each a list or array of frames")
    return [video for item in videos for video in ([item] if _is_video(item) else _flat_videos(item))]
