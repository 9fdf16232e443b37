"""What a run reports: its config under short names too, the data that it reads, what it measured, a model if wanted."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llava_mini.cli import main
from llava_mini.config import resolve, save
from llava_mini.data.format.shard_set import ShardSet
from llava_mini.data.format.shards import write_shards
from llava_mini.run.tracked import data_inputs, short_params, track_result
from llava_mini.tracking.spool import Origin, Spool
from llava_mini.tracking.tracker import Tracker

RESULT = {
    "accuracy": {"val": 0.25, "test": 0.5}, "accuracy_by_kind": {"test": {"color": 0.5}},
    "word_accuracy": {"test": {"dense": 0.75}}, "word_accuracy_by_kind": {"test": {"describe": 0.75}},
    "nll": {"test": {"dense": 1.5}}, "nll_by_kind": {"test": {"describe": 1.5}},
    "converged": False, "gained_last_third": None, "prefill_flops": 7, "seconds": 2.0, "tokens": 4, "n_fusion": 2,
    "peak_memory_bytes": 9, "planned_peak_bytes": None, "measured_peak_is": "the process",
    "params": {"compressor": 3}, "status": "finished",
}  # fmt: skip


def spooled(folder: Path, kind: str) -> dict[str, Any]:
    lines = [json.loads(line) for line in (folder / "spool.jsonl").read_text().splitlines()]
    return {key: value for line in lines if line["kind"] == kind for key, value in line["values"].items()}


@pytest.mark.parametrize("log_model", [False, True])
def test_what_was_measured_is_reported_and_the_model_only_if_wanted(tmp_path: Path, log_model: bool) -> None:
    (tmp_path / "file").write_text("")
    folder = tmp_path / "run"
    tracker = Tracker(folder, uri=f"sqlite:///{tmp_path}/file/no.db")
    track_result(tracker, resolve([f"tracking.log_model={log_model}"]), RESULT)
    tracker.finish(wait=5)
    assert spooled(folder, "metrics") == {
        "accuracy.val": 0.25, "accuracy.test": 0.5, "accuracy_by_kind.test.color": 0.5,
        "word_accuracy.test.dense": 0.75, "word_accuracy_by_kind.test.describe": 0.75,
        "nll.test.dense": 1.5, "nll_by_kind.test.describe": 1.5, "converged": 0.0, "prefill_flops": 7.0,
        "seconds": 2.0, "tokens": 4.0, "n_fusion": 2.0, "peak_memory_bytes": 9.0, "params.compressor": 3.0,
    }  # fmt: skip
    assert spooled(folder, "params") == {"tokens": 4}
    assert spooled(folder, "tags") == {"measured_peak_is": "the process"}
    assert spooled(folder, "file") == ({"path": "model"} if log_model else {})


def test_the_model_is_not_reported_by_default() -> None:
    assert resolve(["recipe=smoke"]).tracking.log_model is False


def test_runs_are_compared_by_a_few_short_parameters() -> None:
    given = ["compressor.C=2", "fusion.num_layers=3", "seed=5", "order=paper", "finetune=frozen_llm"]
    assert short_params(resolve(given)) == {
        "compressor": "query", "C": 2, "n_fusion": 3, "seed": 5, "order": "paper", "finetune": "frozen_llm"
    }  # fmt: skip
    assert "C" not in short_params(resolve(["compressor=none"]))


def test_a_set_that_is_read_twice_is_one_input(tmp_path: Path) -> None:
    sets = []
    for name in ("one", "two"):
        write_shards([(f"{name}-{i}", {"json": b"{}"}) for i in range(3)], tmp_path / name)
        sets.append(ShardSet(tmp_path / name))

    def mix(*of: ShardSet) -> Any:
        return SimpleNamespace(readers=[SimpleNamespace(shards=shards) for shards in of])

    first, second = data_inputs({"train": mix(*sets), "val": mix(sets[1])})
    assert (first.name, first.source, first.samples, first.context) == ("one", str(tmp_path / "one"), 3, "training")
    assert (second.name, second.context) == ("two", "training, validation")
    assert [each.fingerprint for each in (first, second)] == [shards.fingerprint for shards in sets]
    assert first.fingerprint != second.fingerprint


def test_a_finished_run_sends_what_still_waits_when_its_command_is_repeated(new_tracker: str, tmp_path: Path) -> None:
    arguments = ["recipe=smoke", f"run_dir={tmp_path / 'run'}", f"tracking.uri={new_tracker}"]
    spool = Spool(tmp_path / "run")
    spool.create(Origin(new_tracker, "llava-mini", "run"))
    spool.append("status", {"status": "FINISHED"})
    save(resolve(arguments), tmp_path / "run" / "config.yaml")
    (tmp_path / "run" / "result.json").write_text("{}")
    assert main(["train", *arguments, "tracking.enabled=false"]) == 0
    assert spool.pending() == 1
    assert main(["train", *arguments]) == 0
    assert (spool.pending(), spool.run_id() is not None) == (0, True)
