"""What a run gained in its last third is told from noise, and what could not be measured is not called converged."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llava_mini.assembly.trainer import validation_interval
from llava_mini.config import resolve
from llava_mini.evaluate.convergence import convergence
from llava_mini.predictions import Predictions

SCENES = 400


def scored(
    dense: float, one_word: float = 1.0, spread: float = 0.1, seed: int = 0, scenes: int = SCENES
) -> Predictions:
    """A dense and a one-word question about each scene, with mean word accuracies as named."""
    noise = np.random.default_rng(seed).normal(0, spread, (2, scenes))
    shares = np.array([[dense], [one_word]]) + noise - noise.mean(1, keepdims=True)
    return Predictions(
        key=np.tile([f"scene-{i:03d}" for i in range(scenes)], 2),
        turn=np.repeat([0, 1], scenes),
        kind=np.repeat(["list", "color"], scenes),
        words=np.repeat([9, 1], scenes),
        exact_match=np.zeros(2 * scenes, np.float32),
        word_accuracy=shares.ravel().astype(np.float32),
        nll=np.ones(2 * scenes, np.float32),
    )


def keep(folder: Path, **steps: Predictions) -> None:
    folder.mkdir()
    for step, scores in steps.items():
        scores.save(folder / f"step-{int(step[1:]):06d}.npz")


def test_a_run_that_still_rose_in_its_last_third_has_not_converged(tmp_path: Path):
    keep(tmp_path / "v", s100=scored(0.2), s200=scored(0.5, seed=1))
    found = convergence(tmp_path / "v", 300, scored(0.531, seed=2))
    assert found["converged"] is False
    assert found["gained_last_third"] == pytest.approx(0.031, abs=1e-6)  # since step 200, not since 100
    assert found["gain_noise"] == pytest.approx(0.1 * np.sqrt(2 / SCENES), rel=0.15)
    assert found["gains"]["one_word"]["gained"] == pytest.approx(0, abs=1e-6)


def test_noise_alone_is_no_gain(tmp_path: Path):
    keep(tmp_path / "v", s200=scored(0.5, seed=1))
    assert convergence(tmp_path / "v", 300, scored(0.504, seed=2))["converged"] is True
    assert convergence(tmp_path / "v", 300, scored(0.49, seed=2))["converged"] is True


@pytest.mark.parametrize(("nats", "converged"), [(1.3, False), (1.03, True), (0.8, True)])
def test_a_likelihood_that_still_rises_is_no_convergence(tmp_path: Path, nats: float, converged: bool) -> None:
    """In the first steps of a run no answer is right yet, and none becomes right, while the loss falls fast."""
    before = scored(0.0, seed=1)
    keep(tmp_path / "v", s200=replace(before, nll=np.full_like(before.nll, nats)))
    found = convergence(tmp_path / "v", 300, scored(0.0, seed=1))
    assert found["converged"] is converged and not found["gains"]["dense"]["improving"]
    assert found["gains"]["dense"]["nll_fell"] == pytest.approx(nats - 1, abs=1e-6)


def test_every_group_of_kinds_must_have_converged(tmp_path: Path):
    keep(tmp_path / "v", s200=scored(0.5, one_word=0.6, seed=1))
    found = convergence(tmp_path / "v", 300, scored(0.5, one_word=0.9, seed=2))
    assert found["converged"] is False and found["gained_last_third"] == pytest.approx(0, abs=1e-6)
    assert found["gains"]["one_word"]["gained"] == pytest.approx(0.3, abs=1e-6)


def test_too_few_scenes_cannot_show_convergence(tmp_path: Path):
    keep(tmp_path / "v", s200=scored(0.5, seed=1, scenes=16))
    found = convergence(tmp_path / "v", 300, scored(0.5, seed=2, scenes=16))
    assert found["converged"] is False and found["gain_noise"] > 0.01


@pytest.mark.parametrize("fault", ["none", "too early", "too late", "other questions", "torn"])
def test_without_a_validation_at_two_thirds_nothing_is_called_converged(tmp_path: Path, fault: str):
    step = {"too early": "s140", "too late": "s250"}.get(fault, "s200")
    keep(tmp_path / "v", **{step: scored(0.5, scenes=30 if fault == "other questions" else SCENES)})
    if fault == "none":
        (tmp_path / "v" / "step-000200.npz").unlink()
    if fault == "torn":
        (tmp_path / "v" / "step-000200.npz").write_bytes(b"PK")
    found = convergence(tmp_path / "v", 300, scored(0.5))
    assert found == {"converged": False, "gained_last_third": None, "gain_noise": None, "gains": {}}


@pytest.mark.parametrize("steps", [*range(2, 32), 100, 301, 400])
def test_a_run_of_any_length_is_validated_where_its_convergence_is_measured(tmp_path: Path, steps: int):
    every = validation_interval(resolve([f"trainer.max_steps={steps}"]).trainer)
    rising = {step: scored(0.1 * step / steps, spread=0.01) for step in range(every, steps + 1, every)}
    keep(tmp_path / "v", **{f"s{step}": scores for step, scores in rising.items()})
    gained = convergence(tmp_path / "v", steps, scored(0.1, spread=0.01))["gained_last_third"]
    assert 0.1 / 5 - 1e-6 <= gained <= 0.1 / 2 + 1e-6  # a fifth of five steps, a half of two


def test_the_last_step_is_not_compared_with_itself(tmp_path: Path):
    keep(tmp_path / "v", s1=scored(0.5))
    assert convergence(tmp_path / "v", 1, scored(0.5))["converged"] is False


def test_noise_of_one_scene_is_not_known(tmp_path: Path):
    keep(tmp_path / "v", s200=scored(0.5, scenes=1))
    found = convergence(tmp_path / "v", 300, scored(0.7, scenes=1))
    assert found["converged"] is False and found["gain_noise"] is None
    json.dumps(found, allow_nan=False)  # result.json and what is made of it are strict JSON
