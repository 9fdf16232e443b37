"""Every reader of a file that a run, set, sweep, session or feature store uses, with what a fault of the file does.

A reader is named by the functions that open the file. It ends in one line that names file and cause (`UserError`), save
for the faults that `instead` lists: there a last good state, or a warning, is right.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from llava_mini.assembly import weights
from llava_mini.config import compose
from llava_mini.data.building import plan, records
from llava_mini.data.features import store as feature_store
from llava_mini.data.format import index
from llava_mini.data.format.shard_set import ShardSet
from llava_mini.data.format.shards import write_shards
from llava_mini.data.stream.callbacks import Quarantine
from llava_mini.data.toyworld import make
from llava_mini.errors import SampleError
from llava_mini.files import whole_lines
from llava_mini.finetune import saved
from llava_mini.inference import requests, session_file
from llava_mini.media import named
from llava_mini.models.interop import chat, checkpoint, json_config
from llava_mini.models.tensor_files import save_tensors
from llava_mini.predictions import Predictions
from llava_mini.run import folder as run_folder
from llava_mini.run import ranks
from llava_mini.run.provenance import code_version
from llava_mini.stages import callbacks
from llava_mini.stages.checkpointing import AtomicCheckpointIO
from llava_mini.sweep import folder as sweep_folder
from llava_mini.sweep import runner
from llava_mini.sweep.grid import Run
from llava_mini.tracking.spool import Origin, Spool

Check = Callable[[Any], bool]
RUN = Run("a", [], "hash", 0, "query", 1, 4, False)
SWEEP = sweep_folder.Sweep(["seed=0"], "commit", "v1", "2026-01-01", [RUN])
RESULT = {"status": "finished", "config_hash": "hash", "code_version": "v1"}
TENSORS = {"a": torch.arange(64.0)}
TORN = ("empty", "torn")  # what a crash of the machine leaves
REFUSED = ("directory", "EACCES", "ESTALE", "ETIMEDOUT", "EIO")


@dataclass(frozen=True)
class Reader:
    """One reader.

    Attributes:
        functions: That open the file.
        file: Its name in the folder.
        make: Writes a good one, and whatever is read with it.
        read: Reads it; of a good file too.
        instead: By fault, whether what `read` gives is right where no error is.
        name: Of the file as messages have it, where that is not its path.
        errors: What is raised in place of a UserError, by fault.
    """

    functions: tuple[str, ...]
    file: str
    make: Callable[[Path], Any]
    read: Callable[[Path], Any]
    instead: dict[str, Check] = field(default_factory=dict)
    name: str = ""
    errors: dict[str, type[Exception]] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return f"{self.functions[0].partition(':')[2]}-{self.file}"


def _json(name: str, content: Any) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_text(json.dumps(content))


def _lines(name: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_text('{"step": 0, "position": 1}\n{"step": 1, "position": 2}\n')


def _set(folder: Path) -> Any:
    write_shards([(f"s{number}", {"json": b'{"a": "' + b"x" * 2000 + b'"}'}) for number in range(3)], folder)


def _read_opened(folder: Path) -> Any:
    """A tar that is checked when the set is opened, and trouble only when a sample is read."""
    shards = SETS.get(folder) or ShardSet(folder)
    return shards.read(2)


SETS: dict[Path, ShardSet] = {}


def _opened_set(folder: Path) -> Any:
    _set(folder)
    SETS[folder] = ShardSet(folder)


def _predictions(folder: Path) -> Any:
    ones = np.ones(50)
    Predictions(ones.astype(str), ones, ones.astype(str), ones, ones, ones, ones).save(folder / "predictions_val.npz")


def _plan(folder: Path) -> Any:
    (folder / "mix.json").write_text(json.dumps([{"conversations": [], "id": str(number)} for number in range(20)]))
    _frozen(folder)


def _frozen(folder: Path) -> plan.Plan:
    source = folder / "mix.json"
    return plan.frozen_plan(folder, [source], plan.describe_sources([source]), plan.Options())


def _entries(folder: Path) -> Any:
    return list(plan.Plan(folder / "plan", plan.Options(), 20, {}).entries(0))


def _spooled(folder: Path) -> Any:
    spool = Spool(folder)
    spool.create(Origin("sqlite:///nowhere.db", "experiment", "name"))
    spool.append("metrics", {"loss": 1.0})
    spool.append("metrics", {"loss": 2.0})


def _history(folder: Path) -> str:
    callbacks._drop(folder / "history.jsonl", 1)
    return (folder / "history.jsonl").read_text()


def _quarantine(folder: Path) -> str:
    kept = Quarantine(folder, 0.5)
    kept.position = 2
    trainer: Any = SimpleNamespace(is_global_zero=True, strategy=SimpleNamespace(barrier=lambda: None))
    kept.on_train_start(trainer, None)
    return (folder / "quarantine.jsonl").read_text()


def _weights(folder: Path) -> Any:
    save_tensors(TENSORS, folder / "model.safetensors")
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    (folder / "recipe.json").write_text(json.dumps({"sha256": digest}))


def _indexed(folder: Path) -> Any:
    save_tensors(TENSORS, folder / "model-1.safetensors")
    index_file = {"weight_map": {"a": "model-1.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index_file))


def _answers(folder: Path) -> Any:
    with requests.open_answers(folder / "answers.jsonl", _ASKED) as answers:
        answers.add([_ASKED[0].record(answer="x" * 200)])


def _answered(folder: Path) -> Any:
    with requests.open_answers(folder / "answers.jsonl", _ASKED) as answers:
        return answers.answered


_ASKED = [requests.Request(1, "what")]


def _png(folder: Path) -> Any:
    from PIL import Image

    Image.new("RGB", (64, 64), "red").save(folder / "a.png")


def _claimed_features(folder: Path) -> Any:
    recipe: Any = SimpleNamespace(fingerprint=lambda shards: "f", dtype="float16")
    return feature_store._claim(folder, None, recipe)


_NO_TEMPLATE: Any = SimpleNamespace(tokenizer=SimpleNamespace(chat_template=None))


def _anything(_: Any) -> bool:
    return True


READERS = [
    Reader(
        ("config.compose:load_values",), "config.yaml", _json("config.yaml", {"a": 1, "b": [1, 2]}),
        lambda folder: compose.load_values(folder / "config.yaml"),
    ),
    Reader(
        ("config.compose:_digest",), "w.safetensors", lambda folder: (folder / "w.safetensors").write_bytes(b"abc" * 9),
        lambda folder: compose._digest([folder / "w.safetensors"]), dict.fromkeys(TORN, _anything),
    ),
    Reader(
        ("run.folder:_check_code", "files:read_json"), "code.json",
        _json("code.json", {"code_version": code_version(), "commit": "a"}), run_folder._check_code,
    ),
    Reader(
        ("run.folder:_is_finished",), "result.json", _json("result.json", RESULT),
        lambda folder: run_folder._is_finished(folder / "result.json"),
        dict.fromkeys(TORN, lambda finished: finished is False),  # the run goes on from its checkpoint
    ),
    Reader(
        ("stages.checkpointing:AtomicCheckpointIO.load_checkpoint",), "last.ckpt",
        lambda folder: AtomicCheckpointIO().save_checkpoint(TENSORS, folder / "last.ckpt"),
        lambda folder: AtomicCheckpointIO().load_checkpoint(folder / "last.ckpt"),
    ),
    Reader(
        ("stages.callbacks:_drop", "files:whole_lines"), "history.jsonl", _lines("history.jsonl"), _history,
        dict.fromkeys(TORN, lambda kept: kept in ("", '{"step": 0, "position": 1}\n')),
    ),
    Reader(
        ("data.stream.callbacks:Quarantine.on_train_start",), "quarantine.jsonl",
        _lines("quarantine.jsonl"), _quarantine,
        dict.fromkeys(TORN, lambda kept: kept in ("", '{"step": 0, "position": 1}\n')),
    ),
    Reader(
        ("training.results:measured",), "quarantine.jsonl", _lines("quarantine.jsonl"),
        lambda folder: len(list(whole_lines(folder / "quarantine.jsonl"))),
        dict.fromkeys(TORN, lambda count: count < 2),
    ),
    Reader(
        ("predictions:Predictions.load",), "predictions_val.npz", _predictions,
        lambda folder: Predictions.load(folder / "predictions_val.npz"), name="predictions_val.npz",
    ),
    Reader(
        ("finetune.saved:_base",), "base.json", _json("base.json", {"weights": ["a"], "fingerprints": {"a": "b"}}),
        lambda folder: saved._base(folder / "base.json"),
    ),
    Reader(
        ("finetune.saved:_tensors", "models.tensor_files:load_tensors", "models.tensor_files:open_tensors"),
        "trained.safetensors", lambda folder: save_tensors(TENSORS, folder / "trained.safetensors"),
        lambda folder: saved._tensors(folder / "trained.safetensors", TENSORS),
    ),
    Reader(
        ("models.interop.checkpoint:_opened", "models.interop.checkpoint:_mistaken"), "model.safetensors", _weights,
        checkpoint.Checkpoint.of,
    ),
    Reader(
        ("models.interop.checkpoint:_unpickled",), "pytorch_model.bin",
        lambda folder: torch.save(TENSORS, folder / "pytorch_model.bin"), checkpoint.Checkpoint.of,
    ),
    Reader(
        ("models.interop.checkpoint:_indexed",), "model.safetensors.index.json",
        _indexed, checkpoint.Checkpoint.of, {"directory": _anything},  # no index: all files are read
    ),
    Reader(
        ("models.interop.json_config:read_config", "models.interop.export:_views"), "config.json",
        _json("config.json", {"a": 1}), json_config.read_config,
    ),
    Reader(
        ("models.interop.chat:_templates",), "chat_template.jinja",
        lambda folder: (folder / "chat_template.jinja").write_text("{{ messages }}"),
        lambda folder: list(chat._templates(folder, _NO_TEMPLATE)),
        {**dict.fromkeys(TORN, _anything), "directory": _anything},  # it is no file, so there is no template
    ),
    Reader(
        ("assembly.weights:_check_hash",), "recipe.json", _weights,
        lambda folder: weights._check_hash(folder / "model.safetensors"), {"directory": _anything},  # no recipe
    ),
    Reader(
        ("assembly.weights:_check_hash",), "model.safetensors", _weights,
        lambda folder: weights._check_hash(folder / "model.safetensors"),
    ),
    Reader(
        ("data.format.storage:LocalStorage.content",), "shards.json", _set, ShardSet,
    ),
    Reader(("data.format.index:map_index",), "index.npy", _set, ShardSet),
    Reader(
        ("data.format.index:read_sidecar",), "shard-000000.json", _set,
        lambda folder: index.read_sidecar(folder / "shard-000000.json"),
    ),
    Reader(
        ("data.format.storage:LocalStorage.sha256",), "shard-000000.tar", _set,
        lambda folder: ShardSet(folder).verify(),
    ),
    Reader(
        ("data.format.storage:LocalStorage._descriptor",), "shard-000000.tar", _opened_set, _read_opened,
        errors=dict.fromkeys(("empty", "torn", "directory", "EACCES"), SampleError),  # one sample's fault
    ),
    Reader(
        ("data.features.store:_claim",), "features.json",
        _json("features.json", {"fingerprint": "f", "dtype": "float16"}), _claimed_features,
    ),
    Reader(("data.building.plan:frozen_plan",), "plan/plan.json", _plan, _frozen,
           {"directory": lambda found: found.num_records == 20}),  # no plan: it is made again
    Reader(("data.building.plan:Plan.entries",), "plan/records.jsonl", _plan, _entries),
    Reader(("data.building.plan:Plan._array",), "plan/order.npy", _plan, _entries),
    Reader(("data.building.plan:Plan._array",), "plan/offsets.npy", _plan, _entries),
    Reader(
        ("data.building.plan:describe_sources",), "mix.json", _json("mix.json", [{"a": 1}]),
        lambda folder: plan.describe_sources([folder / "mix.json"]), dict.fromkeys(TORN, _anything),
    ),
    Reader(
        ("data.building.records:read_records",), "mix.json", _json("mix.json", [{"conversations": []}] * 3),
        lambda folder: list(records.read_records(folder / "mix.json")), {"empty": lambda found: found == []},
    ),
    Reader(
        ("data.toyworld.make:_existing_world",), "world.json",
        _json("world.json", {"version": make.RECIPE_VERSION, "seed": 0, "sets": {}}),
        lambda folder: make._existing_world(folder, 0),
    ),
    Reader(
        ("sweep.folder:_read_json",), "sweep.json", lambda folder: sweep_folder.write_sweep(folder, SWEEP),
        sweep_folder.read_sweep, name="sweep.json",
    ),
    Reader(
        ("sweep.folder:_read_json",), "result.json", _json("result.json", RESULT),
        lambda folder: sweep_folder.outcome(folder, RUN, "v1"),
        {
            **dict.fromkeys(TORN, lambda found: found.state == "failed" and "makes it again" in found.error),
            **{fault: lambda found: found.state == "failed" and "result.json: cannot be read: " in found.error
               for fault in REFUSED},
        },
    ),
    Reader(
        ("sweep.folder:_read_json",), "failure.json", lambda folder: sweep_folder.record_failure(folder, "why"),
        lambda folder: sweep_folder.outcome(folder, RUN, "v1"),
        {
            **dict.fromkeys(TORN, lambda found: found.state == "interrupted"),
            **{fault: lambda found: found.state == "failed" and "failure.json: cannot be read: " in found.error
               for fault in REFUSED},
        },
    ),
    Reader(
        ("sweep.runner:_why",), "log.txt", lambda folder: (folder / "log.txt").write_text("a\nlast words\n"),
        lambda folder: runner._why(folder, 1),
        {
            **dict.fromkeys(TORN, lambda told: told in ("it wrote nothing", "last", "a", "last w")),
            **{fault: lambda told: "log.txt: cannot be read: " in told
               for fault in REFUSED},
        },
    ),
    Reader(
        ("run.ranks:_last_line",), "log.rank1.txt",
        lambda folder: (folder / "log.rank1.txt").write_text("a\nlast\n"),
        lambda folder: ranks._last_line(folder / "log.rank1.txt"),
        {
            **dict.fromkeys(TORN, lambda told: told in ("", "l", "a")),
            **{fault: lambda told: "log.rank1.txt: cannot be read: " in told
               for fault in REFUSED},
        },
    ),
    Reader(  # a report is never what a run ends for: a warning
        ("tracking.spool:Spool.origin",), "tracking.json", _spooled, lambda folder: Spool(folder).pending(),
        dict.fromkeys(TORN + REFUSED, lambda waiting: waiting == 0),
    ),
    Reader(
        ("tracking.spool:Spool._lines",), "spool.jsonl", _spooled, lambda folder: Spool(folder).pending(),
        dict.fromkeys(TORN + REFUSED, lambda waiting: waiting < 2),
    ),
    Reader(
        ("inference.session_file:load",), "a.session", lambda folder: save_tensors(TENSORS, folder / "a.session"),
        lambda folder: session_file.load(None, folder / "a.session"),
    ),
    Reader(
        ("inference.session_file:check_replaceable",), "a.session",
        lambda folder: save_tensors(TENSORS, folder / "a.session", {"format": "llava-mini session 3"}),
        lambda folder: session_file.check_replaceable(folder / "a.session"),
    ),
    Reader(
        ("inference.requests:read_requests",), "requests.jsonl",
        lambda folder: (folder / "requests.jsonl").write_text('{"id": 1, "question": "what"}\n'),
        lambda folder: requests.read_requests(folder / "requests.jsonl"),
        {"empty": lambda found: found == [], "torn": lambda found: "no JSON" in found[0].refused},
    ),
    Reader(
        ("inference.requests:open_answers",), "answers.jsonl", _answers, _answered,
        dict.fromkeys(TORN, lambda answered: answered == set()),  # what is torn is asked again
    ),
    Reader(
        ("media.named:read_image", "media.named:check_file"), "a.png", _png,
        lambda folder: named.open_image(folder / "a.png"),
    ),
    Reader(
        ("media.named:kind_of",), "a.png", _png, lambda folder: named.kind_of(folder / "a.png"), {"torn": _anything},
    ),
]  # fmt: skip

# Readers that the table leaves out, and why.
OTHER_READERS = {
    "data.text.labels:tokenizer_in": "a tokenizer's folder: tests/commands/test_data.py",
    "commands.merge:same_answers": "reads what the command has just written",
    "command_line.output:_Ending._end": "opens the null device",
    "config.compose:_recipe_fault": "load_values has read the same file before it",
    "data.building.media:_image": "a user's picture, rejected with its reason: tests/data/building",
    "data.building.downloads:_download_once": "opens a URL: tests/data/building/test_downloads.py",
    "files:why_unreadable": "it is what finds the cause",
    "hardware:_free_in_groups": "of the system, not of a run",
    "hardware:_free_in_host": "of the system, not of a run",
    "inference.loading:load": "tests/inference/test_loading.py",
    "inference.loading:_reason": "it is what finds the cause",
    "inference.loading:_processor": "tests/inference/test_loading.py",
    "media.images:_opened": "reads bytes in memory",
    "media.video:_ends_in_a_packet": "tests/media/test_video.py",
    "media.video:_opened": "tests/media/test_video.py",
    "models.interop.parts:_read_config": "tests/models/interop/test_parts.py",
    "models.interop.parts:_load": "tests/models/interop/test_parts.py",
    "models.tokenizer:load_tokenizer": "tests/models/test_tokenizer.py and tests/inference/test_loading.py",
    "settings:conf": "of the package",
    "config.reference:_documented": "of the package",
    "sweep.html:page": "reads the plot that the same command has drawn",
    "run.provenance:code_version": "of the package",
}
