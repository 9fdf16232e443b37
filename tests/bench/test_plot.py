"""The picture is drawn."""

from pathlib import Path

from PIL import Image

from llava_mini.bench.data_path import Findings
from llava_mini.bench.plot import draw


def test_the_picture_is_drawn(findings: Findings, tmp_path: Path) -> None:
    draw(findings, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.size[0] > 1000
        assert len(image.convert("RGB").getcolors(2**24) or []) > 50
