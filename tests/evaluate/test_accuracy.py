"""Exact match in one pass is what `generate` would have said, turn by turn; every answer is kept for comparisons."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from llava_mini.batch import VLMBatch
from llava_mini.data.stream.samples import collate as collate_samples
from llava_mini.data.stream.samples import placeholder
from llava_mini.evaluate.accuracy import evaluate
from llava_mini.models import LlavaMiniForConditionalGeneration

BOS, EOS, IGNORE = 1, 2, -100
KINDS = ["color", "count", "shape"]
TRAINED, TURNS = 4, 3


@dataclass
class Asked:
    """An image [1, 3, H, W], the ids before it, and turns of question and answer ids."""

    image: Tensor
    before: list[int]
    turns: list[tuple[list[int], list[int]]]


def conversations() -> list[Asked]:
    """Six, the first of them of statements without questions, which all follow the same prompt."""
    rng = np.random.default_rng(0)
    images = torch.randn(6, 1, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    asked = []
    for number, image in enumerate(images):
        questions = [rng.integers(3, 40, rng.integers(1, 4)).tolist() if number else [] for _ in range(TURNS)]
        answers = [[*rng.integers(40, 60, rng.integers(1, 3)).tolist(), EOS] for _ in range(TURNS)]
        asked.append(Asked(image, [BOS, 3 + number], list(zip(questions, answers, strict=True))))
    return asked


def prefix_of(model: LlavaMiniForConditionalGeneration, sample: Asked) -> list[int]:
    return sample.before + [model.config.image_token_id] * model.layout.frame()


def batch_of(
    samples: Sequence[Asked], rows: list[list[int]], labels: list[list[int]], turns: list[list[int]] | None, owners: Any
) -> VLMBatch:
    def padded(lists: list[list[int]], fill: int) -> Tensor:
        return pad_sequence([torch.tensor(each) for each in lists], batch_first=True, padding_value=fill)

    return VLMBatch(
        input_ids=padded(rows, 0),
        attention_mask=padded([[1] * len(row) for row in rows], 0),
        labels=padded(labels, IGNORE),
        num_frames=torch.ones(len(rows), dtype=torch.long),
        pixel_values=torch.stack([samples[owner].image for owner in owners]),
        turn_ids=None if turns is None else padded(turns, 0),
        keys=[f"sample-{owner}" for owner in owners],
        kinds=[KINDS if turns else [KINDS[row % TURNS]] for row in range(len(rows))],
    )


def packed(model: LlavaMiniForConditionalGeneration, samples: Sequence[Asked]) -> VLMBatch:
    """A row a sample, its turns behind one another."""
    rows: list[list[int]] = []
    labels: list[list[int]] = []
    turns: list[list[int]] = []
    for sample in samples:
        row = prefix_of(model, sample)
        label, turn = [IGNORE] * len(row), [0] * len(row)
        for number, (question, answer) in enumerate(sample.turns, 1):
            row, label = row + question + answer, label + [IGNORE] * len(question) + answer
            turn += [number] * len(question + answer)
        rows.append(row)
        labels.append(label)
        turns.append(turn)
    return batch_of(samples, rows, labels, turns, range(len(samples)))


def separate(model: LlavaMiniForConditionalGeneration, samples: Sequence[Asked]) -> VLMBatch:
    """A row a turn."""
    turns = [(prefix_of(model, sample) + question, answer) for sample in samples for question, answer in sample.turns]
    rows = [prompt + answer for prompt, answer in turns]
    labels = [[IGNORE] * len(prompt) + answer for prompt, answer in turns]
    return batch_of(samples, rows, labels, None, np.arange(len(samples)).repeat(TURNS))


def generated(model: LlavaMiniForConditionalGeneration, samples: Sequence[Asked]) -> list[bool]:
    """Whether greedy `generate` says each answer, and nothing else."""
    right = []
    for sample in samples:
        for question, answer in sample.turns:
            prompt = torch.tensor([prefix_of(model, sample) + question])
            said = model.generate(
                input_ids=prompt, attention_mask=torch.ones_like(prompt), pixel_values=sample.image[None],
                num_frames=torch.ones(1, dtype=torch.long), do_sample=False, max_new_tokens=5, eos_token_id=EOS,
                pad_token_id=0,
            )  # fmt: skip
            right.append(said[0, prompt.shape[1] :].tolist() == answer)
    return right


@pytest.fixture(scope="module", params=["release", "paper"])
def trained(request: pytest.FixtureRequest, make_model: Callable, orders: dict) -> LlavaMiniForConditionalGeneration:
    """A model that learned the first conversations and never saw the last two."""
    model = make_model(**orders[request.param])
    batch = packed(model, conversations()[:TRAINED])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    for _ in range(25):
        optimizer.zero_grad()
        model(**batch.model_inputs()).loss.backward()
        optimizer.step()
    return model


def test_exact_match_is_what_generate_says(trained: LlavaMiniForConditionalGeneration):
    samples = conversations()
    expected = generated(trained, samples)
    assert sum(expected[: TRAINED * TURNS]) >= 8 and not all(expected)  # there is something right and something wrong
    statements = expected[:TURNS]
    assert sum(statements) <= 1  # one prompt has one greedy answer
    whole = evaluate(trained, [packed(trained, samples)])
    halves = evaluate(trained, [packed(trained, samples[:2]), packed(trained, samples[2:])])
    alone = evaluate(trained, [separate(trained, samples)])
    for answers in (whole, halves, alone):
        assert [row.exact_match == 1 for row in answers.rows] == expected
    assert whole.predictions().accuracy() == pytest.approx(np.mean(expected))
    np.testing.assert_allclose([row.nll for row in whole.rows], [row.nll for row in alone.rows], rtol=1e-4, atol=1e-5)
    asked = [(f"sample-{number}", turn, KINDS[turn]) for number in range(6) for turn in range(TURNS)]
    assert [row[:3] for row in whole.rows] == asked
    assert [(row.key, row.kind) for row in alone.rows] == [(key, kind) for key, _, kind in asked]


def test_an_untrained_model_is_wrong(make_model: Callable):
    model, samples = make_model(), conversations()
    answers = evaluate(model, [packed(model, samples)])
    assert answers.predictions().accuracy() == 0.0 == np.mean(generated(model, samples))


def test_evaluation_leaves_the_model_as_it_was_and_passes_over_unusable_samples(make_model: Callable):
    model = make_model().train()
    frozen = model.vision_tower.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    unusable = [placeholder("a", 0), placeholder("b", 0)]
    predictions = evaluate(model, [collate_samples(unusable, 0), packed(model, conversations()[:1])])
    assert [row.key for row in predictions.rows] == ["sample-0"] * TURNS
    assert modes == {name: module.training for name, module in model.named_modules()} and not frozen.training
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
