"""Two processes train one model, whatever each sees: they never hang, and their weights are always the same."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

Ranks = list[dict[str, Any]]


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., tuple[Path, Ranks]]]:
    """train(rank 0's batches, rank 1's, accumulate=1, strategy="auto"): the folder, and what each has in the end."""
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("two_ranks.py"))],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip

    def run(*batches: list[str], accumulate: int = 1, strategy: str = "auto") -> tuple[Path, Ranks]:
        folder = tmp_path_factory.mktemp("ranks")
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps([str(folder), accumulate, batches, strategy]) + "\n")
        process.stdin.flush()
        while (line := process.stdout.readline()) != "done\n":
            assert line, "it ended"
        return folder, [json.loads((folder / f"{rank}.json").read_text()) for rank in range(len(batches))]

    yield run
    process.kill()
    process.wait()


def parts_that_differ(first: dict[str, Any], second: dict[str, Any]) -> set[str]:
    return {name.split(".")[0] for name in first["weights"] if first["weights"][name] != second["weights"][name]}


@pytest.mark.parametrize(
    ("first", "second", "accumulate"),
    [
        (["image"] * 3, ["text"] * 3, 1),
        (["image", "text"] * 2, ["text", "text"] * 2, 2),  # the image is not in the batch that is synchronised
        (["text", "image"] * 2, ["bad", "bad"] * 2, 2),
        (["text"] * 2, ["text"] * 2, 1),
    ],
)
def test_a_rank_may_see_no_image(train: Callable, first: list[str], second: list[str], accumulate: int):
    _, ranks = train(first, second, accumulate=accumulate)
    assert not parts_that_differ(*ranks)
    _, untrained = train(["bad"], ["bad"])
    seen = parts_that_differ(ranks[0], untrained[0])
    learned = {"projector", "compressor", "prefusion"} if "image" in first else set()
    assert seen & {"projector", "compressor", "prefusion", "vision_tower"} == learned
    assert "language_model" in seen


def test_the_loss_that_is_reported_is_the_mean_of_both(train: Callable):
    def reported(first: str, second: str) -> float:
        _, ranks = train([first], [second])
        assert ranks[0]["losses"] == ranks[1]["losses"]
        return float(ranks[0]["losses"][0])

    both, image, text = reported("image", "text"), reported("image", "bad"), reported("bad", "text")
    assert both == pytest.approx(image + text) != pytest.approx(2 * image)


def test_a_loss_that_is_not_finite_ends_both_and_its_rank_names_the_samples(train: Callable):
    folder, ranks = train(["image", "image", "image"], ["text", "nan", "text"])
    assert "another rank's loss is not finite at step 1" in ranks[0]["error"]
    assert "loss is nan at step 1" in ranks[1]["error"] and "non_finite_loss.rank1.json" in ranks[1]["error"]
    assert [path.name for path in folder.glob("non_finite*")] == ["non_finite_loss.rank1.json"]
    assert json.loads((folder / "non_finite_loss.rank1.json").read_text())["keys"] == ["nan-3-0", "nan-3-1"]


@pytest.fixture(scope="module")
def alone(train: Callable[..., Any]) -> Callable[[str], dict[str, torch.Tensor]]:
    """alone("image+short"): gradients of one step on one rank and one batch."""

    @cache
    def run(batch: str) -> dict[str, torch.Tensor]:
        _, (rank,) = train([batch])
        return {name: torch.tensor(gradient) for name, gradient in rank["gradients"].items()}

    return run


@pytest.mark.parametrize("strategy", ["auto", "fsdp"])
@pytest.mark.parametrize(
    ("first", "second"),
    [
        (["image"], ["short"]),
        (["image", "short"], ["short", "text"]),
        (["bad", "image"], ["bad", "short"]),  # nothing is supervised in the step's first batch
        (["image", "bad"], ["bad", "bad"]),
    ],
)
def test_a_step_of_two_ranks_is_one_batch_on_one(
    train: Callable, alone: Callable, strategy: str, first: list[str], second: list[str]
):
    """Answers of one and of three tokens, no_sync in all batches but the last; gradients are clipped."""
    _, ranks = train(first, second, accumulate=len(first), strategy=strategy)
    expected = alone("+".join(kind for both in zip(first, second, strict=True) for kind in both))
    assert float(torch.stack([gradient.norm() for gradient in expected.values()]).norm()) == pytest.approx(1, rel=1e-3)
    for rank in ranks:
        assert rank["gradients"].keys() >= expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(torch.tensor(rank["gradients"][name]), gradient, rtol=1e-4, atol=1e-6)


def test_a_step_of_two_ranks_without_a_supervised_token_is_one_of_zeros(train: Callable):
    _, ranks = train(["bad"] * 2, ["bad"] * 2, accumulate=2)
    for rank in ranks:
        assert rank["gradients"] and not any(torch.tensor(each).any() for each in rank["gradients"].values())
