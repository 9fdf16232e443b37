"""A film of hours in a session on a CPU: what it costs to look at, to ask about, and to keep.

    llava-mini train experiment=tiny_scenes compressor.C=1 run_dir=RUN
    python experiments/006-efficiency/long_session.py RUN/model [--frames 10000]

Makes an mp4 of scenes of the tiny world, a second each, and looks at it at one frame a second: once with all keys and
values kept, once with features in 8 bits alone and the language model's cache in 8 bits. Writes long_session.md beside
this file.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from llava_mini.bench.processes import fresh, resident_memory, settled_memory
from llava_mini.data.toyworld.scenes import scene_at
from llava_mini.data.toyworld.source_files import write_mp4
from llava_mini.files import write_text
from llava_mini.inference.frame_cache import FrameCacheConfig
from llava_mini.inference.loading import load
from llava_mini.inference.long_context import context_tokens, extend_context
from llava_mini.inference.session import Session
from llava_mini.run.provenance import git_commit

HERE = Path(__file__).parent
SCENES = 50  # that the film shows over and over
QUESTIONS = ("how many circle objects", "what color is the square")
KEEPS = {
    "keys and values": (FrameCacheConfig(kv_budget=2**40), None),
    "features in 8 bits, cache in 8 bits": (FrameCacheConfig(kv_budget=0, features="int8"), 8),
}


def film(path: Path, seconds: int) -> None:
    """An mp4 of scenes, a second each."""
    scenes = np.stack([scene_at("instruct-val", seed=0, index=i).image for i in range(SCENES)])
    write_mp4(path, scenes[np.arange(seconds) % SCENES])


def measure(model_folder: str, path: Path, name: str) -> str:
    """A row of the table."""
    torch.set_num_threads(1)
    model, processor = load(model_folder, device="cpu")
    keep, bits = KEEPS[name]
    for frames in (64, None):  # a first look and question load what is loaded late
        session = Session(model, processor, keep=keep, kv_bits=bits)
        before = settled_memory()
        began = time.perf_counter()
        seen = session.add_media(path, count=frames)
        looked = time.perf_counter() - began
        if seen.frames + 300 > context_tokens(model.config):
            extend_context(model, seen.frames + 300)
        seconds = []
        for question in QUESTIONS:
            began = time.perf_counter()
            session.ask(question, max_new_tokens=4)
            seconds.append(time.perf_counter() - began)
    held = session.store.held_bytes()
    kept = sum(held.values()) / seen.frames / 1024
    return (
        f"| {name} | {seen.frames:,} | {seen.frames / looked:.0f} | {seconds[0]:.1f} | {seconds[1]:.1f} | {kept:.1f} | "
        f"{session.cache.held_bytes / 2**20:.0f} | {(resident_memory()[1] - before) / 2**20:.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--frames", type=int, default=10_000)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "film.mp4"
        film(path, options.frames)
        for name in KEEPS:
            rows.append(fresh(measure, options.model, path, name))
            print(rows[-1], flush=True)
    write_text(
        HERE / "long_session.md", _TEXT.format(commit=git_commit()[:7], frames=options.frames) + "\n".join(rows) + "\n"
    )


_TEXT = """\
# A film of {frames:,} seconds in a session

    llava-mini train experiment=tiny_scenes compressor.C=1 run_dir=RUN
    python experiments/006-efficiency/long_session.py RUN/model --frames {frames}

The tiny world's model (64 patches a frame, float32) on one thread of a CPU that other work shared; an mp4 file is
decoded, encoded and dropped as a stream. Growth is that of the process' peak memory, from after a first small session.
Commit {commit}.

| kept of a frame | frames | frames/s | first question, s | second, s | kept, KiB a frame | cache, MiB | growth, MiB |
|---|---|---|---|---|---|---|---|
"""


if __name__ == "__main__":
    main()
