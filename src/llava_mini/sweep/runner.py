"""Runner, which runs the missing runs of a sweep, one process per run, and reports what happened.

Finished runs are kept. Failed and interrupted runs are tried again if the same command is given again. A run that
fails, is killed or leaks does not affect any other run.
"""

from __future__ import annotations

import re
import shlex
import signal
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import datetime
from pathlib import Path

from llava_mini.config.overrides import literal
from llava_mini.errors import UserError
from llava_mini.files import reading
from llava_mini.run.differing import differences, listed
from llava_mini.run.provenance import commits_text, source_tags, untracked
from llava_mini.sweep.folder import (
    Sweep,
    forget_failure,
    only_sweep,
    outcome,
    read_sweep,
    record_failure,
    run_folder,
    write_sweep,
)
from llava_mini.sweep.grid import Run
from llava_mini.sweep.launcher import LOG_HEADER, Ended, Job, Launcher, Started
from llava_mini.sweep.progress import Progress, Say, print_now
from llava_mini.sweep.tracked import view
from llava_mini.tracking.service import Service
from llava_mini.tracking.spool import Status, close_run
from llava_mini.tracking.tracker import Tracker, flush_spools, init_tracking

INTERRUPTED = 130  # the exit status that a shell reports for Ctrl-C
_SECONDS_FOR_PARENT = 15.0


def run_sweep(
    runs: Sequence[Run],
    *,
    arguments: Sequence[str],
    sweep_dir: Path,
    launcher: Launcher,
    command: Sequence[str],
    imports: Sequence[str] = (),
    code_version: str,
    commit: str,
    service: Service | None,
    tracker_uri: str | None,
    experiment: str,
    say: Say = print_now,
) -> int:
    """Run every run that is not finished; return 0 if all are finished then, 1 if some are not, 130 after Ctrl-C.

    To `command` (`python -m llava_mini train`), which will import `imports`, a run's overrides, `run_dir=` and
    `tracking.parent_run_id=` are appended. Results of another `code_version` are not used. Without a `service` nothing
    is tracked; without a `tracker_uri` the service's default is used.

    Raises:
        UserError: if the folder cannot be written or another sweep is running in it.
    """
    sweep_dir = sweep_dir.absolute()
    started = datetime.now().astimezone().isoformat(timespec="seconds")
    sweep = Sweep(list(arguments), commit, code_version, started, list(runs))
    with only_sweep(sweep_dir):
        for line in _changed(sweep_dir, sweep):
            say(line)
        write_sweep(sweep_dir, sweep)
        tracking = _Tracking(sweep_dir, service, tracker_uri, experiment)
        try:
            tracking.start(sweep)
            _run_missing(sweep, sweep_dir, launcher, command, imports, tracking, say)
            interrupted = False
        except KeyboardInterrupt:
            interrupted = True
        missing = _summarize(sweep, sweep_dir, interrupted, say)
        tracking.finish("KILLED" if interrupted else "FAILED" if missing else "FINISHED", say)
    return INTERRUPTED if interrupted else int(missing > 0)


def _changed(sweep_dir: Path, sweep: Sweep) -> Iterator[str]:
    """Yield lines on what differs from the folder's earlier sweep, since config and code identify its runs."""
    if not (sweep_dir / "sweep.json").exists():
        return
    try:
        before = read_sweep(sweep_dir)
    except UserError as error:
        yield f"{error}; it is written again, and finished runs are kept"
        return
    if before.code_version != sweep.code_version:
        commits = commits_text(before.commit, sweep.commit)
        yield f"{sweep_dir} was begun with other code ({commits}): its runs are kept, and made again with this one"
    if other := differences(*(_by_key(each.arguments) for each in (before, sweep))):
        yield f"{sweep_dir} is continued with other arguments ({listed(other)}): the runs that both ask for are kept"


def _by_key(arguments: Sequence[str]) -> dict[str, str]:
    pairs = (argument.partition("=") for argument in untracked(arguments))
    return {key: value for key, _, value in pairs if key not in ("--out", "sweep_dir")}  # once sweep_dir


class _Tracking:
    """The sweep's own run in the tracker; it also sends what the sweep's runs could not send."""

    def __init__(self, sweep_dir: Path, service: Service | None, uri: str | None, experiment: str) -> None:
        self._sweep_dir, self._experiment, self._service = sweep_dir, experiment, service
        self._tracker: Tracker | None = None
        self._address = "" if service is None else init_tracking(uri, experiment, service)

    def start(self, sweep: Sweep) -> None:
        if self._service is None:
            return
        self._tracker = Tracker(self._sweep_dir, uri=self._address, experiment=self._experiment, service=self._service)
        arguments = shlex.join(untracked(sweep.arguments))
        self._tracker.set_tags({"arguments": arguments, "commit": sweep.commit, "code_version": sweep.code_version})
        self._tracker.set_tags(source_tags(sweep.commit))
        self._tracker.show(view(self._sweep_dir.name))
        self._tracker.run_id(wait=_SECONDS_FOR_PARENT)
        self._flush()

    def overrides(self) -> list[str]:
        parent = None if self._tracker is None else self._tracker.run_id()
        return [] if parent is None else [f"tracking.parent_run_id={parent}"]

    def finish(self, status: Status, say: Say) -> None:
        if self._tracker is None:
            return
        self._tracker.finish(status)
        if waiting := self._flush():
            missed = f"{self._tracker.service.name} at {self._address} did not take {waiting} reports"
            say(f"{missed}: they are sent when this command is given again")

    def _flush(self) -> int:
        parent = None if self._tracker is None else self._tracker.run_id()
        folders = [self._sweep_dir, *sorted(self._sweep_dir.glob("runs/*"))]
        # files are sent once the report exists
        return flush_spools(folders, self._address, parent, lanes=("reports",), service=self._service)


def _run_missing(
    sweep: Sweep,
    sweep_dir: Path,
    launcher: Launcher,
    command: Sequence[str],
    imports: Sequence[str],
    tracking: _Tracking,
    say: Say,
) -> None:
    jobs, runs = [], {}
    for run in _longest_first(sweep.runs):
        folder = run_folder(sweep_dir, run, sweep.code_version)
        if outcome(folder, run, sweep.code_version).state != "finished":
            own = [f"run_dir={literal(str(folder))}", *tracking.overrides()]
            keys = {override.partition("=")[0] for override in own}
            kept = [override for override in run.overrides if override.partition("=")[0] not in keys]
            jobs.append(Job(folder.name, (*command, *kept, *own), folder, imports=tuple(imports)))
            runs[folder.name] = run
    progress = Progress(len(sweep.runs), len(jobs), launcher.parallel, say)
    running: dict[str, Job] = {}
    try:
        with closing(launcher.run(jobs)) as events:
            for event in events:
                name = event.job.name
                if isinstance(event, Started):
                    running[name] = event.job
                    forget_failure(event.job.folder)
                    progress.started(name)
                else:
                    del running[name]
                    _judge(event, runs[name], sweep.code_version, progress)
    finally:
        for job in running.values():
            close_run(job.folder, "KILLED")


def _longest_first(runs: Sequence[Run]) -> list[Run]:
    """Runs seed by seed in their order, and within a seed by tokens, most first, so that no long run ends alone."""
    seeds = list(dict.fromkeys(run.seed for run in runs))
    return sorted(runs, key=lambda run: (seeds.index(run.seed), not run.reference, -(run.C or 0)))


def _judge(event: Ended, run: Run, code_version: str, progress: Progress) -> None:
    """Report and record the outcome of a run whose process has ended."""
    folder = event.job.folder
    state = outcome(folder, run, code_version)
    if state.result is not None:
        progress.finished(event.job.name, event.seconds, state.result)
        return
    error = state.error or event.reason or _why(folder, event.returncode)
    record_failure(folder, error)
    close_run(folder, "FAILED")
    progress.failed(event.job.name, event.seconds, error)


def _why(folder: Path, returncode: int) -> str:
    """One line on why a run left no result: the last line of its log, and the signal if it was killed."""
    try:
        with reading(folder / "log.txt"), (folder / "log.txt").open("rb") as log:
            log.seek(max(0, log.seek(0, 2) - 4096))
            text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", log.read().decode(errors="replace"))
    except UserError as error:
        text = str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    last = lines[-1][:300] if lines and not lines[-1].startswith(LOG_HEADER) else "it wrote nothing"
    if returncode < 0:
        return f"killed by {signal.Signals(-returncode).name}; last line: {last}"
    return last if returncode else f"ended without a result; last line: {last}"


def _summarize(sweep: Sweep, sweep_dir: Path, interrupted: bool, say: Say) -> int:
    """Report the state of all runs and return the number of those that are not finished."""
    folders = [run_folder(sweep_dir, run, sweep.code_version) for run in sweep.runs]
    outcomes = [outcome(folder, run, sweep.code_version) for folder, run in zip(folders, sweep.runs, strict=True)]
    finished = sum(state.state == "finished" for state in outcomes)
    failed = [(folder, state.error) for folder, state in zip(folders, outcomes, strict=True) if state.state == "failed"]
    say(f"{'interrupted: ' if interrupted else ''}{finished} of {len(folders)} runs are finished, {len(failed)} failed")
    for folder, error in failed:
        say(f"  failed: {folder.name}: {error} (see {folder / 'log.txt'})")
    if finished < len(folders):
        say("Give the same command again to run what is missing; finished runs are kept.")
    return len(folders) - finished
