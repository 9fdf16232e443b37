"""A stage trains what it says, at the rates it was given, and keeps nothing else; a step without samples is no step."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from llava_mini.errors import UserError
from llava_mini.stages.alignment import AlignmentStage
from llava_mini.stages.base import PARTS, NonFiniteLossError
from llava_mini.stages.checkpointing import AtomicCheckpointIO
from llava_mini.stages.instruction import InstructionStage

ALL_RATES = {"projector": 1e-3, "compressor": 2e-3, "prefusion": 3e-3, "language_model": 4e-3}
Factory = Callable[..., Any]


@pytest.fixture
def make_stage(make_model: Factory) -> Factory:
    """make_stage(rates, mode=True, **options): an instruction stage for a fresh model in that mode, without warm-up."""

    def make(rates: dict[str, float | None] | None = None, mode: bool = True, **options: Any) -> InstructionStage:
        arguments = {"learning_rates": rates or ALL_RATES, "warmup_ratio": 0.0, **options}
        return InstructionStage(model=make_model().train(mode), **arguments)

    return make


def weights(stage: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in stage.model.state_dict().items()}


def changed_parts(stage: Any, before: dict[str, torch.Tensor]) -> set[str]:
    after = stage.model.state_dict()
    return {name.split(".")[0] for name in after if not torch.equal(after[name], before[name])}


class Watch(Callback):
    """Notes rates and modules' modes at the start of every step."""

    def __init__(self) -> None:
        self.rates: list[list[float]] = []
        self.training: list[set[str]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])
        parts = {part: pl_module.model.get_submodule(part) for part in PARTS}
        self.training.append({name for name, part in parts.items() if any(m.training for m in part.modules())})


@pytest.mark.parametrize("frozen", sorted(ALL_RATES))
def test_parts_with_a_rate_train_and_no_others(make_stage: Factory, make_batch: Factory, fit: Factory, frozen: str):
    stage = make_stage({**ALL_RATES, frozen: None}, weight_decay=0.1)
    before = weights(stage)
    fit(stage, [make_batch(stage.model, [1, 2])])
    assert changed_parts(stage, before) == set(ALL_RATES) - {frozen}
    assert stage.trained_parts == [part for part in PARTS if part in ALL_RATES and part != frozen]


def test_alignment_trains_the_projector_and_no_compressor(make_model: Factory, make_batch: Factory, fit: Factory):
    plain = {"_target_": "llava_mini.models.compressors.none.NoCompressor"}
    model = make_model(num_fusion_layers=0, compressor=plain)
    stage = AlignmentStage(model=model, learning_rates={"projector": 1e-3}, warmup_ratio=0.0)
    before = weights(stage)
    fit(stage, [make_batch(model, [1, 2])])
    assert changed_parts(stage, before) == {"projector"}
    AlignmentStage(model=model, learning_rates={"projector": 1e-3, "language_model": 1e-3})
    with pytest.raises(UserError, match=r"learning_rates\.compressor: AlignmentStage trains any of projector, lang"):
        AlignmentStage(model=model, learning_rates={"projector": 1e-3, "compressor": 1e-3})
    for changes in ({"num_fusion_layers": 1, "compressor": plain}, {"num_fusion_layers": 0}):
        with pytest.raises(UserError, match="stage 1 is plain LLaVA"):
            AlignmentStage(model=make_model(**changes), learning_rates={"projector": 1e-3})


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ({"vision_tower": 1e-3}, r"stage\.learning_rates\.vision_tower: InstructionStage trains any of projector, com"),
        ({"projector": 1e-3, "adapter": 1e-3}, r"stage\.learning_rates\.adapter"),
        ({"projector": None}, r"stage\.learning_rates is empty"),
    ],
)
def test_impossible_rates_are_named(make_stage: Factory, rates: dict[str, float | None], message: str):
    with pytest.raises(UserError, match=message):
        make_stage(rates)


def test_the_table_names_every_part_with_its_size_and_rate(make_stage: Factory):
    stage = make_stage({"projector": 1e-3, "language_model": 2e-5})
    rows = [line.split() for line in stage.parts_table().splitlines()]
    assert [row[0] for row in rows] == list(PARTS)
    counts = {row[0]: int(row[1].replace(",", "")) for row in rows}
    assert sum(counts.values()) == sum(p.numel() for p in stage.model.parameters())
    assert {row[0]: row[-1] for row in rows if "trained," in row} == {"projector": "0.001", "language_model": "2e-05"}
    assert [row[0] for row in rows if row[-1] == "frozen"] == ["vision_tower", "compressor", "prefusion"]


def test_every_parameter_has_its_parts_rate_and_vectors_do_not_decay(
    make_stage: Factory, make_batch: Factory, fit: Factory
):
    stage = make_stage(weight_decay=0.1, betas=(0.8, 0.9))
    optimizer = fit(stage, [make_batch(stage.model, [1])]).optimizers[0]
    found = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(found)
    trained = {name: p for name, p in stage.model.named_parameters() if p.requires_grad}
    assert {id(p) for p in trained.values()} == set(found)
    for name, parameter in trained.items():
        group = found[id(parameter)]
        assert group["initial_lr"] == ALL_RATES[name.split(".")[0]], name
        assert group["weight_decay"] == (0.1 if parameter.dim() > 1 else 0.0), name
        assert group["betas"] == (0.8, 0.9)


def test_rates_rise_then_fall_as_a_cosine_to_their_last_share(make_stage: Factory, make_batch: Factory, fit: Factory):
    stage, watch = make_stage(warmup_ratio=0.2, min_lr_ratio=0.1), Watch()
    fit(stage, [make_batch(stage.model, [1])] * 10, callbacks=[watch])
    shares = [0.0, 0.5, *(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * step / 8)) for step in range(8))]
    for rates, share in zip(watch.rates, shares, strict=True):
        # Every part has a group of matrices and one of vectors (pre-fusion's and the projector's in this model too).
        assert rates == pytest.approx([share * ALL_RATES[p] for p in stage.trained_parts for _ in range(2)])


@pytest.mark.parametrize("mode", [True, False])
def test_frozen_parts_are_in_evaluation_mode_and_trained_ones_are_not(
    make_stage: Factory, make_batch: Factory, fit: Factory, mode: bool
):
    stage, watch = make_stage({"projector": 1e-3, "prefusion": 1e-3}, mode), Watch()
    batch = make_batch(stage.model, [1])
    fit(stage, [batch] * 3, [batch], val_check_interval=1, callbacks=[watch])  # also after a validation
    assert watch.training == [{"projector", "prefusion"}] * 3
    assert not any(module.training for module in stage.eval().modules())


def test_a_checkpoint_holds_trained_weights_and_plain_values_only(
    make_stage: Factory, make_batch: Factory, fit: Factory, tmp_path: Path
):
    stage = make_stage({"projector": 1e-3, "compressor": 1e-3})
    keep = ModelCheckpoint(dirpath=tmp_path, filename="last", every_n_train_steps=1, enable_version_counter=False)
    batches = [make_batch(stage.model, [1, 2])] * 2
    fit(stage, batches, callbacks=[keep], plugins=[AtomicCheckpointIO()], enable_checkpointing=True)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    trained = {f"model.{name}" for name, p in stage.model.named_parameters() if p.requires_grad}
    assert checkpoint["state_dict"].keys() == trained
    assert {name.split(".")[1] for name in trained} == {"projector", "compressor"}
    assert checkpoint["optimizer_states"][0]["state"] and checkpoint["global_step"] == 2
    fresh = make_stage({"projector": 1e-3, "compressor": 1e-3})
    fresh.load_state_dict(checkpoint["state_dict"], strict=stage.strict_loading)
    assert all(torch.equal(tensor, stage.model.state_dict()[name]) for name, tensor in fresh.model.state_dict().items())


def test_a_batch_without_usable_samples_teaches_nothing(make_stage: Factory, make_batch: Factory, fit: Factory):
    gradients = Gradients()
    stage = make_stage()
    trainer = fit(stage, [make_batch(stage.model, [])], callbacks=[gradients])
    assert float(trainer.callback_metrics["train/loss"]) == 0.0
    assert gradients.seen and not any(gradient.any() for gradient in gradients.seen.values())

    def accumulated(numbers: list[list[int]]) -> dict[str, torch.Tensor]:
        stage, gradients = make_stage(), Gradients()
        batches = [make_batch(stage.model, seeds) for seeds in numbers]
        fit(stage, batches, accumulate_grad_batches=len(batches), callbacks=[gradients])
        return gradients.seen

    alone, beside = accumulated([[1, 2]]), accumulated([[1, 2], []])
    for name, gradient in alone.items():
        torch.testing.assert_close(beside[name], gradient / 2)  # its share of the step


def test_validation_passes_over_placeholders_and_needs_a_sample(make_stage: Factory, make_batch: Factory, fit: Factory):
    stage = make_stage()
    batches = [make_batch(stage.model, seeds) for seeds in ([1], [], [2, 3])]
    metrics = [fit(make_stage(), batches[:1], val).callback_metrics for val in (batches, [batches[0], batches[2]])]
    for name in ("val/accuracy", "val/loss"):
        assert metrics[0][name] == metrics[1][name]
    with pytest.raises(UserError, match="validation: none of the split's samples could be read"):
        fit(make_stage(), batches[:1], batches[1:2])


def test_validations_loss_is_the_samples_mean(make_stage: Factory, make_batch: Factory, fit: Factory):
    stage = make_stage()
    batches = [make_batch(stage.model, seeds) for seeds in ([1], [2, 3, 4])]
    found = float(fit(stage, batches[:1], batches).callback_metrics["val/loss"])
    with torch.no_grad():
        losses = [float(stage.eval().forward_loss(each)[0]) for each in batches]
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)
    assert found == pytest.approx((losses[0] + 3 * losses[1]) / 4, rel=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_non_finite_loss_stops_with_the_samples_names(
    make_stage: Factory, make_batch: Factory, fit: Factory, tmp_path: Path, value: float
):
    stage = make_stage(report_dir=tmp_path / "run")
    batches = [make_batch(stage.model, seeds) for seeds in ([1], [2, 3])]
    batches[1].pixel_values.fill_(value)
    with pytest.raises(NonFiniteLossError, match=r"loss is nan at step 1: keys .*non_finite_loss\.json") as caught:
        fit(stage, batches)
    report = json.loads((tmp_path / "run" / "non_finite_loss.json").read_text())
    assert report == {"step": 1, "loss": "nan", "keys": ["sample-2", "sample-3"]}
    assert str(tmp_path / "run" / "non_finite_loss.json") in str(caught.value)


def test_one_step_in_mixed_precision(make_stage: Factory, make_batch: Factory, fit: Factory):
    stages = {precision: make_stage() for precision in ("32-true", "bf16-mixed")}
    losses = {}
    for precision, stage in stages.items():
        before = weights(stage)
        trainer = fit(stage, [make_batch(stage.model, [1, 2])], precision=precision)
        losses[precision] = float(trainer.callback_metrics["train/loss"])
        assert changed_parts(stage, before) == set(ALL_RATES)
        assert {p.dtype for p in stage.model.parameters()} == {torch.float32}
    assert losses["bf16-mixed"] != losses["32-true"]
    assert losses["bf16-mixed"] == pytest.approx(losses["32-true"], rel=0.05)  # bf16 keeps eight bits


class Gradients(Callback):
    """Notes the gradients that the optimiser is given."""

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.seen = {name: p.grad.clone() for name, p in pl_module.named_parameters() if p.grad is not None}


def test_two_accumulated_halves_are_nearly_one_batch(make_stage: Factory, make_batch: Factory, fit: Factory):
    seeds = [3, 6, 9, 12]  # answers of three tokens each: a mean of means is the mean
    found = []
    for halves in ([seeds], [seeds[:2], seeds[2:]]):
        stage, gradients = make_stage(), Gradients()
        batches = [make_batch(stage.model, each) for each in halves]
        trainer = fit(stage, batches, accumulate_grad_batches=len(halves), callbacks=[gradients])
        assert trainer.global_step == 1
        found.append(gradients.seen)
    assert found[0].keys() == found[1].keys()
    for name, whole in found[0].items():
        torch.testing.assert_close(found[1][name], whole, rtol=1e-3, atol=1e-6)  # sums in another order
