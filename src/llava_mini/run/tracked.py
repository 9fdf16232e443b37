"""What a run reports to its tracker: config, command, commit and data before training, measurements after it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_mini.config import Config, instantiate
from llava_mini.run.provenance import code_version, git_commit, source_tags
from llava_mini.tracking.spool import DataInput, Spool, Status
from llava_mini.tracking.tracker import Tracker, flush_spools, init_tracking

if TYPE_CHECKING:  # so that a command whose run is already finished imports none of them
    from lightning.pytorch.loggers import Logger

    from llava_mini.data.stream.datamodule import Mix

log = logging.getLogger("llava_mini")

# Keys of result.json that are logged. What a run has not measured is not logged.
_MEASURED = (
    "accuracy",
    "accuracy_by_kind",
    "word_accuracy",
    "word_accuracy_by_kind",
    "nll",
    "nll_by_kind",
    "converged",
    "gained_last_third",
    "prefill_flops",
    "seconds",
    "cpu_seconds",
    "gpu_seconds",
    "skipped",
    "peak_memory_bytes",
    "planned_peak_bytes",
    "measured_peak_bytes",
    "tokens",
    "n_fusion",
    "params",
)
_CONTEXTS = {"train": "training", "val": "validation", "test": "test"}


@contextmanager
def tracked(config: Config, splits: Mapping[str, Mix]) -> Iterator[tuple[Tracker | None, list[Logger]]]:
    """Yield the run's tracker and its Lightning loggers, and report how the block ended. Nothing if tracking is off."""
    tracking = config.tracking
    if not tracking.enabled:
        yield None, []
        return
    from llava_mini.tracking.lightning_logger import TrackerLogger

    service = instantiate(config.tracker, "tracker")
    if tracking.parent_run_id is None:
        init_tracking(tracking.uri, tracking.experiment, service)
    run_dir = Path(config.run_dir)
    tracker = Tracker(
        run_dir, uri=tracking.uri, experiment=tracking.experiment, parent_run_id=tracking.parent_run_id, service=service
    )
    tracker.log_params(short_params(config))
    tracker.log_params({key: value for key, value in config.to_dict().items() if key != "tracking"})
    commit = git_commit()
    tracker.set_tags({"commit": commit, "code_version": code_version()})
    tracker.set_tags(source_tags(commit))
    tracker.log_inputs(data_inputs(splits))
    try:
        yield tracker, [TrackerLogger(tracker)]
    except BaseException as error:
        _finish(tracker, run_dir, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    _finish(tracker, run_dir, "FINISHED")


def track_result(tracker: Tracker, config: Config, result: Mapping[str, Any]) -> None:
    """Log a run's measurements (its result.json), and its model if the config asks for it."""
    tracker.log_params({"tokens": result["tokens"]})
    tracker.set_tags({"measured_peak_is": result["measured_peak_is"]})
    tracker.log_metrics({key: result[key] for key in _MEASURED if result.get(key) is not None})
    if config.tracking.log_model:
        tracker.log_file("model")


def send_waiting(config: Config) -> None:
    """Send the reports that a finished run could not send."""
    run_dir = Path(config.run_dir)
    if pending := Spool(run_dir).pending():
        left = flush_spools([run_dir], service=instantiate(config.tracker, "tracker"))
        log.info("%d of %d reports that waited in %s are sent", pending - left, pending, run_dir)
        _say_waiting(left, run_dir)


def short_params(config: Config) -> dict[str, Any]:
    """Return the values by which runs are compared, with names that fit a column; without C if there is none."""
    choices = config.choices
    short = {
        "compressor": choices["compressor"],
        "C": config.compressor.get("C"),
        "n_fusion": config.fusion.num_layers,
        "seed": config.seed,
        "order": choices["order"],
        "finetune": choices["finetune"],
    }
    return {key: value for key, value in short.items() if value is not None}


def data_inputs(splits: Mapping[str, Mix]) -> list[DataInput]:
    """Return the shard sets of a run. A set that is read for several splits is one input."""
    found: dict[str, DataInput] = {}
    for split, mix in splits.items():
        for shards in (reader.shards for reader in mix.readers):
            source, context = str(shards.folder), _CONTEXTS[split]
            if source in found:
                context = f"{found[source].context}, {context}"
            name = source.rstrip("/").rpartition("/")[2]
            found[source] = DataInput(name, shards.fingerprint, source, len(shards), context)
    return list(found.values())


def _finish(tracker: Tracker, run_dir: Path, status: Status) -> None:
    _say_waiting(tracker.finish(status), run_dir)


def _say_waiting(count: int, run_dir: Path) -> None:
    if count:
        log.info("%d reports wait in %s; the same command sends them", count, run_dir)
