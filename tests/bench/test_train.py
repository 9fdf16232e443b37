"""The bench of training steps in small shapes: ways train alike, parts add up, and what is found is reported."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import CLIPVisionConfig

from llava_mini.bench import train
from llava_mini.bench.subjects import TRANSFORMERS, UNCOMPRESSED
from llava_mini.bench.timing import Seconds
from llava_mini.bench.train import Findings, StepTimes, measure_shape
from llava_mini.bench.training_steps import (
    BACKWARD,
    DATA,
    FORWARD,
    OPTIMIZER,
    PARTS,
    QUERY,
    STORED,
    WAYS,
    Shape,
    Step,
    build_steps,
    mid,
    tiny,
)
from llava_mini.models import LlavaMiniConfig


@pytest.fixture(scope="module")
def photos(
    make_config: Callable[..., LlavaMiniConfig], make_text_config: Callable, tmp_path_factory: pytest.TempPathFactory
) -> Shape:
    """Two images of 336 pixels with conversations, and a model with 4 x 4 patches."""
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, image_size=336, patch_size=84
    )
    text = make_text_config(vocab_size=4000, max_position_embeddings=1024)
    config = make_config(vision_config=vision, text_config=text)
    return mid(tmp_path_factory.mktemp("photos"), config)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Shape:
    return tiny(tmp_path_factory.mktemp("world"), samples=2)


def steps_of(shape: Shape, folder: Path) -> dict[str, Step]:
    torch.manual_seed(0)
    return {step.way: step for step in build_steps(shape, folder)}


def gradients(step: Step) -> dict[str, torch.Tensor]:
    """Norm of the gradient of each part that has one, by transformers' names."""
    step.forward()
    step.backward()
    found: dict[str, torch.Tensor] = {}
    for name, parameter in step.model.named_parameters():
        if parameter.grad is not None:
            name = name.replace("model.multi_modal_projector", "projector").replace("language_model.model.", "llm.")
            name = name.replace("model.language_model.", "llm.").replace("language_model.lm_head", "lm_head")
            found[name] = parameter.grad.clone()
    step.optimizer.zero_grad()
    return found


def test_ours_without_compression_trains_as_transformers_does(photos: Shape, tmp_path: Path) -> None:
    """Same samples, same loss, same gradients: the ratio compares the same work."""
    steps = steps_of(photos, tmp_path)
    theirs, ours = gradients(steps[TRANSFORMERS]), gradients(steps[UNCOMPRESSED])
    assert steps[TRANSFORMERS].tokens == steps[UNCOMPRESSED].tokens > 16
    torch.testing.assert_close(steps[UNCOMPRESSED].loss, steps[TRANSFORMERS].loss)
    assert ours.keys() == theirs.keys() and not any(name.startswith("vision_tower") for name in ours)
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], atol=1e-6, rtol=1e-4, msg=name)


def test_ways_differ_in_compression_alone(world: Shape, tmp_path: Path) -> None:
    steps = steps_of(world, tmp_path)
    assert tuple(steps) == WAYS
    text = steps[UNCOMPRESSED].tokens - 64
    assert [step.tokens - text for step in steps.values()] == [64, 64, 1, 16, 1]
    assert {step.samples for step in steps.values()} == {2}
    assert "turn_ids" in steps[UNCOMPRESSED].inputs and "turn_ids" not in steps[TRANSFORMERS].inputs
    stored, seen = steps[STORED], steps[QUERY[1]]
    assert "pixel_values" not in stored.inputs
    for step in (stored, seen):
        step.forward()
    torch.testing.assert_close(stored.loss, seen.loss)  # the features are those of the same tower
    assert all("prefusion.layers.3.mlp.down_proj.weight" in gradients(steps[way]) for way in (*QUERY.values(), STORED))


def test_a_step_changes_what_trains_and_nothing_else(world: Shape, tmp_path: Path) -> None:
    steps = steps_of(world, tmp_path)
    for way in (TRANSFORMERS, QUERY[4]):
        step = steps[way]
        before = {name: value.clone() for name, value in step.model.state_dict().items()}
        for trial in step.trials():
            trial.run()
        changed = {name for name, value in step.model.state_dict().items() if not torch.equal(value, before[name])}
        trained = {name for name, parameter in step.model.named_parameters() if parameter.requires_grad}
        assert changed <= trained and any("q_proj" in name for name in changed)
        assert not any("vision_tower" in name for name in changed)
        assert all(parameter.grad is None for parameter in step.model.parameters())


def test_every_way_is_measured_by_part(world: Shape, tmp_path: Path) -> None:
    found = measure_shape(world, tmp_path, rounds=2)
    assert [way.way for way in found.ways] == list(WAYS)
    for way in found.ways:
        assert list(way.parts) == list(PARTS)
        assert all(len(seconds.cpu) == len(seconds.wall) == 2 for seconds in way.parts.values())
        assert all(seconds > 0 for part in (DATA, FORWARD, BACKWARD, OPTIMIZER) for seconds in way.parts[part].wall)


def example() -> Findings:
    """Two rounds; in the second the machine was twice as slow."""

    def way(name: str, forward: float) -> StepTimes:
        parts = dict(zip(PARTS, (0.5, forward, 2 * forward, 0.5), strict=True))
        return StepTimes(name, 4, 10, {name: Seconds([s, 3 * s], [s, 2 * s]) for name, s in parts.items()})

    return Findings("small", 2, [way(TRANSFORMERS, 3.0), way(QUERY[1], 1.0)])


def test_parts_add_up_and_ratios_are_of_a_round() -> None:
    found = example()
    ours = found.find(QUERY[1])
    assert ours.steps() == [4.0, 8.0] and ours.steps("wall") == [4.0, 12.0]
    assert (ours.rate().most, ours.rate().least) == (1.0, 0.5)
    assert found.ratio(QUERY[1]).least == found.ratio(QUERY[1]).most == 2.5
    assert found.ratio(TRANSFORMERS).median == 1.0


def test_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(work: Path, rounds: int) -> list[Findings]:
        assert work.is_dir() and not list(work.iterdir())
        return [example()] * rounds

    monkeypatch.setattr(train, "run", run)
    [report] = train.study(rounds=2)
    [first, _] = json.loads(json.dumps(report.figures))["shapes"]
    assert first["shape"] == "small" and first["ways"][1]["times_transformers"]["cpu"]["median"] == 2.5
    assert first["ways"][1]["parts"][BACKWARD] == {"wall": [2.0, 6.0], "cpu": [2.0, 4.0]}
    line = next(line for line in report.text.splitlines() if line.startswith(f"| {QUERY[1]} |"))
    assert line.split("|")[2:] == [
        " 10 ", " 0.750 (0.500 to 1.000) ", " 2.50 (2.50 to 2.50) ", " 6000 ", " 8000 ",
        " 750.0 (12 %) ", " 1500.0 (25 %) ", " 3000.0 (50 %) ", " 750.0 (12 %) ", "",
    ]  # fmt: skip
    assert report.metrics["times_transformers.small.ours_query_C1"] == 2.5 and len(report.metrics) == 4
    assert report.draw is not None
    assert [each.get_text() for each in report.draw().axes[0].texts] == ["3,750  (1.00x)", "1,500  (2.50x)"]
