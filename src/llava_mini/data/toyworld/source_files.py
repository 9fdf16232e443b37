"""Write clips and texts like a user's own data: LLaVA JSON and mp4 files, from which `data build` makes a shard set."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llava_mini.data.building.run import build_set
from llava_mini.data.format.shard_set import ShardSet
from llava_mini.data.toyworld.clips import clip_at
from llava_mini.data.toyworld.questions import Asked, clip_questions, text_questions
from llava_mini.data.toyworld.scenes import stream_rng
from llava_mini.errors import UserError
from llava_mini.files import writing

try:
    import av
except ImportError:
    av = None  # type: ignore[assignment] # `write_mp4` reports it

RATE = 4  # frames per second of a video; one state lasts one second
_FPS = 1.0  # one frame of every state is stored
_H264 = {"crf": "8", "preset": "veryfast", "tune": "animation"}  # sharp enough for shapes of a dozen pixels


def build_from_files(out: Path, stream: str, seed: int, count: int) -> ShardSet:
    """Build the first `count` samples of a stream of clips or texts as the shard set `out`; delete the source files.

    Source files left by a build that was killed are deleted too.

    Raises:
        UserError: `out` cannot be written, or PyAV is not installed.
    """
    folder = out.parent / f".{stream}-files"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        with writing(folder):
            folder.mkdir(parents=True)
            source = write_files(folder, stream, seed, count)
        return build_set([source], videos=folder, out=out, seed=seed, fps=_FPS)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_files(folder: Path, stream: str, seed: int, count: int) -> Path:
    """Write the videos of clips and the LLaVA JSON, and return the path of the JSON."""
    if stream.startswith("clip"):
        records = [_clip_record(folder, stream, seed, index) for index in range(count)]
    else:
        records = [
            llava_record(f"{stream}-{index:06d}", text_questions(stream_rng(stream, seed, index, 1)))
            for index in range(count)
        ]
    path = folder / f"{stream}.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


def llava_record(key: str, turns: Sequence[Asked], **media: str) -> dict[str, Any]:
    """Return a LLaVA record of at least one turn; `media` is a file name as `image` or `video`, or nothing."""
    messages = []
    for turn in turns:
        messages += [{"from": "human", "value": turn.question}, {"from": "gpt", "value": turn.answer}]
    for name in media:
        messages[0]["value"] = f"<{name}>\n{messages[0]['value']}"
    kinds = [turn.kind for turn in turns]
    return {"id": key, **media, "source": "toyworld", "conversations": messages, "kinds": kinds}


def _clip_record(folder: Path, stream: str, seed: int, index: int) -> dict[str, Any]:
    """Write the video of a clip and return its record."""
    clip = clip_at(stream, seed, index)
    key = f"{stream}-{index:06d}"
    write_mp4(folder / f"{key}.mp4", clip.frames)
    return llava_record(key, clip_questions(stream_rng(stream, seed, index, 1), clip), video=f"{key}.mp4")


def write_mp4(path: Path, states: NDArray[np.uint8]) -> None:
    """Write states [T, H, W, 3] as an mp4 file of T seconds; the same states give the same bytes.

    Colors have full resolution (4:4:4), because at half the resolution, shapes of a dozen pixels would be blurred.

    Raises:
        UserError: PyAV is not installed.
    """
    if av is None:
        raise UserError("the toy world's clips need PyAV: pip install 'llava-mini-lab[data]'")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options=_H264)
        stream.height, stream.width = states.shape[1:3]
        stream.pix_fmt = "yuv444p"
        stream.thread_count = 1
        for state in np.repeat(states, RATE, axis=0):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(state, format="rgb24")))
        container.mux(stream.encode())
