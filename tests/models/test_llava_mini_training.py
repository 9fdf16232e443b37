"""Training: what pre-fusion may see and where gradients go, checkpointing, half precision, batches without an image.

Tolerances: float32 with logits of about one; see test_llava_mini.py.
"""

import pytest
import torch

ATOL = 1e-4
ORDER = pytest.mark.parametrize("order", ["release", "paper"])


def close(got: torch.Tensor, want: torch.Tensor) -> None:
    torch.testing.assert_close(got, want, atol=ATOL, rtol=0)


@ORDER
@torch.no_grad()
def test_pre_fusion_does_not_see_answers_in_training(make_model, make_sample, collate, orders, order: str) -> None:
    """So what the language model reads of image and question is the same in training and in inference."""
    model = make_model(**orders[order])
    samples = [make_sample(1), make_sample(2, frames=2)]
    training, inference = collate(model, samples), collate(model, samples, answers=False)
    with_labels, without = model(**training).logits, model(**inference).logits
    for i in range(len(samples)):
        prompt = inference["attention_mask"][i].bool()
        close(with_labels[i, : int(prompt.sum())], without[i, prompt])
    seen = {**training, "instruction_mask": training["attention_mask"]}
    assert (model(**seen).logits - with_labels)[0, -3:].abs().max() > 0.01  # the answers would matter


@ORDER
def test_text_embeddings_are_detached_in_pre_fusion(make_model, make_sample, collate, orders, order: str) -> None:
    model = make_model(**orders[order])
    sample = make_sample(1)
    model(**collate(model, [sample])).loss.backward()
    gradient = model.get_input_embeddings().weight.grad.abs().sum(1)
    question = set(sample.before + sample.after) - set(sample.answer)
    assert gradient[sorted(question)].sum() == 0  # replaced by fused text, and detached there
    assert gradient[sample.answer[:-1]].min() > 0
    for part in (model.projector, model.compressor, model.prefusion):
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in part.parameters())
        assert sum(float(p.grad.abs().sum()) for p in part.parameters()) > 0


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")  # 5.17 has no other
@ORDER
def test_gradient_checkpointing_changes_nothing_but_memory(
    make_model, make_sample, collate, orders, order: str
) -> None:
    model = make_model(**orders[order]).train()
    batch = collate(model, [make_sample(1, frames=2), make_sample(2, frames=0)])
    calls: list[int] = []
    model.prefusion.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    results = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        results.append([loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    assert len(calls) == 1 + 2  # recomputed once in the backward pass
    assert len(results[0]) == len(results[1])
    for plain, checkpointed in zip(*results, strict=True):
        close(checkpointed, plain)


def test_copy_initialization(make_model) -> None:
    model = make_model(num_fusion_layers=2)
    model.prefusion.copy_from(model.language_model)
    own = model.language_model.get_decoder().layers
    for n in (0, 1):
        for name, parameter in model.prefusion.layers[n].named_parameters():
            assert torch.equal(parameter, own[n].get_parameter(name)), name


def test_a_text_only_batch_needs_no_image(make_model, make_sample, collate) -> None:
    model = make_model()
    batch = collate(model, [make_sample(1, frames=0), make_sample(2, frames=0)])
    none_at_all = model(**batch)
    no_frames = {"num_frames": torch.tensor([0, 0])}
    empty = no_frames | {"pixel_values": torch.zeros(0, 1, 3, 24, 24)}
    empty_views = no_frames | {"pixel_values": torch.zeros(0, 5, 3, 24, 24), "num_views": torch.zeros(0).long()}
    for extra in (no_frames, empty, empty_views):
        assert torch.equal(model(**batch, **extra).logits, none_at_all.logits)
    model(**batch, **empty).loss.backward()  # one step among others: no part may fail


@torch.no_grad()
def test_bfloat16_and_autocast(make_model, make_sample, collate) -> None:
    model = make_model()
    batch = collate(model, [make_sample(1), make_sample(2, views=5), make_sample(3, frames=2)])
    exact = model(**batch).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model(**batch)
    half = model.to(torch.bfloat16)(**batch).logits
    for logits in (mixed.logits, half):
        error = (logits.float() - exact)[batch["attention_mask"].bool()].abs()
        assert error.mean() < 0.05 and error.max() < 0.5  # 8 bits through eight layers; unrelated logits differ by one
    assert torch.isfinite(mixed.loss)


PLACEHOLDER = {"input_ids": 0, "attention_mask": 0, "labels": -100}


def with_placeholder(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The batch and, in its middle, the row of a sample that cannot be used: one token, no frame, no label."""
    row = {name: torch.full_like(batch[name][:1], fill) for name, fill in PLACEHOLDER.items()}
    row["attention_mask"][:, 0] = 1
    row["num_frames"] = torch.zeros(1, dtype=torch.long)
    joined = {name: torch.cat([batch[name][:1], row[name], batch[name][1:]]) for name in row}
    return {**batch, **joined}


@pytest.mark.parametrize("frames", [(1, 2), (0, 0), (0, 3)])
def test_the_row_of_an_unusable_sample_changes_no_other(make_model, make_sample, collate, frames: tuple[int, int]):
    model = make_model()
    batch = collate(model, [make_sample(seed, frames=count) for seed, count in enumerate(frames)])
    batch = {"num_frames": torch.tensor(frames), **batch}
    results = []
    for inputs in (batch, with_placeholder(batch)):
        model.zero_grad()
        outputs = model(**inputs)
        outputs.loss.backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        results.append((outputs.logits, outputs.loss, gradients))
    (logits, loss, gradients), (logits_with, loss_with, gradients_with) = results
    close(logits_with[[0, 2]], logits)
    close(loss_with, loss)
    assert gradients.keys() == gradients_with.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradients_with[name], gradient, atol=1e-4, rtol=1e-3)


def test_a_batch_of_unusable_samples_only_has_a_loss_of_zero_and_moves_nothing(make_model):
    model = make_model()
    ids = torch.zeros(2, 1, dtype=torch.long)
    frames = torch.zeros(2, dtype=torch.long)
    outputs = model(input_ids=ids, attention_mask=ids + 1, labels=ids - 100, num_frames=frames, turn_ids=ids)
    assert outputs.loss.item() == 0.0
    outputs.loss.backward()
    for name, parameter in model.language_model.named_parameters():
        assert parameter.grad is not None and not parameter.grad.any(), name
