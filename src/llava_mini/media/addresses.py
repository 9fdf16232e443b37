"""Images and videos that are named by an address or written out as base64, as transformers' processors take them."""

from __future__ import annotations

import base64
import binascii
import urllib.request
from http.client import HTTPException

import llava_mini
from llava_mini.errors import UserError

MOST_BYTES = 2**30  # of an image or a video, which is held in memory
_SECONDS = 60.0  # without an answer
_WEB = ("http://", "https://")


def bytes_at(name: str) -> bytes | None:
    """What an address (http, https, data) holds; None for a text that is none, and so names a file.

    Raises:
        UserError: it cannot be read, or has more than `MOST_BYTES` bytes.
    """
    if name.startswith(_WEB):
        return _downloaded(name)
    if name.startswith("data:"):
        head, comma, text = name.partition(",")
        raw = bytes_in(text) if comma and head.endswith(";base64") else None
        if raw is None:
            raise UserError(f"{shortened(name)}: no data of the form data:image/png;base64,...")
        return raw
    return None


def bytes_in(text: str) -> bytes | None:
    """What a text in base64 holds; None for one that is none."""
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):  # ValueError: characters beyond ASCII
        return None


def shortened(name: str) -> str:
    """A name for messages, which a text in base64 would fill."""
    return name if len(name) <= 200 else f"{name[:80]}... ({len(name)} characters)"


def _downloaded(address: str) -> bytes:
    agent = {"User-Agent": f"llava-mini-lab/{llava_mini.__version__}"}  # some servers refuse Python's own
    try:
        request = urllib.request.Request(address, headers=agent)
        with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
            raw: bytes = answer.read(MOST_BYTES + 1)
    except (OSError, HTTPException, ValueError) as error:  # ValueError: an address that is malformed
        raise UserError(f"{address}: cannot be read ({' '.join(str(error).split()) or type(error).__name__})") from None
    if len(raw) > MOST_BYTES:
        raise UserError(f"{address}: more than {MOST_BYTES} bytes")
    return raw
