"""The report as one self-contained HTML page: styles inline, plots as data, no scripts.

Every text that comes from a config, a log or a folder's name is escaped.
"""

from __future__ import annotations

import base64
import shlex
from collections.abc import Mapping
from html import escape
from pathlib import Path

from llava_mini.sweep.analysis import Analysis
from llava_mini.sweep.findings import headline
from llava_mini.sweep.seed_spread import SOURCE
from llava_mini.sweep.statistics import FEWEST_SEEDS
from llava_mini.sweep.style import CSS
from llava_mini.sweep.tables import changes_tables, configurations_table, kinds_tables, runs_table

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
    "less than half a point, and its noise is at most one point. "
    "Of one that was still improving the figures say what it reached in its budget of steps; with more it would have "
    "reached more, and differences may shrink or turn."
)


def page(name: str, analysis: Analysis, plots: Mapping[str, Path]) -> str:
    """Return the whole HTML page.

    Args:
        name: Name of the sweep.
        analysis: Analysis that the page shows.
        plots: PNG files by name, as returned by `plots.draw_all`; empty if there is nothing to draw.
    """
    figures = {key: _figure(key, plots[key]) for key in plots}
    body = [
        _header(name, analysis),
        _missing(analysis),
        figures.get("accuracy_vs_tokens", ""),
        _section("Configurations", configurations_table(analysis)) if analysis.configurations else "",
        figures.get("accuracy_vs_flops", ""),
        _section("One change at a time", changes_tables(analysis)) if analysis.changes else "",
        _kinds(analysis, figures.get("accuracy_by_kind", "")),
        _meaning(analysis),
        _section("All runs", _all_runs(analysis)),
        _reproduce(analysis),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(name)} · LLaVA-Mini Lab</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in body if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def _section(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>{content}</section>"


def _header(name: str, analysis: Analysis) -> str:
    counts = {state: len(analysis.of_state(state)) for state in ("finished", "failed", "interrupted")}
    facts = [f"{counts['finished']} of {len(analysis.runs)} runs finished"]
    seeds = sorted({run.run.seed for run in analysis.of_state("finished")})
    if seeds:
        facts.append(f"{len(seeds)} seed{'s' * (len(seeds) > 1)} ({', '.join(map(str, seeds))})")
        if analysis.test_sets == 1:
            facts.append(f"{analysis.questions} {analysis.split} questions about {analysis.scenes} scenes")
        else:
            facts.append(f"{analysis.test_sets} different test sets")
    facts.append(analysis.sweep.started[:16].replace("T", " "))
    first, *others = headline(analysis)
    return (
        f'<header><p class="lab">LLaVA-Mini Lab · sweep</p><h1>{escape(name)}</h1>'
        f'<p class="facts">{escape(" · ".join(facts))}</p></header>\n'
        f'<section class="headline"><p class="first">{escape(first)}</p>'
        + "".join(f"<p>{escape(sentence)}</p>" for sentence in [*others, analysis.not_compared()] if sentence)
        + "</section>"
    )


def _missing(analysis: Analysis) -> str:
    """Section on the runs that are not in the numbers, and why."""
    failed, waiting = analysis.of_state("failed"), analysis.of_state("interrupted")
    if not failed and not waiting:
        return ""
    parts = [f"{len(failed)} failed"] * bool(failed) + [f"{len(waiting)} not finished"] * bool(waiting)
    items = [f"<li><code>{escape(m.folder.name)}</code>: {escape(m.what_failed)}</li>" for m in failed]
    items += [f"<li><code>{escape(m.folder.name)}</code>: not finished</li>" for m in waiting]
    return (
        f'<section class="missing"><h2>Not in the numbers: {" and ".join(parts)}</h2><ul>{"".join(items)}</ul>'
        "<p>The same sweep command runs what is missing; finished runs are kept.</p></section>"
    )


def _figure(name: str, plot: Path) -> str:
    data = base64.b64encode(plot.read_bytes()).decode()
    caption = escape(_CAPTIONS[name])
    return (
        f'<figure><div class="scroll"><img alt="{caption}" src="data:image/png;base64,{data}"></div>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _kinds(analysis: Analysis, figure: str) -> str:
    return _section("By kind of question", figure + kinds_tables(analysis)) if figure else ""


def _meaning(analysis: Analysis) -> str:
    """Section on what the figures mean and what they do not mean."""
    if not analysis.configurations:
        return ""
    intervals = [s.mean.interval for c in analysis.configurations for s in c.scores.values()]
    text = [_SCORE, *([_INTERVAL] if any(intervals) else [])]
    if analysis.conclusive:
        text.append(_HOLM)
    elif any(intervals):
        text.append(f"Below {FEWEST_SEEDS} common seeds there are no comparisons. {SOURCE}")
    else:
        text.append(f"Below {FEWEST_SEEDS} seeds there are no intervals and no comparisons. {SOURCE}")
    starts = sorted({start for c in analysis.configurations for start in c.training.starts})
    text += [_CONVERGED, f"Where the weights started from: {'; '.join(starts)}."]
    return _section("What the figures mean", "".join(f"<p>{escape(line)}</p>" for line in text))


def _all_runs(analysis: Analysis) -> str:
    return f"<details><summary>{len(analysis.runs)} runs</summary>{runs_table(analysis)}</details>"


def _reproduce(analysis: Analysis) -> str:
    sweep = analysis.sweep
    commit, _, changes = map(escape, sweep.commit.partition("+"))
    warning = " with changes that were not committed" if changes else ""
    version, command = escape(sweep.code_version[:12]), escape(shlex.join(sweep.arguments))
    return _section(
        "To reproduce",
        f"<pre>git checkout {commit}\nllava-mini sweep {command}</pre>"
        f"<p>Commit <code>{commit}</code>{warning}, code version <code>{version}</code>, "
        f"last begun {escape(sweep.started)}. Every run's numbers are in results.csv and results.json.</p>",
    )
