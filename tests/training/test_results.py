"""What is measured of a trained model: a question as at inference, whatever the batch holds, in high resolution too."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from llava_mini.batch import VLMBatch
from llava_mini.config import resolve
from llava_mini.data.toyworld.tokenizer import build_tokenizer
from llava_mini.errors import UserError
from llava_mini.stages.metrics import Answer, Answers
from llava_mini.training import results
from llava_mini.training.results import measured, one_question, weights_of
from llava_mini.training.run import assemble

IGNORE = -100


def batch(turn_ids: list[int] | None, labels: list[int], **frames: torch.Tensor) -> VLMBatch:
    """Two samples, the first of nine tokens, the second with other ids."""
    ids = torch.arange(1, 10)
    return VLMBatch(
        input_ids=torch.stack([ids, ids + 50]),
        attention_mask=torch.ones(2, 9, dtype=torch.long),
        labels=torch.tensor([labels, [IGNORE] * 9]),
        turn_ids=None if turn_ids is None else torch.tensor([turn_ids, [0] * 9]),
        keys=["a", "b"],
        **{"num_frames": torch.tensor([1, 1]), **frames},
    )


ANSWERED = [IGNORE, IGNORE, IGNORE, 4, 5, IGNORE, IGNORE, 8, 9]


@pytest.mark.parametrize("turn_ids", [None, [0, 0, 1, 1, 1, 2, 2, 2, 2]])
def test_a_question_is_the_first_without_its_answer(turn_ids: list[int] | None):
    asked = one_question(batch(turn_ids, ANSWERED, image_features=torch.randn(2, 1, 16, 8)), 24)
    assert asked.input_ids.tolist() == [[1, 2, 3]]
    assert asked.attention_mask.tolist() == [[1, 1, 1]]
    assert (asked.labels == IGNORE).all() and asked.turn_ids is None
    assert asked.image_features is None and asked.num_frames.tolist() == [1]
    assert asked.pixel_values is not None and asked.pixel_values.shape == (1, 1, 3, 24, 24)


def test_padding_is_no_part_of_it():
    padded = batch(None, [IGNORE] * 9, pixel_values=torch.randn(2, 1, 3, 24, 24))
    padded.attention_mask[0, 6:] = 0
    assert one_question(padded, 24).input_ids.tolist() == [[1, 2, 3, 4, 5, 6]]


def test_it_has_as_many_frames_and_views_as_its_sample():
    views = one_question(batch(None, ANSWERED, image_features=torch.randn(2, 5, 16, 8)), 24)
    assert views.pixel_values is not None and views.pixel_values.shape == (1, 5, 3, 24, 24)
    frames = {"pixel_values": torch.randn(4, 5, 3, 24, 24), "num_views": torch.tensor([1, 1, 1, 5])}
    video = one_question(batch(None, ANSWERED, num_frames=torch.tensor([3, 1]), **frames), 24)
    assert video.num_views is not None and video.num_views.tolist() == [1, 1, 1]
    assert video.pixel_values is not None and len(video.pixel_values) == 3 == int(video.num_frames)
    assert one_question(batch(None, ANSWERED, num_frames=torch.tensor([0, 0])), 24).pixel_values is None


@pytest.mark.parametrize(("compressor", "hd", "tokens"), [("none", True, 256), ("none", False, 64), ("query", True, 1)])
def test_a_run_is_measured_with_the_views_that_it_trained_on(
    smoke: Callable[..., list[str]], tmp_path: Path, compressor: str, hd: bool, tokens: int
):
    build_tokenizer().save_pretrained(str(tmp_path / "tokenizer"))
    config = resolve(
        smoke(
            f"compressor={compressor}", f"data.views={'hd' if hd else 'square'}", "model.weights=[]",
            f"model.tokenizer={tmp_path / 'tokenizer'}", "fusion.num_layers=0", "data.features=false",
            "data=toyworld", "data.val=instruct-test",
        )
    )  # fmt: skip
    run = assemble(config)
    for name, bad in (("quarantine.jsonl", 2), ("quarantine.rank1.jsonl", 1)):
        (tmp_path / name).write_text('{"key": "a"}\n' * bad)
    result = measured(run.model, run.processor.tokenizer, run.datamodule, tmp_path, steps=4)
    assert result["skipped"] == {"train": 3, "val": 0, "test": 0}
    assert result["tokens"] == tokens
    assert result["accuracy"]["val"] == result["accuracy"]["test"] < 0.2
    assert set(result["accuracy_by_kind"]["val"]) <= set(config.data.kinds)
    assert len(np.load(tmp_path / "predictions_val.npz")["key"]) == 16 * 12
    views = 5 if hd else 1
    tower = 12 * 96**2 * 3 * 65 * 2  # of one view, projections and MLP only
    assert result["prefill_flops"] > views * tower


def test_scores_that_are_no_numbers_are_no_result(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    tokenizer, ruined = build_tokenizer(), Answers([Answer("a", 0, "color", 1, 0.0, 0.0, float("nan"))])
    monkeypatch.setattr(results, "evaluate", lambda *_: ruined)
    model = SimpleNamespace(
        device="cpu", config=SimpleNamespace(text_config=SimpleNamespace(vocab_size=len(tokenizer)))
    )
    data = SimpleNamespace(splits={"val": None}, evaluation_batches=lambda *_: [])
    with pytest.raises(UserError, match="val, after the last step: nll of a is nan"):
        measured(model, tokenizer, data, tmp_path, steps=4)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("weights", "places", "of_language_model"),
    [
        ("parts", ["openai/clip", "lmsys/vicuna"], "lmsys/vicuna"),
        ("random", ["random weights"], "random weights"),
        ([], ["random weights"], "random weights"),
        (["stage0", "stage1"], ["stage0", "stage1"], "stage0, stage1"),
    ],
)
def test_a_base_is_named_by_where_its_weights_come_from(weights, places: list[str], of_language_model: str):
    parts = {"vision_tower": "openai/clip", "language_model": "lmsys/vicuna"}
    given = {"weights": weights, **(parts if weights == "parts" else {})}
    found = weights_of(resolve([]).changed({"model": given}).model)
    assert found == {"weights": places, "language_model": of_language_model}
