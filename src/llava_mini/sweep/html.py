"""The report as one self-contained HTML page: styles inline, plots as data, no scripts.

Every text that comes from a config, a log or a folder's name is escaped.
"""

from __future__ import annotations

import base64
import shlex
from collections.abc import Mapping
from pathlib import Path

from llava_mini.sweep.analysis import Analysis
from llava_mini.sweep.findings import headline
from llava_mini.sweep.seed_spread import SOURCE
from llava_mini.sweep.statistics import FEWEST_SEEDS
from llava_mini.sweep.tables import TEMPLATES, changes_tables, configurations_table, kinds_tables, runs_table

_CAPTIONS = {
    "accuracy_vs_tokens": "Word accuracy against the vision tokens of an image that reach the language model.",
    "accuracy_vs_flops": "Word accuracy against the floating-point operations of the prefill of one question.",
    "accuracy_by_kind": "Word accuracy by kind of question.",
}
_SCORE = (
    "Word accuracy is the share of an answer's words that are right at their place, each given the right words before "
    "it; for one word it is exact match. A headline figure is the mean over the kinds of its group, however many "
    "questions each has; dense kinds, with long answers, and one-word kinds stand apart, because fused text can carry "
    "one word and not dozens."
)
_INTERVAL = (
    "A 95 % interval says what other seeds and scenes could have given. Its variance is that of the seeds' values, "
    "divided by their number, plus that over whole scenes (questions about one scene are not independent); margins are "
    "Student's t. In simulations with 3 to 8 seeds it holds the truth 94 to 99 times of 100. Differences are paired, "
    "which is why one can be clear although the intervals of the two overlap."
)
_HOLM = (
    "Of many comparisons some look clear by chance alone, so a difference counts as clear only where it stays so after "
    "Holm's correction for all comparisons of its column (5 % for all of them together). Each interval is shown by "
    "itself, so one may leave out 0 and still not be clear."
)
_CONVERGED = (
    "A run counts as converged when what its validation score gained over the last third of its steps is noise, or "
    "less than half a point, its noise is at most one point, and the negative log-likelihood of the answers fell by "
    "less than 0.05 nats a word. One that was neither improving nor converged is not shown to have converged. "
    "Of one that was still improving the figures say what it reached in its budget of steps; with more it would have "
    "reached more, and differences may shrink or turn."
)


def page(name: str, analysis: Analysis, plots: Mapping[str, Path]) -> str:
    """Return the whole HTML page of a sweep; `plots` are PNG files by name (`plots.draw_all`), or none."""
    commit, _, changed = analysis.sweep.commit.partition("+")
    return TEMPLATES.get_template("report.html.jinja").render(
        name=name,
        analysis=analysis,
        facts=_facts(analysis),
        headline=[*headline(analysis), analysis.not_compared()],
        failed=analysis.of_state("failed"),
        waiting=analysis.of_state("interrupted"),
        plots={key: base64.b64encode(plot.read_bytes()).decode() for key, plot in plots.items()},
        captions=_CAPTIONS,
        configurations=configurations_table(analysis) if analysis.configurations else "",
        changes=changes_tables(analysis) if analysis.changes else "",
        kinds=kinds_tables(analysis) if "accuracy_by_kind" in plots else "",
        meaning=_meaning(analysis),
        runs=runs_table(analysis),
        commit=commit,
        changed=bool(changed),
        command=shlex.join(analysis.sweep.arguments),
    )


def _facts(analysis: Analysis) -> list[str]:
    """Return how many runs, seeds and questions the page is about, and when the sweep began."""
    counts = {state: len(analysis.of_state(state)) for state in ("finished", "failed", "interrupted")}
    facts = [f"{counts['finished']} of {len(analysis.runs)} runs finished"]
    seeds = sorted({run.run.seed for run in analysis.of_state("finished")})
    if seeds:
        facts.append(f"{len(seeds)} seed{'s' * (len(seeds) > 1)} ({', '.join(map(str, seeds))})")
        if analysis.test_sets == 1:
            facts.append(f"{analysis.questions} {analysis.split} questions about {analysis.scenes} scenes")
        else:
            facts.append(f"{analysis.test_sets} different test sets")
    return [*facts, analysis.sweep.started[:16].replace("T", " ")]


def _meaning(analysis: Analysis) -> list[str]:
    """Return paragraphs on what the figures mean and what they do not mean."""
    if not analysis.configurations:
        return []
    intervals = [s.mean.interval for c in analysis.configurations for s in c.scores.values()]
    text = [_SCORE, *([_INTERVAL] if any(intervals) else [])]
    if analysis.conclusive:
        text.append(_HOLM)
    elif any(intervals):
        text.append(f"Below {FEWEST_SEEDS} common seeds there are no comparisons. {SOURCE}")
    else:
        text.append(f"Below {FEWEST_SEEDS} seeds there are no intervals and no comparisons. {SOURCE}")
    starts = sorted({start for c in analysis.configurations for start in c.training.starts})
    return [*text, _CONVERGED, f"Where the weights started from: {'; '.join(starts)}."]
