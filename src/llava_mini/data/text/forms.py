"""Reads the published forms of conversations about images and videos as one form: messages and file names.

The supported forms are LLaVA's own records, LLaMA-Factory's (sharegpt, alpaca), ms-swift's, and messages as in OpenAI's
API; docs/data.md shows each. Other keys of a record are noted. If such a key seems to name a file, the record cannot be
used: it must not silently become a text-only sample.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from llava_mini.errors import SampleError

IMAGE_PLACEHOLDER = "<image>"  # in LLaVA records, whatever the tokenizer's own image token is
VIDEO_PLACEHOLDER = "<video>"

_MESSAGES = ("conversations", "messages")
_MESSAGE_KEYS = (("from", "value"), ("role", "content"))
_PAIRS = (("instruction", "input", "output"), ("query", "", "response"))  # question, its context, answer
_ROLES = {
    "human": "user",
    "user": "user",
    "observation": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "system": "system",
}
_MEDIA_PARTS = {"image": "image", "image_url": "image", "video": "video", "video_url": "video"}
_PLACEHOLDERS = {"image": IMAGE_PLACEHOLDER, "video": VIDEO_PLACEHOLDER}
FILE_KEYS = ("image", "images", "video", "videos")
_COMMON_KEYS = {"id", "source", "kinds", "system", *FILE_KEYS}
_PART_KEYS = {"type", "text", "url", "path", *_MEDIA_PARTS}
_LOSS_KEYS = ("loss", "weight")  # of a message, in ms-swift's and OpenAI's data: 0 or false is not to be learned
_EMPTY: tuple[Any, ...] = (None, "", [], {})
_FUNCTION_KEYS = {"tools", "functions", "tool_calls", "function_call"}

_URL = re.compile(r"[a-z][a-z0-9+.-]*://|data:", re.IGNORECASE)
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")
_MEDIA_STEMS = ("image", "video", "picture", "photo", "audio")
_MEDIA_WORDS = {"img", "imgs", "pic", "pics", "clip", "clips", "frame", "frames", "media", "speech", "sound"}
_MEDIA_FILE = re.compile(
    r"[^\n]{0,500}[^\s/]\.(?:jpe?g|png|webp|gif|bmp|tiff?|mp4|m4v|mov|mkv|webm|avi|mpe?g|flv|wmv|og[gv]|wav|mp3|flac|m4a)",
    re.IGNORECASE,
)

_TAGGED = re.compile(r"<(img|video|audio)>([^<>\n]{1,500})</\1>")  # how Qwen-VL's data names files within texts

# How other projects mark an image, a video or a place in one; tags that are also HTML's count at a text's ends only.
_MARKS = re.compile(
    r"<\|(?:image|img|video|vision|audio|object_ref|box)\w*\|>"
    r"|<(?:ImageHere|IMG_CONTEXT|start_of_image|ref-object|image[_-]?\d+)>"
    r"|^\s*<(?:Image|bbox)>|<(?:Image|bbox)>\s*$"
)


def foreign_mark(text: str) -> str:
    """Return the first placeholder of another project in a text, such as `<|image_pad|>`; empty without one."""
    found = _MARKS.search(text)
    return found[0].strip() if found else ""


def messages_of(record: Mapping[str, Any]) -> tuple[str | None, list[tuple[str, str]]]:
    """Return a record's system text, and role (user or assistant) and text, with file placeholders, of its messages.

    Raises:
        SampleError: There is no conversation, or one that cannot be read.
    """
    if record.get("label") in (False, 0) and isinstance(record.get("label"), bool | int):
        raise SampleError("`label` says that the answer is not wanted (KTO); only wanted answers are trained on")
    parsed = [_message(message) for message in _raw_messages(record)]
    if not parsed:
        raise SampleError("no conversation")
    system = _text(record.get("system") or "", "system")
    said = parsed.pop(0)[1] if parsed[0][0] == "system" else ""
    if IMAGE_PLACEHOLDER in system + said:
        raise SampleError(f"a system message contains {IMAGE_PLACEHOLDER}")
    if system and said and system != said:
        raise SampleError("a system message that differs from `system`")
    if any(role == "system" for role, _ in parsed):
        raise SampleError("a system message that is not the first message")
    return system or said or None, parsed


def media_names(record: Mapping[str, Any]) -> tuple[list[str], bool]:
    """Return the file names of the images of a record, or of its one video, and whether it is a video.

    Raises:
        SampleError: The record names both images and a video, several videos, something that is not a file name or URL,
            or files in two places.
    """
    found: dict[str, list[str]] = {"image": _names(record, "image"), "video": _names(record, "video")}
    within: dict[str, list[str]] = {"image": [], "video": []}
    for message in _raw_messages(record):
        for kind, name in _content(message)[1]:
            within[kind] += [name] if name else []
    for kind, names in within.items():
        if names and found[kind]:
            raise SampleError(f"{kind}s are named both by the record and within its messages")
        found[kind] = names or found[kind]
        if not all(isinstance(name, str) for name in found[kind]):
            raise SampleError(f"{kind} of a part is no file name")
    if found["image"] and found["video"]:
        raise SampleError("both an image and a video")
    if len(found["video"]) > 1:
        raise SampleError(f"{len(found['video'])} videos, 1 allowed")
    return found["video"] or found["image"], bool(found["video"])


def is_url(name: str) -> bool:
    """Return whether a name is a URL (of any scheme, or data:...) and not a file's."""
    return _URL.match(name) is not None


def ignored_keys(record: Mapping[str, Any], names: list[str]) -> tuple[list[str], str]:
    """Return the non-empty keys of a record that are not read, and the first of them that seems to name a file.

    Keys of messages are reported as `messages[].weight`. A key that repeats a file that is read (one of `names`), or
    gives its origin, does not count. If a question names a file that is not read within its text, as in Qwen-VL's data,
    the second value is that tag as written in the text.

    Raises:
        SampleError: A key that is not read contains functions.
    """
    unread, lost = dict(_unread(record)), _file_in_text(record, names)
    for key, value in unread.items():
        name = key.rpartition("[].")[2]
        if name in _FUNCTION_KEYS:
            raise SampleError(f"`{key}` is not read: no template writes functions")
        if not lost and _is_lost_file(name, list(_texts(value)), names):
            lost = key
    return list(unread), lost


def texts_of(record: Mapping[str, Any]) -> list[str]:
    """Return the texts of a record's messages, as far as they can be read."""
    system = record.get("system")
    texts = [system] if isinstance(system, str) else []
    try:
        messages = _raw_messages(record)
    except SampleError:
        messages = []
    for message in messages:
        content = message.get(_content_key(message)) if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else [content]:
            text = part.get("text") if isinstance(part, dict) else part
            texts += [text] if isinstance(text, str) else []
    return texts


def _messages_key(record: Mapping[str, Any]) -> str:
    """Return the key that contains the messages of a record; empty if it has none."""
    return next((key for key in _MESSAGES if record.get(key)), "")


def _raw_messages(record: Mapping[str, Any]) -> list[Any]:
    """Return the messages of a record in any form, each with a role and its content; none without a conversation."""
    given = [record[key] for key in _MESSAGES if record.get(key)]
    if len(given) > 1 and given[0] != given[1]:
        raise SampleError("both `conversations` and `messages`")
    if given:
        if not isinstance(given[0], list):
            raise SampleError(f"`{_messages_key(record)}` is {type(given[0]).__name__}, not a list of messages")
        return given[0]
    for question, about, answer in _PAIRS:
        if record.get(question) or record.get(answer):
            return _from_pairs(record, question, about, answer)
    return []


def _from_pairs(record: Mapping[str, Any], question: str, about: str, answer: str) -> list[Any]:
    """Return the pairs of `history` and the last pair as messages."""
    history = record.get("history") or []
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise SampleError("`history` is no list of pairs, a question and its answer")
    asked = [_text(record.get(key) or "", key) for key in (question, about) if key]
    pairs = [*history, ["\n".join(text for text in asked if text), _text(record.get(answer) or "", answer)]]
    roles = ("user", "assistant")
    return [{"role": role, "content": text} for pair in pairs for role, text in zip(roles, pair, strict=True)]


def _message(message: Any) -> tuple[str, str]:
    """Return role and text of a message."""
    if not isinstance(message, dict) or not any(keys[0] in message for keys in _MESSAGE_KEYS):
        raise SampleError("a message names neither `from` nor `role`")
    if key := next((key for key in _LOSS_KEYS if message.get(key) is not None and not message[key]), None):
        raise SampleError(f"a message with `{key}` {message[key]!r}; every answer of a record is trained on")
    role = message["from"] if "from" in message else message["role"]
    if not isinstance(role, str) or role not in _ROLES:
        raise SampleError(f"a message from {str(role)[:40]!r}; allowed: {', '.join(_ROLES)}")
    text, files = _content(message)
    if files and _ROLES[role] != "user":
        raise SampleError(f"an {files[0][0]} in a message from {role!r}")
    return _ROLES[role], _text(text, _content_key(message), " of a message")


def _content_key(message: Mapping[str, Any]) -> str:
    return "value" if "from" in message else "content"


def _content(message: Any) -> tuple[Any, list[tuple[str, Any]]]:
    """Return a message's content as text, and kind and name (if it has one) of every image or video among its parts.

    Placeholders before the first text are written one per line, later ones within the text, as in the chat templates.
    """
    content = message.get(_content_key(message)) if isinstance(message, dict) else None
    if not isinstance(content, list):
        return content, []
    text, files, front = "", [], True
    for number, part in enumerate(content):
        if isinstance(part, str):
            part = {"type": "text", "text": part}
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text":
            text, front = text + _text(part.get("text"), "text", " of a part"), False
        elif isinstance(kind, str) and kind in _MEDIA_PARTS:
            if part.get("source"):
                raise SampleError(f"{kind} of a part under `source`; allowed are `{kind}`, `url` and `path`")
            files.append((_MEDIA_PARTS[kind], _name_in(part)))
            text += _PLACEHOLDERS[_MEDIA_PARTS[kind]] + ("\n" if front and number + 1 < len(content) else "")
        else:
            raise SampleError(f"a part of type {str(kind)[:40]!r}; allowed: text, {', '.join(_MEDIA_PARTS)}")
    return text, files


def _name_in(part: Mapping[str, Any]) -> Any:
    """Return the name of a part's file: a text, or `url` or `path` of an object; None where the record names it."""
    value = next((part[key] for key in (*_MEDIA_PARTS, "url", "path") if part.get(key)), None)
    return (value.get("url") or value.get("path") or value) if isinstance(value, dict) else value


def _text(text: Any, key: str, where: str = "") -> str:
    if not isinstance(text, str):
        raise SampleError(f"`{key}`{where} is no text")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise SampleError("a text is no valid Unicode") from None
    return text


def _names(record: Mapping[str, Any], kind: str) -> list[Any]:
    """Return the names given by the key `kind` or its plural, for example `image` or `images`."""
    given = {key: record[key] for key in (kind, f"{kind}s") if record.get(key)}
    if len(given) > 1:
        raise SampleError(f"both `{kind}` and `{kind}s`")
    for key, value in given.items():
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
            raise SampleError(f"{key} is neither a file name nor a list of them")
        return names
    return []


def _unread(record: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the keys that are not read, with their values; empty values are left out."""
    form = _messages_key(record)
    pair = next((keys for keys in _PAIRS if record.get(keys[0]) or record.get(keys[2])), ())
    yield from _others(record, _COMMON_KEYS | ({form} if form else {"history", *pair}))
    for message in _raw_messages(record) if form else []:
        yield from _others(message, {*_MESSAGE_KEYS["from" not in message]}, f"{form}[].")
        content = message[_content_key(message)]
        for part in content if isinstance(content, list) else []:
            yield from _others({} if isinstance(part, str) else part, _PART_KEYS, "content[].")


def _others(fields: Mapping[str, Any], read: set[str], prefix: str = "") -> Iterator[tuple[str, Any]]:
    return ((prefix + key, value) for key, value in fields.items() if key not in read and value not in _EMPTY)


def _texts(value: Any) -> Iterator[str]:
    """Yield all texts in a value, however deeply nested."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)


def _file_in_text(record: Mapping[str, Any], names: list[str]) -> str:
    """Return `<img>a.jpg</img>` if a user's message contains it and the file is not read; else an empty string."""
    for role, text in map(_message, _raw_messages(record)):
        for found in _TAGGED.finditer(text) if role == "user" else ():
            name = found[2].strip()
            if name not in names and (is_url(name) or _MEDIA_FILE.fullmatch(name)):
                return found[0]
    return ""


def _is_lost_file(key: str, texts: list[str], names: list[str]) -> bool:
    """Whether an unread key names a lost file; if files are read, the key may repeat one of them or give its origin."""
    words = [word.lower() for word in _WORD.findall(key)]
    sounds_like_media = any(word in _MEDIA_WORDS or word.startswith(_MEDIA_STEMS) for word in words)
    files = [text for text in texts if _MEDIA_FILE.fullmatch(text)]
    if not names:
        return bool(files) or (sounds_like_media and any(texts))
    known = {name.rpartition("/")[2] for name in names}
    lost = any(not is_url(file) and file.rpartition("/")[2] not in known for file in files)
    return sounds_like_media and lost
