"""MLflow run of a sweep: the report as files, the headline as description, a view of the sweep's runs, differences.

Figures are means over seeds of the runs' figures; only the report has intervals. A configuration is compared with the
reference of its own setting, over the seeds that both have finished.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from llava_mini.sweep.analysis import analyze
from llava_mini.sweep.findings import headline
from llava_mini.sweep.grid import Run
from llava_mini.tracking.saved_view import View
from llava_mini.tracking.service import Service
from llava_mini.tracking.spool import Spool
from llava_mini.tracking.tracker import flush_spools

Result = Mapping[str, Any]

_FILES = ("report.html", "results.csv", "results.json")
_PARAMS = ("compressor", "C", "n_fusion", "seed")
_SHARES = ("word_accuracy.dense", "word_accuracy.one_word", "accuracy", "nll.dense", "nll.one_word")
_COSTS = ("tokens", "prefill_flops", "seconds", "peak_memory_bytes")
_CHARTS = (
    ("tokens", "word_accuracy.dense"),
    ("prefill_flops", "word_accuracy.dense"),
    ("tokens", "word_accuracy.one_word"),
    ("tokens", "accuracy"),
)


@dataclass
class _Configuration:
    """Finished runs that differ only in their seed: figures by seed."""

    name: str
    reference: bool
    setting: dict[str, Any]
    by_seed: dict[int, dict[str, float]] = field(default_factory=dict)

    def mean(self, seeds: Iterable[int]) -> dict[str, float]:
        """Mean over seeds of every figure that was measured with each of them."""
        chosen = [self.by_seed[seed] for seed in seeds]
        known = [key for key in chosen[0] if all(key in figures for figures in chosen)]
        return {key: fmean(figures[key] for figures in chosen) for key in known}


def track_report(sweep_dir: Path, service: Service) -> None:
    """Add what `compare` wrote in a sweep's folder to the sweep's MLflow run, and send the files of its runs.

    What the service does not accept waits in the folders.
    """
    spool, analysis = Spool(sweep_dir), analyze(sweep_dir)
    finished = analysis.of_state("finished")
    spool.append("tags", {"mlflow.note.content": "\n\n".join(headline(analysis))})
    spool.append("metrics", summary((measured.run, measured.result) for measured in finished))
    if inputs := dict.fromkeys(each for measured in finished for each in Spool(measured.folder).inputs()):
        spool.append("inputs", {"datasets": [asdict(each) for each in inputs]})
    spool.append("view", asdict(view(sweep_dir.resolve().name, [measured.result for measured in finished])))
    for name in (*_FILES, *sorted(path.name for path in sweep_dir.glob("*.png"))):
        spool.append("file", {"path": name})
    flush_spools([sweep_dir, *sorted(sweep_dir.glob("runs/*"))], service=service)


def view(name: str, results: Sequence[Result] = ()) -> View:
    """View of a sweep's runs on MLflow's pages.

    Only figures in `results` get charts, since MLflow also draws empty charts.
    """
    split = _split(results[0]) if results else "test"
    measured = {key for result in results for key in _figures(result)}
    charts = [(x, _logged(y, split)) for x, y in _CHARTS if y in measured]
    costs = [key for key in _COSTS if key != "tokens"]
    metrics = ["tokens", *(_logged(key, split) for key in _SHARES), *costs]
    return View(f"sweep {name}", charts, _PARAMS, metrics, order_by="tokens")


def summary(finished: Iterable[tuple[Run, Result]]) -> dict[str, float]:
    """Return summary figures of a sweep.

    Returns:
        Figures by name. `best.KEY` is of the configuration with the highest word accuracy on dense answers (accuracy,
        if no run has dense answers) among those that have a reference. `reference.KEY` is of its reference.
        `difference.KEY` is between the two, and `difference.KEY.CONFIGURATION` is between every configuration and its
        reference. Empty if there is no such configuration.
    """
    configurations = _configurations(finished)
    references = [each for each in configurations if each.reference]
    measured = {key for each in configurations for figures in each.by_seed.values() for key in figures}
    ranked = "word_accuracy.dense" if "word_accuracy.dense" in measured else "accuracy"
    metrics: dict[str, float] = {}
    highest: tuple[float, dict[str, float]] | None = None
    for each in configurations:
        reference = next((other for other in references if other.setting == each.setting), None)
        if each.reference or reference is None or not (seeds := each.by_seed.keys() & reference.by_seed.keys()):
            continue
        own, its = each.mean(seeds), reference.mean(seeds)
        difference = {key: own[key] - its[key] for key in _SHARES if key in own and key in its}
        metrics |= {f"difference.{key}.{each.name}": value for key, value in difference.items()}
        score = own.get(ranked)
        if score is not None and (highest is None or score > highest[0]):
            parts = {"best": own, "reference": its, "difference": difference}
            highest = score, {f"{part}.{key}": value for part, of in parts.items() for key, value in of.items()}
    return metrics if highest is None else highest[1] | metrics


def _configurations(finished: Iterable[tuple[Run, Result]]) -> list[_Configuration]:
    found: dict[str, _Configuration] = {}
    for run, result in finished:
        values = [f"{key.rpartition('.')[2]}={value}" for key, value in run.values.items() if value is not None]
        grid = [] if run.C is None else [f"C{run.C}"]
        name = "-".join([run.compressor, *grid, f"N{run.n_fusion}", *values])
        configuration = found.setdefault(f"{name} {run.reference}", _Configuration(name, run.reference, run.setting()))
        configuration.by_seed[run.seed] = _figures(result)
    return list(found.values())


def _figures(result: Result) -> dict[str, float]:
    """Figures of a run that a sweep reports, on the split that the run is compared on."""
    split = _split(result)
    grouped = {f"{key}.{group}": value for key in ("word_accuracy", "nll")
               for group, value in result[key][split].items()}  # fmt: skip
    return {"accuracy": result["accuracy"][split], **grouped, **{key: result[key] for key in _COSTS}}


def _split(result: Result) -> str:
    """Split that a run is compared on: validation if a sweep does not read the test split."""
    return "test" if "test" in result["accuracy"] else "val"


def _logged(figure: str, split: str) -> str:
    """Name of a figure among a run's metrics: `word_accuracy.dense` -> `word_accuracy.test.dense`."""
    key, dot, group = figure.partition(".")
    return f"{key}.{split}{dot}{group}"
