"""Independent turns packed behind one image equal separate samples: logits, loss and gradients of every part.

Tolerances: float32; masked entries add exact zeros, so only the order of sums differs (1e-5 at logits of about one).
"""

from typing import Any

import pytest
import torch

ATOL = 1e-4
Turn = tuple[list[int], list[int]]  # question, answer
TURNS: dict[str, list[Turn]] = {
    "questions": [([11, 12, 13], [21, 22]), ([14], [23, 24, 25]), ([15, 16], [26])],
    "captions": [([], [21, 22, 23]), ([], [24, 25]), ([], [26, 27, 28])],  # nothing stands between image and answer
}
KINDS: dict[str, dict[str, int]] = {"image": {}, "hd": {"views": 5}, "video": {"frames": 3}, "text": {"frames": 0}}


def row(model, sample, turns: list[Turn], first: int = 1) -> tuple[list[int], list[int], list[int]]:
    """Ids, labels and turn ids of turns behind the sample's frames."""
    shared = [1, *[model.config.image_token_id] * sum(model.layout.frame(len(f)) for f in sample.frames)]
    ids, labels, turn_ids = list(shared), [-100] * len(shared), [0] * len(shared)
    for i, (question, answer) in enumerate(turns, first):
        ids += question + answer
        labels += [-100] * len(question) + answer
        turn_ids += [i] * (len(question) + len(answer))
    return ids, labels, turn_ids


def batch_of(rows: list[tuple[list[int], list[int], list[int]]], frames: dict[str, Any], left: bool) -> dict[str, Any]:
    longest = max(len(ids) for ids, _, _ in rows)

    def padded(values: list[list[int]], fill: int) -> torch.Tensor:
        pads = [[fill] * (longest - len(each)) for each in values]
        return torch.tensor([pad + each if left else each + pad for pad, each in zip(pads, values, strict=True)])

    return {
        "input_ids": padded([ids for ids, _, _ in rows], 0),
        "labels": padded([labels for _, labels, _ in rows], -100),
        "turn_ids": padded([turns for _, _, turns in rows], 0),
        "attention_mask": padded([[1] * len(ids) for ids, _, _ in rows], 0),
        **frames,
    }


def packed_and_separate(
    model, samples, turns: list[Turn], stack, left: bool = False
) -> tuple[dict[str, Any], dict[str, Any]]:
    packed = batch_of([row(model, sample, turns) for sample in samples], stack([s.frames for s in samples]), left)
    singles = [(sample, turn) for sample in samples for turn in turns]
    frames = stack([sample.frames for sample, _ in singles])
    separate = batch_of([row(model, sample, [turn]) for sample, turn in singles], frames, left)
    del separate["turn_ids"]
    return packed, separate


def gradients(model, batch: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad(set_to_none=True)
    loss = model(**batch).loss
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def answers(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Logits at every supervised token, in reading order."""
    return logits[labels != -100]


def assert_equal_training(model, packed: dict[str, Any], separate: dict[str, Any]) -> None:
    with torch.no_grad():
        together, alone = model(**packed), model(**separate)
    torch.testing.assert_close(
        answers(together.logits, packed["labels"]), answers(alone.logits, separate["labels"]), atol=ATOL, rtol=0
    )
    loss, grads = gradients(model, packed)
    expected_loss, expected = gradients(model, separate)
    torch.testing.assert_close(loss, expected_loss, atol=ATOL, rtol=0)
    assert grads.keys() == expected.keys()
    for name in expected:
        error = (grads[name] - expected[name]).abs().max()
        assert error < ATOL + 1e-3 * expected[name].abs().max(), name


# Every kind with every depth; orders and kinds of attention so that each pair of values occurs.
PAIRS = [
    (kind, layers, ("release", "paper")[(row + layers) % 2], ("sdpa", "eager")[(row // 2 + layers) % 2])
    for row, kind in enumerate(KINDS)
    for layers in (0, 1, 2, 3)
]


@pytest.mark.parametrize(("kind", "num_fusion_layers", "order", "attention"), PAIRS)
def test_turns_equal_separate_samples(
    make_model, make_sample, stack, orders, kind: str, num_fusion_layers: int, order: str, attention: str
) -> None:
    model = make_model(num_fusion_layers=num_fusion_layers, attn_implementation=attention, **orders[order])
    samples = [make_sample(seed, **KINDS[kind]) for seed in (1, 2)]
    assert_equal_training(model, *packed_and_separate(model, samples, TURNS["questions"], stack))


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("turns", TURNS)
@pytest.mark.parametrize("compressor", ["query", "none", "zero"])
def test_questions_and_captions_with_every_padding(
    make_model, make_sample, stack, compressors, compressor: str, turns: str, left: bool
) -> None:
    model = make_model(compressor=compressors[compressor])
    samples = [make_sample(1), make_sample(2, frames=2)]
    assert_equal_training(model, *packed_and_separate(model, samples, TURNS[turns], stack, left))


@pytest.mark.parametrize("family", ["mistral", "qwen2"])
def test_other_families(make_model, make_text_config, make_sample, stack, family: str) -> None:
    model = make_model(text_config=make_text_config(family))
    samples = [make_sample(1), make_sample(2, views=5), make_sample(3, frames=0)]
    assert_equal_training(model, *packed_and_separate(model, samples, TURNS["questions"], stack))


@torch.no_grad()
def test_turns_do_not_see_one_another(make_model, make_sample, stack) -> None:
    model = make_model()
    packed, _ = packed_and_separate(model, [make_sample(1)], TURNS["questions"], stack)
    before = model(**packed).logits
    changed = packed["input_ids"].clone()
    second = packed["turn_ids"] == 2
    changed[second] += 1
    after = model(**{**packed, "input_ids": changed}).logits
    torch.testing.assert_close(after[~second], before[~second], atol=ATOL, rtol=0)
    assert (after[second] - before[second]).abs().amax(-1).min() > 0.01


@torch.no_grad()
def test_one_turn_is_a_plain_sample(make_model, make_sample, stack) -> None:
    model = make_model()
    packed, separate = packed_and_separate(model, [make_sample(1, frames=2)], TURNS["questions"][:1], stack)
    torch.testing.assert_close(model(**packed).logits, model(**separate).logits, atol=ATOL, rtol=0)


@torch.no_grad()
def test_a_conversation_is_not_independent_turns(make_model, make_sample, stack) -> None:
    """Without turn ids later turns see earlier ones: the two ways of training really differ."""
    model = make_model()
    packed, _ = packed_and_separate(model, [make_sample(1)], TURNS["questions"], stack)
    independent = model(**packed).logits
    conversation = model(**{**packed, "turn_ids": None}).logits
    third = packed["turn_ids"] == 3
    assert (independent[third] - conversation[third]).abs().max() > 0.01


@torch.no_grad()
def test_the_image_is_encoded_and_fused_once_for_all_turns(make_model, make_sample, stack) -> None:
    model = make_model()
    counts: list[int] = []
    see = model.prefusion.prefill_visual

    def counted(seen, *rest):
        counts.append(len(seen))
        return see(seen, *rest)

    model.prefusion.prefill_visual = counted
    packed, _ = packed_and_separate(model, [make_sample(1), make_sample(2)], TURNS["questions"], stack)
    model(**packed)
    assert counts == [2]
