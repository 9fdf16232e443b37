"""Every writer of a file that a run, set, sweep, session or feature store uses, and what becomes of its file.

A writer is named by the functions that open the file. Whatever the disk says, it ends in one line that names file and
cause, and what was there before is there still.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tests.faults.readers import SWEEP

from llava_mini import files
from llava_mini.batch import BadSample
from llava_mini.config import compose
from llava_mini.data.building import plan
from llava_mini.data.features import store as feature_store
from llava_mini.data.format import index
from llava_mini.data.format.shards import finish_set, write_shard
from llava_mini.data.inspection.check import BadSample as FoundBad
from llava_mini.data.inspection.check import report_to
from llava_mini.data.stream.callbacks import Quarantine
from llava_mini.data.toyworld import make
from llava_mini.inference import requests, session_file
from llava_mini.models.interop.folders import written
from llava_mini.models.interop.shards import ShardWriter
from llava_mini.models.tensor_files import save_tensors
from llava_mini.predictions import Predictions
from llava_mini.run import ranks
from llava_mini.stages import callbacks
from llava_mini.stages.checkpointing import AtomicCheckpointIO
from llava_mini.sweep import folder as sweep_folder
from llava_mini.sweep import launcher, report
from llava_mini.tracking.spool import Origin, Spool
from llava_mini.training import results, world

TENSORS = {"a": torch.arange(500.0)}  # larger than the largest file that a full disk takes here
TEXT = "x" * 2000


@dataclass(frozen=True)
class Writer:
    """One writer.

    Attributes:
        functions: That open the file.
        file: Its name in the folder, as messages have it.
        write: Writes it into a folder; it may be there already.
        kind: "whole": it is whole or as it was before; "new": the same, made once; "appended": lines are added, those
            before stay; "folder": one or several files, which count only once they are all there; "shard": the old
            sidecar goes before the new tar comes; "lock": it holds nothing.
        warns: Whether a warning is right in place of an error.
    """

    functions: tuple[str, ...]
    file: str
    write: Callable[[Path], Any]
    kind: str = "whole"
    warns: bool = False

    @property
    def id(self) -> str:
        return f"{self.functions[0].partition(':')[2]}-{self.file}"


def _predictions(folder: Path) -> None:
    values = np.random.default_rng(0).random(200)
    Predictions(values.astype(str), values, values.astype(str), values, values, values, values).save(folder / "p.npz")


_TRAINER: Any = SimpleNamespace(
    is_global_zero=True,
    global_rank=0,
    global_step=1,
    strategy=SimpleNamespace(barrier=lambda: None),
    fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(_should_accumulate=lambda: False)),
)


def _history_line(folder: Path) -> None:
    batch: Any = SimpleNamespace(position=1, keys=[TEXT], num_supervised=lambda: 0)
    callbacks.History(folder / "history.jsonl").on_train_batch_end(_TRAINER, None, {}, batch, 0)


def _history_start(folder: Path) -> None:
    (folder / "history.jsonl").write_text(json.dumps({"step": 0, "keys": [TEXT]}) + "\n")
    callbacks.History(folder / "history.jsonl").on_train_start(_TRAINER, None)


def _quarantine_start(folder: Path) -> None:
    (folder / "quarantine.jsonl").write_text(json.dumps({"position": 0, "key": TEXT}) + "\n")
    kept = Quarantine(folder, 0.5)
    kept.position = 1
    kept.on_train_start(_TRAINER, None)


def _pretrained(folder: Path) -> None:
    model: Any = SimpleNamespace(save_pretrained=lambda place: save_tensors(TENSORS, Path(place) / "model.safetensors"))
    processor: Any = SimpleNamespace(save_pretrained=lambda place: None)
    place = folder / "model"
    with files.writing(place):
        place.mkdir(exist_ok=True)
    results.save_model(model, processor, place)


def _converted(folder: Path) -> None:
    with written(folder / "model") as place:
        writer = ShardWriter(place)
        writer.add("a", TENSORS["a"])
        writer.close()


def _session(folder: Path) -> None:
    chunk = SimpleNamespace(tokens=TENSORS["a"], features=None, item=0)
    session: Any = SimpleNamespace(media=[1], store=SimpleNamespace(chunks=[chunk]), model=None)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(session_file._Model, "of", lambda _: session_file._Model("float32", {}, {}))
        session_file.save(session, folder / "a.session")


def _answers(folder: Path) -> None:
    path = folder / "answers.jsonl"
    earlier = len(path.read_text().splitlines()) if path.exists() else 0
    asked = [requests.Request(number, TEXT) for number in range(earlier + 1)]
    with requests.open_answers(path, asked) as answers:
        answers.add([asked[-1].record(answer="a")])


def _found(folder: Path) -> None:
    with report_to(folder / "bad.jsonl") as told:
        told(FoundBad(0, "a", "b", "c", TEXT))  # type: ignore[misc]


def _shard(folder: Path) -> None:
    write_shard(folder, 0, [("a", {"json": json.dumps({"a": TEXT}).encode()})])


def _set(folder: Path) -> None:
    if not (folder / "shard-000000.tar").exists():
        _shard(folder)
    finish_set(folder, 1, {"a": TEXT})


def _claimed_features(folder: Path) -> None:
    (folder / "features.json").unlink(missing_ok=True)
    recipe: Any = SimpleNamespace(fingerprint=lambda shards: TEXT, dtype="float16")
    feature_store._claim(folder, None, recipe)


def _spooled(folder: Path) -> None:
    spool = Spool(folder)
    spool.create(Origin("sqlite:///nowhere.db", TEXT, "name"))
    spool.append("tags", {"a": TEXT})


def _locked(lock: Callable[[Path], Any]) -> Callable[[Path], None]:
    def hold(folder: Path) -> None:
        with lock(folder):
            pass

    return hold


def _log(folder: Path) -> None:
    launcher.LocalLauncher(1)._request(launcher.Job("a", ("true",), folder / "run"), 0)


def _rank_log(folder: Path) -> None:
    ranks._start(["true"], 1, folder, {}).wait()


WRITERS = [
    Writer(
        ("config.compose:save",), "config.yaml",
        lambda folder: compose.save(SimpleNamespace(to_dict=lambda: {"a": TEXT}), folder / "config.yaml"),
    ),
    Writer(
        ("files:write_json", "files:write_text", "files:atomic_path", "training.run:train_run",
         "stages.base:VLMStage._stop_on"),
        "result.json", lambda folder: files.write_json(folder / "result.json", {"a": TEXT}),
    ),
    Writer(
        ("stages.checkpointing:AtomicCheckpointIO.save_checkpoint",), "last.ckpt",
        lambda folder: AtomicCheckpointIO().save_checkpoint(TENSORS, folder / "last.ckpt"),
    ),
    Writer(("predictions:Predictions.save",), "p.npz", _predictions),
    Writer(("stages.callbacks:History.on_train_batch_end",), "history.jsonl", _history_line, "appended"),
    Writer(
        ("data.stream.callbacks:Quarantine._write",), "quarantine.jsonl",
        lambda f: Quarantine(f, 1.0)._write(f / "quarantine.jsonl", [BadSample("a", "b", TEXT, 1)]),
        "appended",
    ),
    Writer(("training.results:save_model",), "model", _pretrained, "folder"),
    Writer(
        ("training.world:write_checkpoint",), "model.safetensors",
        lambda folder: world.write_checkpoint(folder, TENSORS, SimpleNamespace(to_dict=dict), {}),
    ),
    Writer(
        ("models.tensor_files:save_tensors",), "a.safetensors",
        lambda folder: _saved_tensors(folder / "a.safetensors"),
    ),
    Writer(
        ("models.interop.folders:written", "models.interop.shards:ShardWriter._flush",
         "models.interop.shards:ShardWriter.close"),
        "model", _converted, "new",
    ),
    Writer(("inference.session_file:save",), "a.session", _session),
    Writer(("inference.requests:open_answers",), "answers.jsonl", _answers, "appended"),
    Writer(("data.inspection.check:report_to",), "bad.jsonl", _found, "folder"),
    Writer(("data.format.shards:write_shard", "data.format.ustar:write_tar"), "shard-000000.tar", _shard, "shard"),
    Writer(("data.format.shards:finish_set",), "index.npy", _set),
    Writer(
        ("data.format.index:write_index",), "index.npy",
        lambda folder: index.write_index(folder, [np.zeros(99, index.INDEX_DTYPE)]),
    ),
    Writer(("data.features.store:_claim",), "features.json", _claimed_features, "new"),
    Writer(
        ("data.building.plan:_save",), "order.npy",
        lambda folder: plan._save(folder / "order.npy", np.arange(500)),
    ),
    Writer(
        ("data.toyworld.make:_make_set",), "world.json",
        lambda folder: make.write_json(folder / "world.json", {"sets": TEXT}),  # type: ignore[attr-defined]
    ),
    Writer(("sweep.folder:write_sweep",), "sweep.json", lambda folder: sweep_folder.write_sweep(folder, SWEEP)),
    Writer(
        ("sweep.folder:record_failure", "sweep.folder:write_json"), "failure.json",
        lambda folder: sweep_folder.record_failure(folder, TEXT),
    ),
    Writer(
        ("sweep.report:_write_csv", "sweep.report:compare"), "results.csv",
        lambda folder: report._write_csv(folder / "results.csv", [{"a": TEXT}]),
    ),
    Writer(("sweep.launcher:LocalLauncher._request",), "run/log.txt", _log, "appended"),
    Writer(("run.ranks:_start",), "log.rank1.txt", _rank_log, "lock"),
    Writer(("tracking.spool:Spool._append", "tracking.spool:Spool._write_origin", "tracking.spool:Spool._lock"),
        "spool.jsonl", _spooled,
           "appended", warns=True),
    Writer(("files:folder_lock", "files:_lock_file", "data.toyworld.make:make_world", "data.building.run:build_part",
            "data.features.store:FeatureStore.build", "tracking.mlflow_calls:connect"),
           ".lock", _locked(files.folder_lock), "lock"),
    Writer(("data.building.run:build_shard",), ".shards.lock",
           _locked(lambda folder: files.shard_lock(folder, 0)), "lock"),
    Writer(("sweep.folder:only_sweep",), ".lock", _locked(sweep_folder.only_sweep), "lock"),
]  # fmt: skip


def _saved_tensors(path: Path) -> None:
    with files.atomic_path(path) as temporary:
        save_tensors(TENSORS, temporary)


_RESUMED = "rewrites by write_text what was read, as the table of readers tests"
OTHER_WRITERS = {
    "stages.callbacks:History.on_train_start": "makes an empty file within `writing`",
    "stages.callbacks:_drop": _RESUMED,
    "data.stream.callbacks:Quarantine.on_train_start": _RESUMED,
    "commands.merge:merge_run": "new_folder: tests/commands/test_merge.py",
    "training.world:make_tiny_world": "a tokenizer, within `writing`",
    "data.building.plan:_spool": "atomic_path, of what is read: tests/data/building/test_plan.py",
    "data.building.plan:frozen_plan": "write_json",
    "data.building.downloads:downloaded": "atomic_path: tests/data/building/test_downloads.py",
    "data.building.downloads:_copy": "within atomic_path: tests/data/building/test_downloads.py",
    "data.format.remote:RemoteStorage._store": "tests/data/format/test_remote.py",
    "data.inspection.stats_plot:draw": "a picture on demand: tests/commands/test_data.py",
    "data.toyworld.source_files:write_mp4": "within `writing`, of files that are gone afterwards",
    "data.toyworld.source_files:write_files": "within `writing`, of files that are gone afterwards",
    "data.toyworld.make:_existing_world": "a tokenizer, within `writing`",
    "files:copy_file": "tests/test_writing.py",
    "files:remove_leftovers": "tests/test_files.py",
    "files:_locked_place": "within atomic_path, which the table tests",
    "files:set_usual_mode": "within atomic_path, which the table tests",
    "finetune.saved:save_trained": "within `writing`: commands.trained",
    "models.interop.convert:_Conversion.write": "within `written`, which the table tests",
    "models.interop.export:convert_to_official": "within `written`, which the table tests",
    "models.llava_mini:LlavaMiniForConditionalGeneration.save_pretrained": "within save_model, which the table tests",
    "models.visual_inputs:_frames_named": "a temporary file",
    "sweep.plots:draw_all": "atomic_path",
    "sweep.launcher:LocalLauncher._is_over": "a line in that log; if it cannot be written, the sweep says the same",
    "run.starter:_append_output_to": "of a log that the launcher has just written to",
}
