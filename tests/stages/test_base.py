"""A stage trains what it says, at the rates it was given, and keeps nothing else; a step without samples is no step."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from tests.refusals import refuses
from tests.stages.noting import ALL_RATES, Gradients, Losses, weights

from llava_mini import finetune
from llava_mini.errors import UserError
from llava_mini.models.configuration import PARTS
from llava_mini.settings import FULL, Lora
from llava_mini.stages.alignment import AlignmentStage
from llava_mini.stages.base import NonFiniteLossError
from llava_mini.stages.checkpointing import AtomicCheckpointIO
from llava_mini.stages.instruction import InstructionStage

Factory = Callable[..., Any]


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
    with refuses("learning_rates.compressor", 1e-3, "projector, language_model"):
        AlignmentStage(model=model, learning_rates={"projector": 1e-3, "compressor": 1e-3})
    for changes in ({"num_fusion_layers": 1, "compressor": plain}, {"num_fusion_layers": 0}):
        with refuses("stage", 1, "compressor=none and fusion.num_layers=0"):
            AlignmentStage(model=make_model(**changes), learning_rates={"projector": 1e-3})


@pytest.mark.parametrize(
    ("rates", "key"),
    [
        ({"vision_tower": 1e-3}, "learning_rates.vision_tower"),
        ({"projector": 1e-3, "adapter": 1e-3}, "learning_rates.adapter"),
        ({"projector": None}, "learning_rates"),
    ],
)
def test_impossible_rates_are_named(make_stage: Factory, rates: dict[str, float | None], key: str):
    with refuses(key, rates.get(key.rpartition(".")[2])) as caught:
        make_stage(rates)
    assert "compressor" in caught.value.allowed


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


@pytest.fixture
def make_adapted(make_model: Factory) -> Factory:
    """make_adapted(finetune's changes, **options): a stage over a model with adapters, the same each time."""

    def make(spec: dict[str, Any] | None = None, rates: dict[str, float] | None = None, **options: Any) -> Any:
        lora = Lora(rank=4, alpha=8, dropout=0.5, dora=False)
        how = replace(FULL, **{"language_model": "lora", "quantize": "nf4", "lora": lora, **(spec or {})})
        with torch.random.fork_rng():
            torch.manual_seed(7)  # adapters begin at random
            model = make_model()
            finetune.apply(model, how, compute_dtype=torch.float32, frozen_dtype=None)
        arguments = {"learning_rates": rates or ALL_RATES, "warmup_ratio": 0.0, "finetune": how, **options}
        return InstructionStage(model=model, **arguments)

    return make


@pytest.mark.parametrize("prefusion", ["full", "lora"])
def test_of_a_part_with_adapters_they_alone_train(
    make_adapted: Factory, make_batch: Factory, fit: Factory, prefusion: str
):
    stage = make_adapted({"prefusion": prefusion}, weight_decay=0.1)
    before = weights(stage)
    optimizer = fit(stage, [make_batch(stage.model, [1, 2])] * 2).optimizers[0]
    after = stage.model.state_dict()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert {name.split(".")[0] for name in changed} == set(ALL_RATES)
    assert all("lora_" in name for name in changed if name.startswith("language_model"))
    assert all("lora_" in name for name in changed if name.startswith("prefusion")) == (prefusion == "lora")
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in stage.model.parameters() if p.requires_grad}


def test_a_frozen_language_model_does_not_train_whatever_its_rate(
    make_adapted: Factory, make_batch: Factory, fit: Factory
):
    stage = make_adapted({"language_model": "frozen", "lora": None, "quantize": None})
    before = weights(stage)
    fit(stage, [make_batch(stage.model, [1])])
    assert changed_parts(stage, before) == set(ALL_RATES) - {"language_model"} == set(stage.trained_parts)
    assert not stage.model.language_model.training
    with refuses("finetune.language_model", "frozen"):
        make_adapted({"language_model": "frozen", "lora": None}, {"language_model": 1e-3})


def test_adapters_without_a_rate_are_refused(make_adapted: Factory):
    with refuses("finetune.language_model", "lora"):
        make_adapted(rates={"projector": 1e-3})


def test_the_table_tells_adapters_and_packed_weights(make_adapted: Factory, make_model: Factory):
    lines = make_adapted({"prefusion": "lora"}).parts_table().splitlines()
    row = dict(zip(PARTS, lines, strict=True))
    count = sum(p.numel() for p in make_model().language_model.parameters())
    trained = 3 * 4 * (2 * (48 + 48) + 2 * (48 + 24) + 3 * (48 + 64))  # layers x rank x (ins + outs)
    assert row["language_model"].endswith(f"{count:,} parameters  LoRA r=4: {trained:,} trained, lr 0.004; NF4")
    assert row["prefusion"].endswith(f"LoRA r=4: {trained // 3 * 2:,} trained, lr 0.003")
    frozen = make_adapted({"language_model": "frozen"}).parts_table().splitlines()
    assert frozen[-1].endswith(f"{count:,} parameters  frozen; NF4")


def test_checkpoints_hold_adapters_in_the_place_of_their_part(
    make_adapted: Factory, make_batch: Factory, fit: Factory, tmp_path: Path
):
    stage = make_adapted()
    keep = ModelCheckpoint(dirpath=tmp_path, filename="last", every_n_train_steps=1, enable_version_counter=False)
    fit(
        stage, [make_batch(stage.model, [1])], callbacks=[keep], plugins=[AtomicCheckpointIO()],
        enable_checkpointing=True,
    )  # fmt: skip
    names = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    of_language_model = {name for name in names if name.startswith("model.language_model")}
    assert len(of_language_model) == 2 * 21 and all("lora_" in name for name in of_language_model)
    assert {name.split(".")[1] for name in names} == set(ALL_RATES)


def test_dropout_is_a_function_of_seed_and_place(make_adapted: Factory, make_batch: Factory, fit: Factory):
    def losses(seed: int, drawn_before: int, positions: list[int]) -> list[float]:
        stage, watch = make_adapted(seed=seed, rates=dict.fromkeys(ALL_RATES, 0.0)), Losses()
        with torch.no_grad():
            for name, parameter in stage.model.named_parameters():
                if "lora_B" in name:
                    parameter.fill_(0.1)
        torch.rand(drawn_before)
        batches = [make_batch(stage.model, [1, 2]) for _ in positions]
        for batch, position in zip(batches, positions, strict=True):
            batch.position = position
        fit(stage, batches, callbacks=[watch])
        return watch.seen

    first = losses(0, 1, [2, 4, 6])
    assert len(set(first)) == 3, "another mask at every place"
    assert losses(0, 99, [2, 4, 6]) == first and losses(0, 5, [4, 6]) == first[1:]
    assert not set(losses(1, 1, [2, 4, 6])) & set(first)


def test_a_batch_without_usable_samples_teaches_nothing(make_stage: Factory, make_batch: Factory, fit: Factory):
    gradients = Gradients()
    stage = make_stage()
    trainer = fit(stage, [make_batch(stage.model, [])], callbacks=[gradients])
    assert float(trainer.callback_metrics["train/loss"]) == 0.0
    assert gradients.seen and not any(gradient.any() for gradient in gradients.seen.values())


def test_validation_passes_over_placeholders_and_needs_a_sample(make_stage: Factory, make_batch: Factory, fit: Factory):
    stage = make_stage()
    batches = [make_batch(stage.model, seeds) for seeds in ([1], [], [2, 3])]
    metrics = [fit(make_stage(), batches[:1], val).callback_metrics for val in (batches, [batches[0], batches[2]])]
    for name in ("val/accuracy", "val/loss"):
        assert metrics[0][name] == metrics[1][name]
    with pytest.raises(UserError, match="validation: none of the split's samples could be read"):
        fit(make_stage(), batches[:1], batches[1:2])


def test_validations_loss_is_the_tokens_mean(make_stage: Factory, make_batch: Factory, fit: Factory):
    stage = make_stage()
    batches = [make_batch(stage.model, seeds, answers={1: 8, 2: 1}) for seeds in ([1], [2, 3, 4])]
    found = float(fit(stage, batches[:1], batches).callback_metrics["val/loss"])
    with torch.no_grad():
        losses = [float(stage.eval().forward_loss(each)[0]) for each in batches]
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)
    assert found == pytest.approx((8 * losses[0] + 7 * losses[1]) / 15, rel=1e-5)


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
        trainer = fit(stage, [make_batch(stage.model, [1, 2])], precision=precision, gradient_clip_val=1.0)
        losses[precision] = float(trainer.callback_metrics["train/loss"])
        # Lightning refuses to clip the gradients of a fused optimizer in mixed precision
        assert bool(trainer.optimizers[0].param_groups[0]["fused"]) == (precision == "32-true")
        assert changed_parts(stage, before) == set(ALL_RATES)
        assert {p.dtype for p in stage.model.parameters()} == {torch.float32}
    assert losses["bf16-mixed"] != losses["32-true"]
    assert losses["bf16-mixed"] == pytest.approx(losses["32-true"], rel=0.05)  # bf16 keeps eight bits
