"""Turn the files that a record names into members of its sample: images unchanged or resized, videos as JPEG frames.

File names come from untrusted data, so none may lead out of its folder. Any problem with a file is a SampleError that
names the file.
"""

from __future__ import annotations

import io
import os
import re
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from llava_mini.data.building.downloads import downloaded, is_downloaded
from llava_mini.data.building.plan import Options
from llava_mini.data.text.forms import is_url, media_names
from llava_mini.errors import SampleError
from llava_mini.media.images import WHITE, Color, decode_image, encode_jpeg, shrunk, verify_image
from llava_mini.media.video import frames_at
from llava_mini.units import GIB

FRAME_SIDE = 336  # maximum pixels of the shorter side of a stored frame, unless `resize` is given
MOST_BYTES = GIB  # limit for one image file and for all images of a sample together: they are in memory


def media_members(record: Mapping[str, Any], options: Options) -> dict[str, bytes]:
    """Return the images or frames of a record by member name in a shard: none, one, or several, which are numbered.

    Raises:
        SampleError: a file is missing, outside its folder, too large, or cannot be decoded.
    """
    names, is_video = media_names(record)
    if is_video:
        return _numbered(_frames(names[0], options))
    images = (_image(name, options) for name in names)
    return dict(images) if len(names) == 1 else _numbered(images)


def _image(name: str, options: Options) -> tuple[str, bytes]:
    path = _found(options.images, name, "image", options)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise SampleError(f"unreadable image ({error.strerror}): {name}") from None
    try:
        return stored_image(raw, options.resize, options.background)
    except SampleError as error:
        raise SampleError(f"{error} ({name})") from None


def _frames(name: str, options: Options) -> Iterable[tuple[str, bytes]]:
    path = _found(options.videos, name, "video", options)
    try:
        short_side = options.resize or FRAME_SIDE
        for frame in frames_at(path, options.fps, short_side=short_side, background=options.background):
            yield "jpg", _encoded(frame, "jpg")
    except SampleError as error:
        raise SampleError(f"{error} ({name})") from None


def _found(folder: Path | None, name: str, what: str, options: Options) -> Path:
    """Return the path of the regular file called `name` in a folder, or downloaded."""
    if is_url(name):
        return _fetched(name, what, options.fetch)
    if folder is None:
        raise SampleError(f"no folder of {what}s was given: {name}")
    try:
        path = _path_inside(folder, name, what, options.follow_links)
        found = path.stat()
    except OSError as error:
        raise SampleError(f"missing {what} ({error.strerror}): {name}") from None
    except ValueError as error:
        if isinstance(error, SampleError):
            raise
        raise SampleError(f"{what} of an impossible name: {name!r}") from None
    if not stat.S_ISREG(found.st_mode):
        raise SampleError(f"{what} that is no file: {name}")
    if what == "image" and found.st_size > MOST_BYTES:
        raise SampleError(f"image of {found.st_size} bytes, {MOST_BYTES} allowed: {name}")
    return path


def _fetched(url: str, what: str, folder: Path | None) -> Path:
    shown = re.sub("(?<=//)[^/@]*@", "***@", url)[:80]  # a password stays out of logs and sidecars
    if not is_downloaded(url):
        raise SampleError(f"{what} named by a URL; of these only http:// and https:// are downloaded: {shown}")
    if folder is None:
        raise SampleError(f"{what} named by a URL, and no folder `fetch` to download it to was given: {shown}")
    try:
        return downloaded(url, folder)
    except SampleError as error:
        raise SampleError(f"{what} that cannot be downloaded ({error}): {shown}") from None


def _path_inside(folder: Path, name: str, what: str, follow_links: bool) -> Path:
    """Return the real path of a name in a folder; `..` or an absolute path that leads out of it is always refused."""
    root = os.path.realpath(folder)
    path = os.path.join(root, name)
    real = os.path.realpath(path)
    if os.path.commonpath([root, real]) == root:
        return Path(real)
    if ".." in Path(name).parts or os.path.commonpath([root, path]) != root:
        raise SampleError(f"{what} outside of the folder of {what}s: {name}")
    if not follow_links:
        raise SampleError(
            f"{what} after a link that leads out of the folder of {what}s, which only `follow_links` allows: {name}"
            f" ({_link_out(root, path)})"
        )
    return Path(real)


def _link_out(root: str, path: str) -> str:
    """Return the first link on the path that leads out of the root, and its target."""
    place = root
    for part in os.path.relpath(path, root).split(os.sep):
        place = os.path.join(place, part)
        if os.path.commonpath([root, os.path.realpath(place)]) != root:
            break
    return f"{os.path.relpath(place, root)} -> {os.readlink(place)}"


def stored_image(raw: bytes, resize: int | None, background: Color = WHITE) -> tuple[str, bytes]:
    """Return the extension and bytes of an image as stored in a shard; the content decides the extension, not the name.

    JPEG, PNG and WebP files stay unchanged, byte for byte, unless their shorter side is longer than `resize`. A resized
    image becomes a JPEG of quality 95 if it was a JPEG, and otherwise a PNG. Images of other formats become a PNG. What
    is written anew has no transparent parts: they are on `background`.

    Raises:
        SampleError: the image cannot be decoded.
    """
    extension = _extension(raw)
    if extension and resize is None:
        verify_image(raw)
        return extension, raw
    pixels = decode_image(raw, background)
    if extension and (resize is None or min(pixels.shape[:2]) <= resize):
        return extension, raw
    extension = "jpg" if extension == "jpg" else "png"
    return extension, _encoded(pixels if resize is None else shrunk(pixels, resize), extension)


def _extension(raw: bytes) -> str:
    """Return the extension of a format that shards can contain; empty for other formats."""
    if raw.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if raw.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    return "webp" if raw[:4] == b"RIFF" and raw[8:12] == b"WEBP" else ""


def _numbered(files: Iterable[tuple[str, bytes]]) -> dict[str, bytes]:
    members: dict[str, bytes] = {}
    total = 0
    for number, (extension, content) in enumerate(files):
        members[f"{number:06d}.{extension}"] = content
        total += len(content)
        if total > MOST_BYTES:
            raise SampleError(f"images of more than {MOST_BYTES} bytes")
    return members


def _encoded(pixels: NDArray[np.uint8], extension: str) -> bytes:
    if extension == "jpg":
        return encode_jpeg(pixels)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
