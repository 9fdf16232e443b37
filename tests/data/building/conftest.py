"""Pictures, clips and sources as users bring them, tiny and made on the spot."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

MakePicture = Callable[..., bytes]


@pytest.fixture(scope="session")
def picture() -> MakePicture:
    """picture(seed, size=(48, 32), encoding="JPEG", mode="RGB", **saving): an encoded picture."""

    def make(
        seed: int, size: tuple[int, int] = (48, 32), encoding: str = "JPEG", mode: str = "RGB", **saving: Any
    ) -> bytes:
        pixels = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).convert(mode)
        buffer = io.BytesIO()
        image.save(buffer, encoding, **saving)
        return buffer.getvalue()

    return make


@pytest.fixture(scope="session")
def clip() -> Callable[..., bytes]:
    """clip(seconds, rate=8, size=(64, 48)): an mp4 whose frames get brighter."""

    def make(seconds: float, rate: int = 8, size: tuple[int, int] = (64, 48)) -> bytes:
        buffer = io.BytesIO()
        with av.open(buffer, "w", format="mp4") as container:
            stream = container.add_stream("mpeg4", rate=rate)
            stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
            for number in range(int(seconds * rate)):
                pixels = np.full((size[1], size[0], 3), 10 + number, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode())
        return buffer.getvalue()

    return make


def conversation(*texts: str) -> list[dict[str, str]]:
    """Texts of human and gpt in turn."""
    return [{"from": ("human", "gpt")[number % 2], "value": text} for number, text in enumerate(texts)]


@pytest.fixture
def world(tmp_path: Path, picture: MakePicture, clip: Callable[..., bytes]) -> Path:
    """A folder with mix.json: 20 records about images, 6 without, 2 about videos; and their files."""
    for folder in ("images/coco", "videos"):
        (tmp_path / folder).mkdir(parents=True)
    records: list[dict[str, Any]] = []
    for number in range(20):
        (tmp_path / "images" / "coco" / f"{number}.jpg").write_bytes(picture(number))
        talk = conversation("<image>\nwhat is it", f"it is {number}", "sure?", "yes")
        records.append({"id": f"i{number}", "image": f"coco/{number}.jpg", "conversations": talk})
    records += [{"id": f"t{number}", "conversations": conversation("hello", f"text {number}")} for number in range(6)]
    for number in range(2):
        (tmp_path / "videos" / f"{number}.mp4").write_bytes(clip(2 + number))
        talk = conversation("<video>\nwhat happens", "it gets brighter")
        records.append({"id": f"v{number}", "video": f"{number}.mp4", "source": "clips", "conversations": talk})
    (tmp_path / "mix.json").write_text(json.dumps(records))
    return tmp_path
