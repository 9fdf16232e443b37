"""Runs of several ranks that are killed at any moment, and go on as if nothing had happened, dealt in whatever way.

They mix pictures with texts, so that a rank may see no picture in a step, and one text cannot be read.
"""

import json
import os
import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from tests.several_ranks import (
    MIXED_STEPS,
    Nursery,
    has_trained,
    history,
    in_group,
    is_gone,
    trained_lines,
    wait_for,
    write_texts,
)

from llava_mini.cli import main
from llava_mini.files import rank_paths

TWO_RANKS = ["trainer.devices=2", "trainer.accumulate_grad_batches=2", "data.num_workers=2"]
STEPS, SAMPLES = MIXED_STEPS, MIXED_STEPS * 8  # two samples a batch


def keys(run_dir: Path) -> list[str]:
    return [key for line in history(run_dir) for key in line["keys"]]


def quarantined(run_dir: Path) -> list[tuple[int, str]]:
    lines = [line for path in rank_paths(run_dir / "quarantine.jsonl") for line in path.read_text().splitlines()]
    return sorted((bad["position"], bad["key"]) for bad in map(json.loads, lines))


@pytest.fixture(scope="module")
def whole(nursery: Nursery, arguments: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two ranks, two workers each, that nothing has interrupted."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    nursery.begin(arguments(run_dir, *TWO_RANKS), 2)
    assert nursery.status() == 0
    return run_dir


@pytest.fixture(scope="module")
def killed(nursery: Nursery, arguments: Callable, whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of such a run that was killed four times, and is not finished."""
    run_dir = tmp_path_factory.mktemp("killed") / "run"
    chance = random.Random(0)
    for _ in range(4):
        before = trained_lines(run_dir)
        group = nursery.begin(arguments(run_dir, *TWO_RANKS), 2)
        target = before + chance.randint(1, 4)
        wait_for(partial(has_trained, run_dir, target))
        time.sleep(chance.uniform(0, 0.1))
        os.killpg(group, signal.SIGKILL)
        assert nursery.status() == -signal.SIGKILL
        wait_for(partial(is_gone, group), seconds=10)
    assert not (run_dir / "result.json").exists()
    return run_dir


def test_ranks_share_the_work_and_leave_one_result(whole: Path):
    seen = keys(whole)
    assert len(seen) == SAMPLES and len(history(whole)) == 2 * 2 * STEPS
    kinds = [{key.split("/")[-1].split("-")[0] for key in line["keys"]} for line in history(whole)]
    assert {"text"} in kinds and {"instruct"} in kinds, "a rank without a picture beside one with pictures only"
    result = json.loads((whole / "result.json").read_text())
    assert result["skipped"]["train"] == len(quarantined(whole)) > 0
    # Of five samples in batches of two, one rank validated three and the other two.
    callbacks = torch.load(whole / "checkpoints" / "best.ckpt", weights_only=True)["callbacks"]
    scores = [state["best_model_score"] for name, state in callbacks.items() if "ModelCheckpoint" in name]
    assert [float(score) for score in scores if score is not None] == [pytest.approx(result["accuracy"]["val"])]


def test_a_run_killed_at_any_moment_equals_the_uninterrupted_one(
    nursery: Nursery, arguments: Callable, whole: Path, killed: Path, tmp_path: Path
):
    assert 0 < len(keys(killed)) < SAMPLES
    run_dir = shutil.copytree(killed, tmp_path / "run")
    nursery.begin(arguments(run_dir, *TWO_RANKS), 2)
    assert nursery.status() == 0
    assert history(run_dir) == history(whole)
    assert quarantined(run_dir) == quarantined(whole)
    results = [json.loads((folder / "result.json").read_text()) for folder in (run_dir, whole)]
    assert results[0]["accuracy"] == results[1]["accuracy"]


def test_other_ranks_machines_and_workers_go_on_with_the_same_samples(
    nursery: Nursery, arguments: Callable, whole: Path, killed: Path, tmp_path: Path
):
    for machines, devices, accumulate, workers in ((1, 1, 4, 3), (1, 4, 1, 1), (2, 1, 2, 0)):
        run_dir = shutil.copytree(killed, tmp_path / f"run-{machines}-{devices}")
        dealt = [f"trainer.num_nodes={machines}", f"trainer.devices={devices}", f"data.num_workers={workers}"]
        ranks = arguments(run_dir, *dealt, f"trainer.accumulate_grad_batches={accumulate}")
        nursery.begin(ranks, machines * devices, machines)
        assert nursery.status() == 0
        assert keys(run_dir) == keys(whole)
        found, expected = ([line["loss"] for line in history(folder) if line["loss"]] for folder in (run_dir, whole))
        assert found == pytest.approx(expected, rel=1e-2)  # sums in another order
        assert quarantined(run_dir) == quarantined(whole)


def test_another_batch_and_other_data_are_refused(
    nursery: Nursery, arguments: Callable, killed: Path, capsys: pytest.CaptureFixture
):
    def state() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (killed / "checkpoints").glob("*.ckpt")}

    before = state()
    for change in ("data.batch_size=4", "trainer.accumulate_grad_batches=4", "data.world_seed=1"):
        assert main(["train", *arguments(killed, *TWO_RANKS, change)]) == 2
        said = capsys.readouterr().err
        assert "contains a run with another config" in said and len(said.splitlines()) == 1
    texts = next(part for part in arguments(killed) if "/texts" in part).partition("2, ")[2].partition(":")[0]
    kept = shutil.move(texts, f"{texts}-kept")
    try:
        write_texts(Path(texts), 11)
        nursery.begin(arguments(killed, "trainer.accumulate_grad_batches=4"), 1)
        assert nursery.status() == 2
    finally:
        shutil.rmtree(texts)
        shutil.move(kept, texts)
    last = nursery.log.read_text().splitlines()[-1]
    assert re.fullmatch(r"llava-mini: .*last\.ckpt was made with other training data, .*", last)
    assert state() == before


def test_too_many_bad_samples_stop_all_ranks_and_the_run_continues_when_they_are_allowed(
    nursery: Nursery, arguments: Callable, whole: Path, tmp_path: Path
):
    run_dir = tmp_path / "run"
    nursery.begin(arguments(run_dir, *TWO_RANKS, "data.max_bad_fraction=0.001"), 2)
    assert nursery.status() == 2
    last = nursery.log.read_text().splitlines()[-1]
    assert re.fullmatch(r"llava-mini: \d of the first \d+ training samples cannot be used, .*quarantine.jsonl .*", last)
    assert 0 < len(keys(run_dir)) < SAMPLES
    nursery.begin(arguments(run_dir, *TWO_RANKS), 2)
    assert nursery.status() == 0
    assert history(run_dir) == history(whole)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux does this")
def test_a_rank_that_is_killed_and_ctrl_c_end_all_and_the_same_command_goes_on(
    nursery: Nursery, arguments: Callable, whole: Path, tmp_path: Path
):
    run_dir = tmp_path / "run"

    def ended_by(number: signal.Signals, chosen: Callable[[int], list[int]]) -> tuple[int, str]:
        """Status and last words of a run in which some processes get a signal after two steps more."""
        before = trained_lines(run_dir)
        group = nursery.begin(arguments(run_dir, *TWO_RANKS), 0)  # the ranks themselves are new processes
        wait_for(partial(has_trained, run_dir, before + 4))
        assert len(in_group(group)) == 1 + 2 + 4, "this process, two ranks, two workers each"
        for pid in chosen(group):
            os.kill(pid, number)
        status = nursery.status()
        wait_for(partial(is_gone, group), seconds=10)
        return status, nursery.log.read_text().splitlines()[-1]

    def of_rank_1(group: int) -> list[int]:
        return [pid for pid in in_group(group) if b"LOCAL_RANK=1" in Path(f"/proc/{pid}/environ").read_bytes()][:1]

    assert ended_by(signal.SIGKILL, of_rank_1) == (
        137, f"llava-mini: rank 1 of 2 was killed by SIGKILL; see {run_dir / 'log.rank1.txt'}",
    )  # fmt: skip
    assert ended_by(signal.SIGINT, in_group) == (130, "interrupted; repeat the command to continue")
    nursery.begin(arguments(run_dir, *TWO_RANKS), 2)
    assert nursery.status() == 0
    assert history(run_dir) == history(whole)
