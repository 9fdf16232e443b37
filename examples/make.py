"""Makes this folder's images and clip again: two test boards and a test clip of the tiny world.

    python examples/make.py [FOLDER]

No model has been trained on them; their digits come from a split of their own.
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

from llava_mini.data.toyworld.clips import clip_at
from llava_mini.data.toyworld.scenes import board_at
from llava_mini.data.toyworld.source_files import write_mp4


def make(folder: Path) -> None:
    """Write board0.png, board1.png and clip.mp4 into a folder that is there."""
    for index in (0, 1):
        Image.fromarray(board_at("board-test", 0, index).image).save(folder / f"board{index}.png")
    write_mp4(folder / "clip.mp4", clip_at("clip-test", 0, 0).frames)


if __name__ == "__main__":
    make(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
