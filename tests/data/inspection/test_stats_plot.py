"""The picture of a set is drawn for whatever is in it."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llava_mini.data.format.shard_set import ShardSet
from llava_mini.data.format.shards import write_shards
from llava_mini.data.inspection.stats import statistics
from llava_mini.data.inspection.stats_plot import draw

MakeRecord = Callable[..., dict[str, bytes]]
MakeShards = Callable[..., ShardSet]


def drawn(shards: ShardSet, path: Path) -> np.ndarray:
    draw(shards, statistics(shards), path)
    pixels = np.asarray(Image.open(path).convert("RGB"))
    assert pixels.shape == (1050, 1650, 3)
    return pixels


def colors(pixels: np.ndarray) -> set[str]:
    named = {"text": (0xE6, 0x9F, 0x00), "image": (0x00, 0x72, 0xB2), "video": (0x00, 0x9E, 0x73)}
    return {name for name, color in named.items() if (pixels == color).all(-1).sum() > 100}


def test_each_modality_has_its_color(
    make_shards: MakeShards, clip: MakeRecord, members: MakeRecord, tmp_path: Path
) -> None:
    text = members(0, [("how many", "two")], image=False)
    assert colors(drawn(make_shards(3, {0: text}, "a"), tmp_path / "a.png")) == {"text", "image"}
    assert colors(drawn(make_shards(3, {0: text, 1: clip(1)}, "b"), tmp_path / "b.png")) == {"text", "image", "video"}
    assert colors(drawn(make_shards(2, {0: text, 1: text}, "c"), tmp_path / "c.png")) == {"text"}


def test_a_picture_is_the_same_bytes_again(make_shards: MakeShards, tmp_path: Path) -> None:
    shards = make_shards(3)
    for name in ("a.png", "b.png"):
        drawn(shards, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize(
    "names", [["a $dollar$ name", ""], [f"source {number} of a long name indeed" for number in range(40)]]
)
def test_sources_of_any_name_and_number_fit(tmp_path: Path, names: list[str]) -> None:
    samples = [(str(n), {"json": json.dumps({"source": name}).encode()}) for n, name in enumerate(names)]
    drawn(write_shards(samples, tmp_path / "set"), tmp_path / "many.png")
