"""The files that README and docs use are there, and are what examples/make.py makes."""

import json
import re
import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llava_mini.data.toyworld.clips import clip_at
from llava_mini.media.video import frames_at

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


def test_images_and_clip_are_what_the_script_makes(tmp_path: Path) -> None:
    runpy.run_path(str(EXAMPLES / "make.py"))["make"](tmp_path)
    for name in ("board0.png", "board1.png"):
        with Image.open(tmp_path / name) as made, Image.open(EXAMPLES / name) as kept:
            np.testing.assert_array_equal(np.asarray(made), np.asarray(kept))
    seen = np.stack(list(frames_at(EXAMPLES / "clip.mp4", 1.0))).astype(int)
    assert np.abs(seen - clip_at("clip-test", 0, 0).frames).mean() < 4  # it is compressed


@pytest.mark.parametrize("text", ["README.md", "docs/inference.md", "examples/requests.jsonl"])
def test_what_is_named_is_there(text: str) -> None:
    names = set(re.findall(r"examples/[\w.-]+\.\w+", (ROOT / text).read_text())) - {"examples/lost.png"}
    if text.endswith(".jsonl"):
        requests = map(json.loads, (ROOT / text).read_text().splitlines())
        names = {f"examples/{request['image']}" for request in requests} - {"examples/lost.png"}
    assert names
    assert [name for name in sorted(names) if not (ROOT / name).exists()] == []
