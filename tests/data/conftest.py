"""A small toy world, its tokenizer, and shards made from records that a test writes itself."""

import io
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from transformers import PreTrainedTokenizerFast

from llava_mini.data.format.shard_set import ShardSet
from llava_mini.data.format.shards import write_shards
from llava_mini.data.stream.datamodule import Mix, VLMDataModule
from llava_mini.data.stream.pixels import PixelTransform
from llava_mini.data.stream.samples import SampleReader
from llava_mini.data.text.labels import ConversationTokenizer
from llava_mini.data.text.templates import TINY
from llava_mini.data.toyworld.make import make_world
from llava_mini.data.toyworld.tokenizer import build_tokenizer
from llava_mini.token_layout import TokenLayout

SIZES = {
    "caption-train": 9, "caption-val": 5, "instruct-train": 70, "instruct-val": 12, "instruct-test": 10,
    "board-train": 6, "board-val": 5, "board-test": 5,
}  # fmt: skip

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
def to_pixels() -> PixelTransform:
    """Encoded pictures to 32x32 bytes."""
    return PixelTransform(32)


@pytest.fixture
def tokenize(tokenizer: PreTrainedTokenizerFast) -> ConversationTokenizer:
    """Independent turns, two tokens an image."""
    return ConversationTokenizer(tokenizer, TINY, turns="independent", layout=TokenLayout(2, 2))


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


@pytest.fixture(scope="session")
def clip(members: MakeRecord, png: Callable[[int], bytes]) -> MakeRecord:
    """clip(i, frames=10): the members of a video; its frames are pictures of seeds 100, 101, ..."""

    def make(number: int, frames: int = 10) -> dict[str, bytes]:
        record = members(number, [("<video>\nwhat color is the ring", "red")], image=False, video=f"{number}.mp4")
        return {**record, **{f"{frame:06d}.png": png(100 + frame) for frame in range(frames)}}

    return make


@pytest.fixture
def texts(make_shards: MakeShards, members: MakeRecord, tokenize: ConversationTokenizer) -> Callable[..., Any]:
    """texts(batch_size=2, num_batches=12, bad=(), **changes): data of nine texts to train and three to validate.

    Those numbered in `bad` cannot be used.
    """

    def make(batch_size: int = 2, num_batches: int = 12, bad: Collection[int] = (), **changes: Any) -> VLMDataModule:
        turns = {i: [("where is the star " * i, "no"), ("how many star objects", "two")] for i in range(9)}
        content = {i: {"json": b"{"} if i in bad else members(i, turns[i], image=False) for i in range(9)}
        names = {"train": 9, "val": 3}
        shards = {split: make_shards(size, content, name=f"{split}-{sorted(bad)}") for split, size in names.items()}
        readers = {split: SampleReader(each, tokenize, transform=PixelTransform(32)) for split, each in shards.items()}
        arguments: dict[str, Any] = dict(
            splits={split: Mix([reader]) for split, reader in readers.items()},
            batch_size=batch_size, eval_batch_size=2, num_batches=num_batches, normalize=([0.5] * 3, [0.5] * 3),
        )  # fmt: skip
        return VLMDataModule(**{**arguments, **changes})

    return make


@pytest.fixture(scope="session")
def fit() -> Callable[..., Trainer]:
    """fit(module, data, steps, callbacks, accumulate=1, resume=None, **options of the Trainer): trains as runs do."""

    def run(
        module: LightningModule, data: VLMDataModule, steps: int, callbacks: Sequence[Callback],
        accumulate: int = 1, resume: Path | None = None, **options: Any,
    ) -> Trainer:  # fmt: skip
        quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
        trainer = Trainer(
            **{
                **quiet, "max_steps": steps, "max_epochs": 1, "accumulate_grad_batches": accumulate,
                "accelerator": "cpu", "num_sanity_val_steps": 0, "check_val_every_n_epoch": None,
                "val_check_interval": 2 * accumulate, "use_distributed_sampler": False, "log_every_n_steps": 1,
                "callbacks": list(callbacks), **options,
            }
        )  # fmt: skip
        trainer.fit(module, data, ckpt_path=resume, weights_only=True)
        return trainer

    return run


@pytest.fixture
def make_shards(tmp_path: Path, members: MakeRecord) -> MakeShards:
    """make_shards(count, changes={i: members}, name): samples 00, 01, ... of four a shard, some replaced.

    Asked again for a name, it gives the set of that name.
    """

    def make(count: int, changes: Mapping[int, dict[str, bytes]] | None = None, name: str = "shards") -> ShardSet:
        if (tmp_path / name).exists():
            return ShardSet(tmp_path / name)
        samples = [(f"{i:02d}", (changes or {}).get(i, members(i))) for i in range(count)]
        return write_shards(samples, tmp_path / name, samples_per_shard=4)

    return make
