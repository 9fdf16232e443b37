"""Images and videos that are named by a URL or written out as base64, as transformers' processors take them."""

from __future__ import annotations

import base64
import binascii
import urllib.request
from http.client import HTTPException

import llava_mini
from llava_mini.errors import UserError

MOST_BYTES = 2**30  # of an image or a video, which is stored in memory
_SECONDS = 60.0  # without a response
AGENT = {"User-Agent": f"llava-mini-lab/{llava_mini.__version__}"}  # some servers refuse Python's default
_WEB = ("http://", "https://")


def bytes_at(name: str) -> bytes | None:
    """Return the bytes at a URL (http, https, data); None for any other text, which names a file.

    Raises:
        UserError: the URL cannot be read, or has more than `MOST_BYTES` bytes.
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
    """Return the bytes of a base64 text; None if it is not base64."""
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):  # ValueError: characters beyond ASCII
        return None


def shortened(name: str) -> str:
    """Return a name shortened for messages, which a base64 text would fill."""
    return name if len(name) <= 200 else f"{name[:80]}... ({len(name)} characters)"


def _downloaded(address: str) -> bytes:
    try:
        request = urllib.request.Request(address, headers=AGENT)
        with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
            raw: bytes = answer.read(MOST_BYTES + 1)
    except (OSError, HTTPException, ValueError) as error:  # ValueError: a malformed URL
        raise UserError(f"{address}: cannot be read ({' '.join(str(error).split()) or type(error).__name__})") from None
    if len(raw) > MOST_BYTES:
        raise UserError(f"{address}: more than {MOST_BYTES} bytes")
    return raw
