"""Reads conversations of public datasets into one form: turns of a human text and an answer.

All differences between those datasets end here: record formats (which `forms.py` reads), positions of placeholders,
and messages without a counterpart. If a record cannot be used, the error says why.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

from llava_mini.data.text.forms import (
    FILE_KEYS,
    IMAGE_PLACEHOLDER,
    VIDEO_PLACEHOLDER,
    foreign_mark,
    ignored_keys,
    media_names,
    messages_of,
)
from llava_mini.errors import SampleError


@dataclass(frozen=True)
class Turn:
    """A human message and the answer to it; `kind` names the kind of question if the data does."""

    human: str
    answer: str
    kind: str = ""


@dataclass(frozen=True)
class Conversation:
    """The turns of one sample.

    Attributes:
        turns: Turns of the conversation, at least one; `<image>` marks where an image or the video goes.
        system: Text of the record's system message; None leaves it to the template.
        images: Number of images that the record names; 1 for a video, 0 for text only.
        is_video: Whether the record names a video.
        ignored: Keys of the record that are not read.
        lost: First ignored key, or tag in a human text, that seems to name a file that is not read; empty without one.
    """

    turns: tuple[Turn, ...]
    system: str | None = None
    images: int = 0
    is_video: bool = False
    ignored: tuple[str, ...] = ()
    lost: str = ""

    def check_files(self, stored: int) -> None:
        """Check that no file is silently lost; `stored` images may be with the record although it names none.

        Raises:
            SampleError: A key that is not read names a file.
        """
        if self.lost and (self.images or not stored):
            raise SampleError(f"`{self.lost}` is not read (files are named by {', '.join(FILE_KEYS)})")

    @property
    def num_images(self) -> int:
        """Number of placeholders; a video has one, whatever its number of frames."""
        return sum(turn.human.count(IMAGE_PLACEHOLDER) for turn in self.turns)

    @property
    def kinds(self) -> list[str]:
        """Kinds of the turns; an empty list when the data names none."""
        return [turn.kind for turn in self.turns] if any(turn.kind for turn in self.turns) else []


def parse_record(raw: bytes) -> Conversation:
    """Parse a record from JSON, see `conversation_of`.

    Raises:
        SampleError: The record cannot be used; the message says why.
    """
    try:
        record = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise SampleError(f"not JSON: {error}") from None
    return conversation_of(record)


def conversation_of(record: Any) -> Conversation:
    """Read a record of any form: {"conversations": [{"from": "human", "value": ...}, {"from": "gpt", ...}, ...], ...}.

    Messages before the first human message and a last message without an answer are dropped. A single placeholder is
    moved to the front of its text, as LLaVA trains it. Several placeholders stay where they are. Missing ones are
    added at the front of the first human text.

    Raises:
        SampleError: The record cannot be used; the message says why.
    """
    if not isinstance(record, dict):
        raise SampleError("not a JSON object")
    names, is_video = media_names(record)
    system, messages = messages_of(record)
    ignored, lost = ignored_keys(record, names)
    turns = _placed(_turns(messages, record.get("kinds")), len(names), is_video)
    return Conversation(turns, system, len(names), is_video, tuple(ignored), lost)


def _turns(messages: list[tuple[str, str]], kinds: Any) -> list[Turn]:
    """Return pairs of human and assistant messages; `kinds` has an entry for each message of the assistant."""
    roles = [role for role, _ in messages]
    first = roles.index("user") if "user" in roles else len(roles)
    last = len(roles) - (roles[-1:] == ["user"])
    if first >= last:
        raise SampleError("no answer to a human message")
    if roles[first:last] != ["user", "assistant"] * ((last - first) // 2):
        raise SampleError("human and assistant do not alternate")
    answers = roles.count("assistant")
    if kinds is None:
        kinds = [""] * answers
    if not isinstance(kinds, list) or len(kinds) != answers or not all(isinstance(kind, str) for kind in kinds):
        raise SampleError(f"kinds are no list of {answers} texts, one for each answer")
    texts = [text for _, text in messages[first:last]]
    if not all(text.strip() for text in texts[1::2]):
        raise SampleError("an empty answer")
    if any(IMAGE_PLACEHOLDER in text for text in texts[1::2]):
        raise SampleError(f"an answer contains {IMAGE_PLACEHOLDER}")
    if mark := next(filter(None, map(foreign_mark, texts[0::2])), None):
        raise SampleError(f"{mark} marks nothing here; an image or a video is marked by {IMAGE_PLACEHOLDER}")
    return [Turn(*turn) for turn in zip(texts[0::2], texts[1::2], kinds[first:], strict=True)]


def _placed(turns: list[Turn], images: int, is_video: bool) -> tuple[Turn, ...]:
    """Return the turns with one placeholder for every image, or for the video.

    `<image>` may also mean the video, as in LLaVA's own video data; `<video>` never means an image.
    """
    if not is_video and any(_shows_video(turn.human, images) for turn in turns):
        raise SampleError(f"{VIDEO_PLACEHOLDER} in a record of {'images' if images else 'text only'}")
    if is_video:
        turns = [replace(turn, human=turn.human.replace(VIDEO_PLACEHOLDER, IMAGE_PLACEHOLDER)) for turn in turns]
    found = sum(turn.human.count(IMAGE_PLACEHOLDER) for turn in turns)
    if images and found not in (0, images):
        raise SampleError(f"{found} placeholders for {images} {'video' if is_video else 'images'}")
    if images and not found:
        turns[0] = replace(turns[0], human=_in_front(turns[0].human, images))
    elif found == 1:
        turns = [
            replace(turn, human=_in_front(turn.human, 1)) if IMAGE_PLACEHOLDER in turn.human else turn for turn in turns
        ]
    return tuple(turns)


def _shows_video(text: str, images: int) -> bool:
    """Whether `<video>` means a video and is not HTML, which people also ask about."""
    if "</video>" in text:
        return False
    return VIDEO_PLACEHOLDER in text if images else VIDEO_PLACEHOLDER in (text.strip()[:7], text.strip()[-7:])


def _in_front(text: str, images: int) -> str:
    """Return a text after `images` placeholders, one per line; placeholders that it had are removed."""
    return ((IMAGE_PLACEHOLDER + "\n") * images + text.replace(IMAGE_PLACEHOLDER, "").strip()).rstrip()


def independent_conversations(conversation: Conversation) -> list[Conversation]:
    """Return every turn as a separate conversation that begins with the images (one per line), as LLaVA puts them.

    Raises:
        SampleError: An image comes later than the first turn.
    """
    images = conversation.turns[0].human.count(IMAGE_PLACEHOLDER)
    if images != conversation.num_images:
        raise SampleError("independent turns need all images in the first turn")
    return [
        replace(conversation, turns=(replace(turn, human=_in_front(turn.human, images)),))
        for turn in conversation.turns
    ]
