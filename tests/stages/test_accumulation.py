"""Of whatever batches and ranks a step is made, its gradients are those of the mean over all of its tokens."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from tests.stages.noting import ALL_RATES, Gradients, Losses, weights
from torch import nn
from torch.optim import SGD

from llava_mini.stages.accumulation import StepMean, scale_gradients

Factory = Callable[..., Any]


def gradient(batches: list[list[list[float]]]) -> tuple[float, list[float]]:
    """What a step gives of `batches`, each a list of tokens' gradients for every rank, and all weights of losses.

    A token's loss is its gradient times the only parameter; ranks are averaged as DDP does, batches as Lightning.
    """
    ranks, weights = range(len(batches[0])), []
    parts = len(batches) * len(ranks)
    parameters = [nn.Parameter(torch.ones(1)) for _ in ranks]
    optimizers, means = [SGD([p]) for p in parameters], [StepMean() for _ in ranks]
    for number, batch in enumerate(batches):
        every = sum(map(len, batch))
        for rank in ranks:
            own = batch[rank]
            if number == 0:
                means[rank].begin()
            weights.append(means[rank].add(len(own), every, parts, optimizers[rank]))
            loss = (torch.tensor(own) * parameters[rank]).sum() / max(len(own), 1)
            (loss * weights[-1] / len(batches)).backward()
    return float(torch.stack([p.grad for p in parameters if p.grad is not None]).mean()), weights


@pytest.mark.parametrize(
    "batches",
    [
        [[[1.0, 2.0]], [[5.0]], [[4.0, 4.0, 9.0]]],
        [[[]], [[3.0]], [[]], [[1.0, 7.0]]],  # nothing is supervised in the first batch, nor in the third
        [[[1.0, 2.0], [5.0]], [[], [4.0, 4.0, 9.0]]],
        [[[], []], [[1.0], []]],
        [[[8.0]], *[[[1.0] * 999]] * 3],
    ],
)
def test_gradients_are_those_of_the_mean_over_all_tokens(batches: list[list[list[float]]]):
    tokens = [token for batch in batches for own in batch for token in own]
    found, weights = gradient(batches)
    assert found == pytest.approx(sum(tokens) / len(tokens), rel=1e-6)
    # No batch counts for more than all of the step's: its scaled gradients are no larger than its own mean's.
    assert max(weights) <= len(batches) * len(batches[0])


def test_a_step_without_a_supervised_token_has_gradients_of_zero():
    assert gradient([[[], []], [[], []]]) == (0.0, [0.0] * 4)


@pytest.mark.parametrize(("batch", "ranks"), [([3], 1), ([3, 3], 2), ([49, 49, 49], 3)])
def test_alone_or_beside_as_many_tokens_a_batch_counts_as_it_is(batch: list[int], ranks: int):
    optimizer = SGD([nn.Parameter(torch.ones(1))])
    assert {StepMean().add(own, sum(batch), ranks, optimizer) for own in batch} == {1.0}


def test_what_is_left_of_another_step_does_not_count():
    mean, parameter = StepMean(), nn.Parameter(torch.ones(2))
    optimizer = SGD([parameter])
    mean.add(5, 5, 1, optimizer)
    mean.begin()
    parameter.grad = torch.ones(2)  # Lightning clears it only after the forward pass
    assert mean.add(2, 2, 1, optimizer) == 1.0
    assert parameter.grad.tolist() == [1.0, 1.0]


def test_gradients_are_scaled_in_place_where_there_are_any():
    parameters = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    kept = parameters[0].grad = torch.tensor([2.0, torch.inf, torch.nan])
    scale_gradients(SGD(parameters), 0.5)
    assert parameters[0].grad is kept and parameters[1].grad is None
    assert kept.tolist() == pytest.approx([1.0, torch.inf, torch.nan], nan_ok=True)  # what overflowed shows still


def test_a_batch_before_scales_down_with_every_batch_that_follows():
    mean, parameter, seen = StepMean(), nn.Parameter(torch.ones(1)), []
    optimizer, parameter.grad = SGD([parameter]), torch.ones(1)
    for tokens in (1, 1, 0, 2):
        mean.add(tokens, tokens, 4, optimizer)
        seen.append(float(parameter.grad))
    assert seen == [1.0, 0.5, 0.5, 0.25]


ANSWERS = {3: 1, 6: 9, 9: 2, 12: 4}  # supervised tokens by sample
WHOLE = [[3, 6, 9, 12]]
DEALT = [[[3, 6], [9, 12]], [[3], [6], [9], [12]], [[], [12], [6, 9, 3], []]]


@pytest.fixture
def step(make_stage: Factory, make_batch: Factory, fit: Factory) -> Factory:
    """step(samples of each batch, **options of the Trainer): one step's gradients, and the weights that it leaves."""

    def run(seeds: list[list[int]], **options: Any) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        stage, gradients = make_stage(), Gradients()
        batches = [make_batch(stage.model, each, answers=ANSWERS) for each in seeds]
        given = {"accumulate_grad_batches": len(seeds), "max_steps": 1, "callbacks": [gradients], **options}
        assert fit(stage, batches, **given).global_step == 1
        return gradients.seen, weights(stage)

    return run


def assert_close(
    found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], rtol: float = 1e-3, atol: float = 1e-6
) -> None:
    """Gradients that differ as sums in another order do; a mean of means differs by a quarter of them here."""
    assert found.keys() == expected.keys() and any(each.abs().max() > 1e-3 for each in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=rtol, atol=atol)


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("dealt", DEALT)
def test_accumulated_batches_are_one_batch_whatever_their_answers(
    step: Factory, dealt: list[list[int]], clip: float | None
):
    (found, _), (expected, _) = (step(each, gradient_clip_val=clip) for each in (dealt, WHOLE))
    assert_close(found, expected)
    norm = torch.stack([gradient.norm() for gradient in found.values()]).norm()
    assert clip is None or float(norm) == pytest.approx(clip, rel=1e-4)


def test_batches_too_few_for_a_step_are_one_batch_too(step: Factory):
    found, _ = step([[3, 6], [9, 12]], accumulate_grad_batches=3)  # Lightning ends the step with the last batch
    assert_close(found, step(WHOLE)[0])


def test_without_a_supervised_token_a_step_is_one_of_zeros(step: Factory):
    gradients, _ = step([[], []])
    assert gradients and not any(gradient.any() for gradient in gradients.values())


def test_a_later_step_starts_again(make_stage: Factory, make_batch: Factory, fit: Factory):
    def last(steps: list[list[list[int]]]) -> dict[str, torch.Tensor]:
        stage, gradients = make_stage(dict.fromkeys(ALL_RATES, 0.0)), Gradients()  # weights stay as they are
        batches = [make_batch(stage.model, seeds, answers=ANSWERS) for each in steps for seeds in each]
        assert fit(stage, batches, accumulate_grad_batches=2, callbacks=[gradients]).global_step == len(steps)
        return gradients.seen

    again, only = last([[[9], [12]], [[3], [6]]]), last([[[3], [6]]])
    assert again.keys() == only.keys() and all(torch.equal(again[name], only[name]) for name in only)


class Scaling(MixedPrecision):
    """Lightning's gradient scaler on a CPU, around forward passes in float32, whose gradients compare closely."""

    def __init__(self, scale: float) -> None:
        super().__init__("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))

    def forward_context(self) -> Any:
        return nullcontext()


@pytest.mark.parametrize("clip", [None, 0.05])
def test_under_a_gradient_scaler_accumulated_batches_are_one_batch(step: Factory, clip: float | None):
    expected, _ = step(WHOLE, gradient_clip_val=clip)
    for dealt in (WHOLE, DEALT[1]):
        found, _ = step(dealt, gradient_clip_val=clip, plugins=[scaling := Scaling(2.0**14)])
        assert_close(found, expected)
        assert scaling.scaler.get_scale() == 2.0**14, "nothing overflowed"


def test_in_float16_accumulated_batches_are_nearly_one_batch(step: Factory):
    found = []
    for dealt in (WHOLE, DEALT[1]):  # the shortest answer first, then the longest
        scaling = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**12))
        found.append(step(dealt, plugins=[scaling])[0])
        assert scaling.scaler.get_scale() == 2.0**12, "nothing overflowed"
    assert_close(found[0], found[1], rtol=0.05, atol=5e-3)  # eleven bits, layer after layer


def test_what_overflows_in_one_batch_leaves_out_the_whole_step(step: Factory, make_stage: Factory):
    _, after = step(DEALT[1], plugins=[scaling := Scaling(2.0**127)])
    assert all(torch.equal(after[name], weight) for name, weight in weights(make_stage()).items())
    assert scaling.scaler.get_scale() == 2.0**126


def test_a_step_of_one_batch_has_the_gradients_of_its_mean_to_the_bit(
    make_stage: Factory, make_batch: Factory, step: Factory
):
    plain = make_stage()
    plain.forward_loss(make_batch(plain.model, WHOLE[0], answers=ANSWERS))[0].backward()
    expected = {name: p.grad for name, p in plain.named_parameters() if p.grad is not None}
    found, _ = step(WHOLE)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())


def test_a_batchs_own_loss_is_reported_whatever_it_counts(make_stage: Factory, make_batch: Factory, fit: Factory):
    stage, losses = make_stage(), Losses()
    batches = [make_batch(stage.model, [seed], answers=ANSWERS) for seed in ANSWERS]
    with torch.no_grad():
        own = [float(stage.forward_loss(each)[0]) for each in batches]
    trainer = fit(stage, batches, accumulate_grad_batches=4, callbacks=[losses])
    assert losses.seen == pytest.approx(own, rel=1e-5)
    assert float(trainer.callback_metrics["train/loss"]) == pytest.approx(own[-1], rel=1e-5)
