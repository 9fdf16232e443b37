"""A small toy world, its tokenizer and transform, and shards made from records that a test writes itself."""

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import CLIPImageProcessorPil, PreTrainedTokenizerFast

from llava_mini.data.labels import ConversationTokenizer
from llava_mini.data.shards import ShardSet, write_shards
from llava_mini.data.templates import TINY
from llava_mini.data.toyworld.make import make_world
from llava_mini.data.toyworld.tokenizer import build_tokenizer
from llava_mini.views import ImageTransform

SIZES = {"caption-train": 9, "caption-val": 5, "instruct-train": 70, "instruct-val": 12, "instruct-test": 10}

MakeRecord = Callable[..., dict[str, bytes]]
MakeShards = Callable[..., ShardSet]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world of seed 0 with `SIZES` scenes."""
    return make_world(tmp_path_factory.mktemp("world"), seed=0, sizes=SIZES)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


@pytest.fixture(scope="session")
def transform() -> ImageTransform:
    """To 32x32 pixels."""
    return ImageTransform(CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}))


@pytest.fixture
def tokenize(tokenizer: PreTrainedTokenizerFast) -> ConversationTokenizer:
    """Independent turns, two tokens an image."""
    return ConversationTokenizer(tokenizer, TINY, turns="independent", num_image_tokens=2)


@pytest.fixture(scope="session")
def png() -> Callable[[int], bytes]:
    """png(seed): an encoded 32x32 picture of noise."""

    def make(seed: int) -> bytes:
        pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        return buffer.getvalue()

    return make


@pytest.fixture(scope="session")
def members(png: Callable[[int], bytes]) -> MakeRecord:
    """members(i, turns=[(human, answer), ...], image=True): the members of one sample."""

    def make(
        number: int, turns: list[tuple[str, str]] | None = None, image: bool = True, **more: Any
    ) -> dict[str, bytes]:
        turns = turns or [("<image>\nwhat color is the ring", "red"), ("how many star objects", "two")]
        messages = [
            {"from": who, "value": text} for turn in turns for who, text in zip(("human", "gpt"), turn, strict=True)
        ]
        content = {"json": json.dumps({"id": str(number), "conversations": messages, **more}).encode()}
        return {**content, "png": png(number)} if image else content

    return make


@pytest.fixture
def make_shards(tmp_path: Path, members: MakeRecord) -> MakeShards:
    """make_shards(count, changes={i: members or None}, name): samples 00, 01, ... of four a shard, some replaced."""

    def make(count: int, changes: Mapping[int, dict[str, bytes]] | None = None, name: str = "shards") -> ShardSet:
        samples = [(f"{i:02d}", (changes or {}).get(i, members(i))) for i in range(count)]
        return write_shards(samples, tmp_path / name, samples_per_shard=4)

    return make
