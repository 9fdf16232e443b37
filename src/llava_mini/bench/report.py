"""Report of a study: Markdown, JSON and a plot, with the circumstances that explain the numbers, and an MLflow run."""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from llava_mini.errors import refused
from llava_mini.files import atomic_path, write_json, write_text
from llava_mini.processes import cores
from llava_mini.run.provenance import git_commit
from llava_mini.tracking.tracker import Tracker, init_tracking

if TYPE_CHECKING:  # a machine with a GPU may have no matplotlib
    from matplotlib.figure import Figure

_RUNS = Path("runs/bench")  # reports to MLflow wait here while the tracker is down


@dataclass(frozen=True)
class Report:
    """Results of a study."""

    text: str  # all results as Markdown
    figures: Mapping[str, Any]  # all results for programs, ready for JSON
    metrics: Mapping[str, Any] = field(default_factory=dict)  # for MLflow
    draw: Callable[[], Figure] | None = None  # draws the plot; None: there is none
    complete: bool = True  # whether everything was measured

    def write(self, folder: Path, names: Sequence[str], about: Mapping[str, Any]) -> str:
        """Write the files of the report (Markdown, JSON and, if there is one, the plot) and return its text."""
        text = f"{circumstances_text(about)}\n\n{self.text}\n"
        write_text(folder / names[0], text)
        write_json(folder / names[1], {"about": about, **self.figures})
        if self.draw is not None:
            with atomic_path(folder / names[2]) as path:
                self.draw().savefig(path, format="png", dpi=150, metadata={"Software": None})
        return text


def circumstances(packages: Sequence[str] = ("torch", "transformers"), card: str | None = None) -> dict[str, Any]:
    """Return commit, processor or `card`, and versions; for a CPU also cores, torch's threads and the load of a minute.

    Raises:
        PackageNotFoundError: a package is missing.
    """
    versions = {"python": platform.python_version(), **{name: version(name) for name in packages}}
    if card is not None:
        return {"commit": git_commit(), "device": card, "cuda": torch.version.cuda, **versions}
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.machine())
    counts = {"cores": cores(), "threads": torch.get_num_threads(), "load": round(os.getloadavg()[0], 1)}
    return {"commit": git_commit(), "cpu": model, **counts, **versions}


def circumstances_text(about: Mapping[str, Any]) -> str:
    """Return the circumstances as one or two sentences."""
    named = dict(about)
    commit = named.pop("commit")
    if "device" in named:
        where, load = f"{named.pop('device')}; CUDA {named.pop('cuda') or 'none'}", ""
    else:
        threads = named.pop("threads")
        where = f"{threads} thread{'s' if threads > 1 else ''} on {named.pop('cpu')}"
        load = (
            f" Processes that ran or waited on the {named.pop('cores')} cores when it began: {named.pop('load')} on"
            " average."
        )
    versions = ", ".join(f"{name} {number}" for name, number in named.items())
    return f"Commit `{commit[:12]}{commit[40:]}`; {where}; {versions}.{load}"


def check_folder(out: Path) -> None:
    """Check before any measurement that the report can be written. The folder is created if it does not exist.

    Raises:
        UserError: the folder cannot be created or written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise refused("out", out, f"no folder that can be written ({error.strerror})") from error


def markdown(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table."""
    lines = [f"| {' | '.join(map(str, cells))} |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])


def metric_name(text: str) -> str:
    """Return `text` in a form that MLflow allows in names."""
    return "_".join(text.replace("'", "").replace(",", "").replace(":", "").replace("=", "").split())


def track(name: str, about: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
    """Report one MLflow run. A tracker that is down does not end the benchmark."""
    init_tracking()
    run = f"bench-{name}-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}"
    tracker = Tracker(_RUNS / run)
    tracker.log_params(about)
    tracker.set_tags({"bench": name, "commit": about["commit"]})
    tracker.log_metrics(metrics)
    tracker.finish()
