"""LlavaMiniProcessor: converts images, videos and text to the inputs of the model.

In the text `<image>` represents one image and `<video>` all frames of a video. Each becomes one placeholder for every
compressed token. Images in any form (`visual_inputs.py`) become the views that the model was trained with
(`llava_mini.views`).

Shapes: B samples, T tokens, F frames of the whole batch, V views, H x W pixels of a view.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature, ProcessorMixin
from transformers.processing_utils import ProcessingKwargs

from llava_mini.errors import UserError, refused
from llava_mini.media.images import WHITE, color_of
from llava_mini.models.visual_inputs import counts_by_text, flat_images, flat_videos, frames_of, is_scaled, rgb_of
from llava_mini.token_layout import TokenLayout
from llava_mini.views import ViewMode, check_mode, mean_color, resized_longer, views_of


class LlavaMiniProcessor(ProcessorMixin):
    """Image processor and tokenizer in one.

    Args:
        image_processor: Image processor of transformers (the PIL ones need no torchvision).
        tokenizer: Tokenizer with `image_token` in its vocabulary.
        num_image_tokens: Number K of compressed tokens of a frame (`model.layout`).
        num_hd_image_tokens: Number K of compressed tokens of a frame with five views (`model.layout`).
        views: View mode that the model was trained with (`data.views`): "square", "pad", or "hd" with five views of an
            image.
        image_token: Placeholder; in a text it represents one image.
        video_token: Token that represents all frames of one video in a text; the tokenizer need not know it.
        chat_template: Jinja template for `apply_chat_template`.
        background: RGB color behind transparent parts of images and videos (`data.background`); white by default.

    Raises:
        UserError: for any other value of `views` or `background`.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        num_image_tokens: int = 1,
        num_hd_image_tokens: int = 1,
        views: ViewMode = "square",
        image_token: str = "<image>",
        video_token: str = "<video>",
        chat_template: str | None = None,
        background: Sequence[int] = WHITE,
    ):
        check_mode(views)
        self.num_image_tokens = num_image_tokens
        self.num_hd_image_tokens = num_hd_image_tokens
        self.views = views
        self.background = list(color_of(background))
        self.image_token = image_token
        self.video_token = video_token
        if tokenizer is not None:
            tokenizer.padding_side = "left"  # as in `__call__`; transformers' pipeline reads it for batches
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        videos: Any = None,
        audio: None = None,
        *,
        padding: bool | str = True,
        truncation: bool | str = False,
        max_length: int | None = None,
        padding_side: str = "left",
        add_special_tokens: bool = True,
        return_tensors: str = "pt",
        **kwargs: Any,
    ) -> BatchFeature:
        """Return a batch for `generate` or the model; arguments and their order are those of transformers' processors.

        Args:
            images: Image, or images of the whole batch in order: PIL images, arrays, tensors, file names, URLs or
                base64, in lists of any depth (`visual_inputs.py`).
            text: One prompt or B prompts; each `<image>` takes the next image, each `<video>` the next video.
            videos: Video, or videos of the whole batch in order: file names, URLs, sequences of frames, or lists of
                these. A file gives one frame per second.
            audio: None; transformers passes it.
            padding: Padding as the tokenizer takes it: True to the longest, "max_length" to `max_length`, False none.
            truncation: Truncation as the tokenizer takes it; placeholders must stay, so a text is cut after its images.
            max_length: Maximum number of tokens of a row, placeholders included.
            padding_side: Side of the padding: "left" for generation, "right" for training.
            add_special_tokens: Whether the tokenizer puts its own tokens before the text; not where a chat template
                contains them.
            return_tensors: Type of the tensors: "pt"; the model reads nothing else.
            **kwargs: Keywords as every processor of transformers takes them: `text_kwargs` for the tokenizer and
                `images_kwargs` for the image processor, which frames go through too, `videos_kwargs` with `fps` (of
                files) or `num_frames`, or the keys of these dictionaries themselves. The dictionaries take precedence
                over the keywords above. Others are ignored with a warning.

        Returns:
            input_ids and attention_mask [B, T]; with images or videos also pixel_values [F, V, 3, H, W], num_frames [B]
            and, where their views differ, num_views [F].

        Raises:
            UserError: when there is no text, it names another number of images or videos than given, one of them cannot
                be read or can be read in two ways, a video has no frame, placeholders are cut off, or audio or tensors
                other than torch's are requested.
        """
        named = {"padding": padding, "truncation": truncation, "max_length": max_length, "padding_side": padding_side}
        named |= {"add_special_tokens": add_special_tokens, "return_tensors": return_tensors}
        tells_spans = kwargs.pop("return_text_replacement_offsets", False)
        for_text, for_images, for_videos = self._kwargs(named, kwargs)
        if audio is not None:
            raise UserError("audio: the model reads none; allowed is None", key="audio", value=audio, allowed="None")
        if (tensors := for_text["return_tensors"]) != "pt":
            raise refused("return_tensors", tensors, only="pt")
        texts = [text] if isinstance(text, str) else text
        if not isinstance(texts, (list, tuple)) or not texts or not all(isinstance(prompt, str) for prompt in texts):
            raise refused("text", text, allowed="a string and a list of strings")
        self._check_owners(texts, images, videos)
        videos = [frames_of(video, **for_videos) for video in flat_videos(videos)]
        prompts, frames, num_frames, spans = self._expanded(texts, flat_images(images), videos, for_images)
        encoded = self.tokenizer(prompts, **for_text)
        self._check_placeholders(prompts, encoded["input_ids"], for_text["max_length"])
        offsets = {"text_replacement_offsets": spans} if tells_spans else {}
        return BatchFeature({**encoded, **(stack_frames(frames, num_frames) if frames else {}), **offsets})

    def _kwargs(self, named: dict[str, Any], others: dict[str, Any]) -> tuple[dict[str, Any], ...]:
        """Split keywords into those for the tokenizer, the image processor and videos, as transformers splits them."""
        nested = {**others.get("common_kwargs", {}), **others.get("text_kwargs", {})}
        flat = {key: value for key, value in named.items() if key not in nested}
        merged = self._merge_kwargs(ProcessingKwargs, **flat, **others)
        for_images = {key: value for key, value in merged["images_kwargs"].items() if key != "return_tensors"}
        for_videos = {key: merged["videos_kwargs"].get(key) for key in ("fps", "num_frames")}
        return {"return_token_type_ids": False, **named, **merged["text_kwargs"]}, for_images, for_videos

    def _expanded(
        self, texts: Sequence[str], images: list[Any], videos: list[Iterator[Any]], for_images: dict[str, Any]
    ) -> tuple[list[str], list[Tensor], list[int], list[list[dict[str, Any]]]]:
        """Texts with their placeholders, all frames [V, 3, H, W] in order of appearance, and their number in each text.

        The last item says, for every text, where in it a mark was and where its placeholders are, in transformers'
        format.
        """
        marks = re.compile(f"({re.escape(self.image_token)}|{re.escape(self.video_token)})")
        found = [part for prompt in texts for part in marks.findall(prompt)]
        for token, given, name in ((self.image_token, images, "images"), (self.video_token, videos, "videos")):
            if found.count(token) != len(given):
                why = f"{name}: the text has {found.count(token)} {token}, {len(given)} {name} were given"
                raise UserError(why, key=name)
        frames: list[Tensor] = []
        num_frames, prompts, spans = [], [], []
        rest = {self.image_token: iter(images), self.video_token: iter(videos)}
        for prompt in texts:
            first, pieces, replaced, old, new_at = len(frames), [], list[dict[str, Any]](), 0, 0
            for piece in marks.split(prompt):
                length = len(piece)
                if piece in rest:
                    item, is_video = next(rest[piece]), piece == self.video_token
                    seen = item if is_video else [item]
                    new = [self.pixels(frame, is_video=is_video, **for_images) for frame in seen]
                    frames += new
                    piece = self.image_token * self.layout.sample(len(frame) for frame in new)
                    replaced.append({"span": (old, old + length), "new_span": (new_at, new_at + len(piece))})
                old, new_at = old + length, new_at + len(piece)
                pieces.append(piece)
            num_frames.append(len(frames) - first)
            prompts.append("".join(pieces))
            spans.append(replaced)
        return prompts, frames, num_frames, spans

    def _check_owners(self, texts: Sequence[str], images: Any, videos: Any) -> None:
        """Raises UserError where media are given in a list for each text, and a text names another number of them."""
        for token, media, name in ((self.image_token, images, "images"), (self.video_token, videos, "videos")):
            counts = counts_by_text(media, len(texts), videos=name == "videos")
            if counts is None:
                continue
            for number, (text, count) in enumerate(zip(texts, counts, strict=True)):
                if text.count(token) != count:
                    why = f"{name}: text {number} has {text.count(token)} {token}, {count} {name} were given"
                    raise UserError(why, key=name)

    def _check_placeholders(self, prompts: list[str], input_ids: Tensor, max_length: int | None) -> None:
        """Raises UserError if placeholders of a frame are cut off: it would be read as another frame."""
        image_token_id = self.tokenizer.convert_tokens_to_ids(self.image_token)
        for prompt, ids in zip(prompts, input_ids, strict=True):
            kept, needed = int((ids == image_token_id).sum()), prompt.count(self.image_token)
            if kept < needed:
                reason = f"a text keeps {kept} of the {needed} placeholders of its images"
                raise refused("max_length", max_length, reason)

    @property
    def layout(self) -> TokenLayout:
        """How many placeholders frames take."""
        return TokenLayout(single_view=self.num_image_tokens, hd=self.num_hd_image_tokens)

    def pixels(
        self, image: Any, *, is_video: bool = False, input_data_format: str | None = None, **images_kwargs: Any
    ) -> Tensor:
        """Return one frame as the vision tower reads it: [V, 3, H, W].

        Args:
            image: Frame, in any of the forms that `__call__` takes.
            is_video: Whether the image is a frame of a video, which has one view.
            input_data_format: Layout "channels_first" or "channels_last", for arrays whose shape is ambiguous.
            **images_kwargs: Keywords for the image processor.

        Raises:
            UserError: the image cannot be read, can be read in two ways, is too large for its views, or too elongated
                to be resized.
        """
        rgb = rgb_of(image, input_data_format, background=color_of(self.background))
        around = mean_color(self.image_processor.image_mean)
        cut = views_of(rgb, self.views, around, is_video=is_video)
        views = [Image.fromarray(view) for view in cut]
        if shorter := dict(self.image_processor.size).get("shortest_edge"):
            for view in views:
                resized_longer(view.width, view.height, shorter)  # otherwise a line of pixels would use all memory
        if images_kwargs.get("do_rescale") is False and is_scaled(image):
            images_kwargs["do_rescale"] = True  # the caller's values, which must not change, are from 0 to 1
        made = self.image_processor(views, **images_kwargs, return_tensors="np")
        return torch.from_numpy(np.stack(made["pixel_values"]))

    def apply_chat_template(self, conversation: Any, *args: Any, **kwargs: Any) -> Any:
        """Apply a chat template as transformers does; `return_assistant_tokens_mask` also adds the `instruction_mask`.

        Returns:
            Text, ids or a batch, as in transformers. A batch with `assistant_masks` also has instruction_mask [B, T]: 1
            for text that is not an answer, which is what pre-fusion reads in training.
        """
        _check_conversation(conversation)
        for option in ("tools", "documents"):
            if kwargs.get(option):
                raise UserError(f"{option}: the chat template writes none; allowed is None", key=option, allowed="None")
        made = super().apply_chat_template(conversation, *args, **kwargs)
        if isinstance(made, MutableMapping) and "assistant_masks" in made:
            answers_BT = torch.as_tensor(made["assistant_masks"])
            made["instruction_mask"] = torch.as_tensor(made["attention_mask"]) * (1 - answers_BT)
        return made

    def batch_decode(self, *args: Any, **kwargs: Any) -> list[str]:
        """Decode token ids with the tokenizer's `batch_decode`."""
        return self.tokenizer.batch_decode(*args, **kwargs)

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "pixel_values", "num_frames", "num_views"]


_PARTS = ("text", "image", "image_url", "video", "video_url")


def _check_conversation(conversation: Any) -> None:
    """Raises UserError unless it is a conversation, or a list of them, whose messages have a role and a content."""
    several = isinstance(conversation, (list, tuple)) and conversation and isinstance(conversation[0], (list, tuple))
    for messages in conversation if several else [conversation]:
        if not isinstance(messages, (list, tuple)) or not messages:
            raise _is_no("list of messages, of which one is needed", messages)
        for message in messages:
            if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
                raise _is_no("message with a role and a content", message)
            content = message.get("content")
            parts = content if isinstance(content, (list, tuple)) else []
            if not isinstance(content, (str, list, tuple)):
                raise _is_no("content, which is a text or a list of parts", content)
            for part in parts:
                if not isinstance(part, Mapping) or not isinstance(part.get("type"), str):
                    raise _is_no("part with a type", part)
                if part["type"] not in _PARTS:
                    allowed = ", ".join(_PARTS)
                    line = f"conversation: a part of type {part['type']!r:.40}; allowed are {allowed}"
                    raise UserError(line, key="conversation", value=part["type"], allowed=allowed)


def stack_frames(frames: list[Tensor], num_frames: list[int]) -> dict[str, Tensor]:
    """Stack the frames [V, 3, H, W] of a batch as model inputs; frames with fewer views are padded with zeros."""
    views = [len(frame) for frame in frames]
    padding = [torch.nn.functional.pad(frame, (0, 0) * 3 + (0, max(views) - len(frame))) for frame in frames]
    stacked = {"pixel_values": torch.stack(padding), "num_frames": torch.tensor(num_frames)}
    if len(set(views)) > 1:
        stacked["num_views"] = torch.tensor(views)
    return stacked


def _is_no(kind: str, value: object) -> UserError:
    return UserError(f"conversation: {value!r:.60} is no {kind}", key="conversation", value=value)
