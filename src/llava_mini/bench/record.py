"""Output of a benchmark: JSON, a table, the conditions that explain the numbers, and an optional MLflow run."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from llava_mini.files import write_json, write_text
from llava_mini.processes import cores

_RUNS = Path("runs/bench")  # reports to MLflow wait here while the tracker is down


def circumstances(commit: str, packages: Sequence[str] = ("torch", "transformers")) -> dict[str, Any]:
    """Return the commit, the processor, its cores, the number of threads and the versions.

    Args:
        commit: Commit of the code.
        packages: Names of the packages whose versions matter.

    Raises:
        PackageNotFoundError: a package is missing.
    """
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.machine())
    versions = {name: version(name) for name in packages}
    counts = {"cores": cores(), "threads": torch.get_num_threads()}
    return {"commit": commit, "cpu": model, **counts, "python": platform.python_version(), **versions}


def circumstances_text(about: Mapping[str, Any]) -> str:
    """Return the circumstances as one sentence."""
    commit = about["commit"]
    threads = f"{about['threads']} thread{'s' if about['threads'] > 1 else ''}"
    return (
        f"Commit `{commit[:12]}{commit[40:]}`; {threads} on {about['cpu']}; python {about['python']},"
        f" torch {about['torch']}, transformers {about['transformers']}."
    )


def write(folder: Path, name: str, results: Any, table: str) -> None:
    """Write NAME.json and NAME.md."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{name}.json", results)
    write_text(folder / f"{name}.md", table)


def metric_name(text: str) -> str:
    """Return `text` in a form that MLflow allows in names."""
    return "_".join(text.replace("'", "").replace(",", "").replace(":", "").replace("=", "").split())


def track(name: str, about: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
    """Report one MLflow run. A tracker that is down does not end the benchmark."""
    from llava_mini.tracking.tracker import Tracker, init_tracking  # takes seconds to import

    init_tracking()
    run = f"bench-{name}-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}"
    tracker = Tracker(_RUNS / run)
    tracker.log_params(about)
    tracker.set_tags({"bench": name, "commit": about["commit"]})
    tracker.log_metrics(metrics)
    tracker.finish()
