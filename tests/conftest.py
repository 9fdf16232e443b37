"""What every test shares: one torch thread, and the smallest models that still show a mistake.

Tiny weights are scaled so that every part moves the logits by about one: with the usual initialization of 0.02 a wrong
mask or a swapped frame would hide below any tolerance.
"""

import fcntl
import multiprocessing
import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, CLIPVisionConfig, PreTrainedConfig

from llava_mini.files import atomic_path
from llava_mini.models import LlavaMiniConfig, LlavaMiniForConditionalGeneration

pytest_plugins = ("tests.run_fixtures",)
torch.set_num_threads(1)
# A shell that starts the tests in the background has them, and every process that they start, ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

VOCAB, IMAGE_ID, IMAGE_SIZE = 99, 99, 24  # the placeholder lies beyond the vocabulary, as with the official weights
COMPRESSORS: dict[str, dict[str, Any]] = {
    "query": {"_target_": "llava_mini.models.compressors.query.QueryCompressor", "C": 2, "num_heads": 8},
    "avg_pool": {"_target_": "llava_mini.models.compressors.avg_pool.AveragePoolCompressor", "C": 2},
    "uniform": {"_target_": "llava_mini.models.compressors.uniform.UniformCompressor", "C": 2},
    "none": {"_target_": "llava_mini.models.compressors.none.NoCompressor"},
    "zero": {"_target_": "llava_mini.models.compressors.zero.ZeroCompressor"},
}
ORDERS = {
    "release": {"compress_before_projection": True, "fuse_compressed_tokens": True},
    "paper": {"compress_before_projection": False, "fuse_compressed_tokens": False},
}


@dataclass(frozen=True)
class Sample:
    """A question about frames [V, 3, H, W] each: ids before the frames, ids after them, the answer's ids."""

    frames: Sequence[Tensor]
    before: list[int]
    after: list[int]
    answer: list[int]


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's SQLite file with one experiment and no run, which takes MLflow seconds to make: to be copied."""
    from llava_mini.tracking.tracker import init_tracking

    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    init_tracking(f"sqlite:///{path}")
    return path


@pytest.fixture
def new_tracker(empty_database: Path, tmp_path: Path) -> str:
    """The URI of an MLflow of this test's own."""
    return f"sqlite:///{shutil.copy(empty_database, tmp_path / 'mlflow.db')}"


@pytest.fixture
def full_disk() -> Callable[[int], AbstractContextManager[None]]:
    """full_disk(size): within, this process can write no file beyond `size` bytes, as on a disk that is full."""

    @contextmanager
    def full(size: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return full


@pytest.fixture(scope="session")
def compressors() -> dict[str, dict[str, Any]]:
    """A config's `compressor` for every compressor of this package, with four tokens where there is a choice."""
    return COMPRESSORS


@pytest.fixture(scope="session")
def orders() -> dict[str, dict[str, bool]]:
    """The two orders of work (REFERENCE section 2) as config values."""
    return ORDERS


@pytest.fixture(scope="session")
def make_text_config() -> Callable[..., PreTrainedConfig]:
    """make_text_config(family="llama", **changes): three layers, 48 wide, grouped-query attention."""

    def make(family: str = "llama", **changes: Any) -> PreTrainedConfig:
        fields = dict(
            vocab_size=VOCAB, hidden_size=48, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=256, pad_token_id=0, bos_token_id=1, eos_token_id=None,
        )  # fmt: skip
        return AutoConfig.for_model(family, **{**fields, **changes})

    return make


@pytest.fixture(scope="session")
def make_config(make_text_config: Callable[..., PreTrainedConfig]) -> Callable[..., LlavaMiniConfig]:
    """make_config(**changes): CLIP with 4 x 4 patches, Llama, query compression to 2 x 2, two pre-fusion layers."""

    def make(**changes: Any) -> LlavaMiniConfig:
        vision = CLIPVisionConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, image_size=IMAGE_SIZE,
            patch_size=6,
        )  # fmt: skip
        fields: dict[str, Any] = dict(
            vision_config=vision,
            text_config=make_text_config() if "text_config" not in changes else None,
            image_token_id=IMAGE_ID,
            compressor=COMPRESSORS["query"],
            num_fusion_layers=2,
        )
        return LlavaMiniConfig(**{**fields, **changes})

    return make


@pytest.fixture(scope="session")
def make_model(make_config: Callable[..., LlavaMiniConfig]) -> Callable[..., LlavaMiniForConditionalGeneration]:
    """make_model(seed=0, **changes of the config): a model in evaluation mode whose weights all matter."""

    def make(seed: int = 0, **changes: Any) -> LlavaMiniForConditionalGeneration:
        with torch.random.fork_rng():
            torch.manual_seed(seed)  # some vectors (CLIP's class embedding) are random before they are scrambled
            model = LlavaMiniForConditionalGeneration(make_config(**changes))
        scramble(model, seed)
        return model.eval()

    return make


@pytest.fixture(scope="session")
def make_sample() -> Callable[..., Sample]:
    """make_sample(seed, frames=1, views=1, answer=3): random frames and ids 3-97; frames=0 is text only."""

    def make(seed: int, frames: int = 1, views: int = 1, answer: int = 3) -> Sample:
        generator = torch.Generator().manual_seed(seed)
        pixels = torch.randn(frames, views, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator)
        lengths = [2, 3 + seed % 3, answer]
        before, after, said = (torch.randint(3, VOCAB - 1, (n,), generator=generator).tolist() for n in lengths)
        return Sample(list(pixels), before, after, said)

    return make


@pytest.fixture(scope="session")
def collate() -> Callable[..., dict[str, Tensor]]:
    """collate(model, samples, padding_side="right", answers=True): arguments of the model; labels with answers."""

    def make(
        model: LlavaMiniForConditionalGeneration,
        samples: Sequence[Sample],
        padding_side: str = "right",
        answers: bool = True,
    ) -> dict[str, Tensor]:
        rows = []
        for sample in samples:
            frames = sum(model.layout.frame(len(frame)) for frame in sample.frames)
            prompt = sample.before + [model.config.image_token_id] * frames + sample.after
            rows.append((prompt, sample.answer if answers else []))
        longest = max(len(prompt) + len(answer) for prompt, answer in rows)
        batch: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "labels": []}
        for prompt, answer in rows:
            padding = longest - len(prompt) - len(answer)
            left, right = (padding, 0) if padding_side == "left" else (0, padding)
            batch["input_ids"].append([0] * left + prompt + answer + [0] * right)
            batch["attention_mask"].append([0] * left + [1] * (longest - padding) + [0] * right)
            batch["labels"].append([-100] * (left + len(prompt)) + answer + [-100] * right)
        if not answers:
            del batch["labels"]
        tensors = {name: torch.tensor(values) for name, values in batch.items()}
        return {**tensors, **stack_frames([sample.frames for sample in samples])}

    return make


@pytest.fixture(scope="session")
def stack() -> Callable[[Sequence[Sequence[Tensor]]], dict[str, Tensor]]:
    """stack(frames of every sample): pixel_values, num_frames and, where they differ, num_views."""
    return stack_frames


def stack_frames(frames_of_samples: Sequence[Sequence[Tensor]]) -> dict[str, Tensor]:
    """All frames of a batch in one tensor, those with fewer views padded with noise that nothing may read."""
    frames = [frame for frames in frames_of_samples for frame in frames]
    if not frames:
        return {}
    views = [len(frame) for frame in frames]
    stacked = torch.full((len(frames), max(views), 3, IMAGE_SIZE, IMAGE_SIZE), 1e3)
    for i, frame in enumerate(frames):
        stacked[i, : len(frame)] = frame
    inputs = {"pixel_values": stacked, "num_frames": torch.tensor([len(frames) for frames in frames_of_samples])}
    return inputs if len(set(views)) == 1 else {**inputs, "num_views": torch.tensor(views)}


@torch.no_grad()
def scramble(module: nn.Module, seed: int) -> None:
    """Random weights under which every layer keeps the size of what it reads, and no bias or norm is trivial."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() > 1:
            parameter.copy_(noise / parameter[0].numel() ** 0.5)
        else:
            parameter.add_(0.2 * noise)


def _die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _write_and_die(path: Path, moment: str) -> None:
    replace = os.replace
    if moment == "made":
        fcntl.flock = _die

    def replace_and_die(old: Any, new: Any) -> None:
        replace(old, new)
        _die()

    if moment == "renamed":
        os.replace = replace_and_die  # type: ignore[assignment]
    with atomic_path(path) as temporary:
        temporary.write_text("half")
        if moment == "written":
            _die()


@pytest.fixture(scope="session")
def killed_writer() -> Callable[..., Path]:
    """killed_writer(path, moment="written"): the place that a writer of `path` left which was killed at that moment.

    Moments are "made" (the place, not yet its lock), "written" (half of the file) and "renamed" (before the place is
    removed).
    """

    def kill(path: Path, moment: str = "written") -> Path:
        before = set(path.parent.glob(".llava-mini-*.tmp/*"))
        process = multiprocessing.get_context("fork").Process(target=_write_and_die, args=(path, moment))
        process.start()
        process.join(20)
        assert process.exitcode == -signal.SIGKILL
        (place,) = set(path.parent.glob(".llava-mini-*.tmp/*")) - before
        return place

    return kill
