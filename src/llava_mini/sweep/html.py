"""The report as one HTML page that needs nothing beside itself: styles inline, pictures as data, no scripts.

Every text that comes from a config, a log or a folder's name is escaped.
"""

from __future__ import annotations

import base64
import shlex
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from llava_mini.sweep.analysis import Analysis
from llava_mini.sweep.changes import Change
from llava_mini.sweep.configurations import Configuration
from llava_mini.sweep.findings import headline
from llava_mini.sweep.statistics import RESAMPLES, Difference, Interval
from llava_mini.sweep.style import CSS
from llava_mini.sweep.text import duration, memory, operations, percent, percent_range, points, points_range

_CAPTIONS = {
    "accuracy_vs_tokens": "Accuracy against the vision tokens of an image that reach the language model.",
    "accuracy_vs_flops": "Accuracy against the floating-point operations of the prefill of one question.",
    "accuracy_by_kind": "Accuracy by kind of question; configurations from the most accurate to the least.",
}

_INTERVAL = (
    "An interval shows what would change if other scenes had been asked about and other seeds had been drawn: it holds "
    f"the middle 95 % of {RESAMPLES} resamples of whole scenes and of seeds (a bootstrap). A difference resamples both "
    "sides alike, which is why it can be clear although the intervals of the two overlap."
)
_FEW_SEEDS = (
    "Few seeds make intervals too short, since no resample can leave the range of the seeds there are: where seeds "
    "differ more than scenes do, an interval from 3 seeds holds the truth about 3 times of 4. Look at the single seeds "
    "too, the small dots in the plots."
)
# Wider than what matters between good configurations, narrower than what a useless one loses.
_SCALE_POINTS = 0.15


def page(name: str, analysis: Analysis, pictures: Mapping[str, Path]) -> str:
    """The whole page.

    Args:
        name: of the sweep.
        analysis: what it shows.
        pictures: PNG files by name, as `plots.draw_all` gives them; empty when there is nothing to draw.
    """
    figures = {key: _figure(key, pictures[key]) for key in pictures}
    body = [
        _header(name, analysis),
        _missing(analysis),
        figures.get("accuracy_vs_tokens", ""),
        _configurations(analysis),
        figures.get("accuracy_vs_flops", ""),
        _changes(analysis.changes),
        _kinds(analysis, figures.get("accuracy_by_kind", "")),
        _meaning(analysis),
        _all_runs(analysis),
        _reproduce(analysis),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(name)} · LLaVA-Mini Lab</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in body if part)
        + "\n</main>\n</body>\n</html>\n"
    )


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
    """The runs that are not in the numbers, and why."""
    failed, waiting = analysis.of_state("failed"), analysis.of_state("interrupted")
    if not failed and not waiting:
        return ""
    parts = [f"{len(failed)} failed"] * bool(failed) + [f"{len(waiting)} not finished"] * bool(waiting)
    items = [f"<li><code>{escape(m.folder.name)}</code>: {escape(m.outcome.error or '')}</li>" for m in failed]
    items += [f"<li><code>{escape(m.folder.name)}</code>: not finished</li>" for m in waiting]
    return (
        f'<section class="missing"><h2>Not in the numbers: {" and ".join(parts)}</h2><ul>{"".join(items)}</ul>'
        "<p>The same sweep command runs what is missing; finished runs are kept.</p></section>"
    )


def _figure(name: str, picture: Path) -> str:
    data = base64.b64encode(picture.read_bytes()).decode()
    caption = escape(_CAPTIONS[name])
    return (
        f'<figure><div class="scroll"><img alt="{caption}" src="data:image/png;base64,{data}"></div>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _configurations(analysis: Analysis) -> str:
    if not analysis.configurations:
        return ""
    bars = _Bars([c.difference for c in analysis.configurations if c.difference is not None])
    rows = [_configuration(c, analysis, bars) for c in analysis.configurations]
    heads = ["Configuration", "Tokens", _accuracy_head(analysis), "Difference to uncompressed, points"]
    heads += ["Seeds", "Prefill", "Time", "Memory"]
    return (
        "<section><h2>Configurations</h2>"
        "<p>The most accurate first, with 95 % intervals; N is the number of pre-fusion layers. Differences are paired "
        f"(same scenes, common seeds). {bars.note}</p>" + _table(heads, rows, "configurations") + "</section>"
    )


def _configuration(configuration: Configuration, analysis: Analysis, bars: _Bars) -> str:
    reference = analysis.reference_of(configuration)
    cost = operations(configuration.prefill_flops)
    if reference is not None and reference is not configuration:
        cost += f"<small>{configuration.prefill_flops / reference.prefill_flops:.2f} times</small>"
    difference = "<td>reference</td>" if configuration.reference else "<td>no common seed with a reference</td>"
    if configuration.difference is not None:
        difference = bars.cell(configuration.difference)
    seeds = f"{len(configuration.columns)} of {len(configuration.wanted)}"
    lacking = len(configuration.columns) < len(configuration.wanted)
    cells = [
        f"<th scope=row>{escape(configuration.label)}</th>",
        f"<td>{configuration.tokens}</td>",
        f"<td>{_value(configuration.accuracy)}</td>",
        difference,
        f"<td class={'lacking' if lacking else 'all'}>{seeds if lacking else len(configuration.columns)}</td>",
        f"<td>{cost}</td>",
        f"<td>{duration(configuration.seconds)}</td>",
        f"<td>{memory(configuration.peak_memory_bytes)}</td>",
    ]
    return f"<tr{' class=reference' * configuration.reference}>{''.join(cells)}</tr>"


def _changes(changes: Sequence[Change]) -> str:
    if not changes:
        return ""
    bars = _Bars([change.difference for change in changes])
    rows = []
    for previous, change in zip([None, *changes], changes, strict=False):
        border = " class=group" if previous is not None and previous.key != change.key else ""
        rows.append(
            f"<tr{border}><th scope=row>{escape(change.key)}: {escape(change.before)} → {escape(change.after)}</th>"
            f"<td>{escape(change.at)}</td>{bars.cell(change.difference)}</tr>"
        )
    return (
        "<section><h2>One change at a time</h2><p>What changing a single value brings, all else equal and paired. "
        f"Bold: the interval leaves out 0, as about one row in twenty would by chance alone. {bars.note}</p>"
        + _table(["Change", "All else", "Difference, points"], rows, "changes")
        + "</section>"
    )


def _kinds(analysis: Analysis, figure: str) -> str:
    if not figure:
        return ""
    rows = [
        f"<tr{' class=reference' * c.reference}><th scope=row>{escape(c.label)}</th>"
        + "".join(f"<td>{_value(c.by_kind[kind])}</td>" for kind in analysis.kinds)
        + "</tr>"
        for c in analysis.configurations
    ]
    table = _table(["Configuration", *analysis.kinds], rows, "kinds")
    numbers = f"<details><summary>As numbers</summary>{table}</details>"
    return f"<section><h2>By kind of question</h2>{figure}{numbers}</section>"


def _meaning(analysis: Analysis) -> str:
    """What the interval says and what it does not."""
    if not analysis.configurations:
        return ""
    fewest, most = (f(len(c.columns) for c in analysis.configurations) for f in (min, max))
    text = [_INTERVAL]
    if most == 1:
        text.append("There is one seed only: nothing here says how much another would change.")
    elif fewest < 5:
        text.append(_FEW_SEEDS)
    return "<section><h2>What the intervals mean</h2>" + "".join(f"<p>{line}</p>" for line in text) + "</section>"


def _accuracy_head(analysis: Analysis) -> str:
    return f"{analysis.split.capitalize()} accuracy, %"


def _all_runs(analysis: Analysis) -> str:
    rows = []
    for measured in analysis.runs:
        row = measured.row()
        accuracy = "" if measured.accuracy is None else _value(measured.accuracy)
        seconds = "" if row["seconds"] is None else duration(row["seconds"])
        rows.append(
            f"<tr><th scope=row><code>{escape(row['run'])}</code></th><td>{row['seed']}</td><td>{row['status']}</td>"
            f"<td>{accuracy}</td><td>{seconds}</td><td><code>{escape(row['mlflow_run_id'] or '')}</code></td></tr>"
        )
    table = _table(["Run", "Seed", "Status", _accuracy_head(analysis), "Time", "MLflow run"], rows, "runs")
    return f"<section><h2>All runs</h2><details><summary>{len(rows)} runs</summary>{table}</details></section>"


def _reproduce(analysis: Analysis) -> str:
    sweep = analysis.sweep
    commit, _, changes = map(escape, sweep.commit.partition("+"))
    warning = " with changes that were not committed" if changes else ""
    version, command = escape(sweep.code_version[:12]), escape(shlex.join(sweep.arguments))
    return (
        f"<section><h2>To reproduce</h2><pre>git checkout {commit}\nllava-mini sweep {command}</pre>"
        f"<p>Commit <code>{commit}</code>{warning}, code version <code>{version}</code>, "
        f"last begun {escape(sweep.started)}. Every run's numbers are in results.csv and results.json.</p></section>"
    )


class _Bars:
    """Differences as text and as bars on one scale that holds 0."""

    def __init__(self, differences: Iterable[Difference]) -> None:
        ends = [0.0, *(end for difference in differences for end in (difference.low, difference.high))]
        beyond = any(abs(end) > _SCALE_POINTS for end in ends)
        self.note = f"A triangle lies beyond the scale of {100 * _SCALE_POINTS:.0f} points." if beyond else ""
        self._low, self._high = max(min(ends), -_SCALE_POINTS), min(max(ends), _SCALE_POINTS)

    def cell(self, difference: Difference) -> str:
        """A table cell."""
        low, value, high, zero = map(self._place, (difference.low, difference.value, difference.high, 0.0))
        look = "none" if not difference.clear else "more" if difference.value > 0 else "less"
        beyond = " beyond" * (not self._low <= difference.value <= self._high)
        return (
            f'<td class="difference {look}"><span class="track"><i class="zero" style="left:{zero:.1f}%"></i>'
            f'<i class="range" style="left:{low:.1f}%;width:{high - low:.1f}%"></i>'
            f'<i class="dot{beyond}" style="left:{value:.1f}%"></i></span>'
            f"<span class=number>{points(difference.value)}<small>{points_range(difference)}</small></span></td>"
        )

    def _place(self, value: float) -> float:
        """Percent of the bar's width."""
        share = (value - self._low) / max(self._high - self._low, 1e-9)
        return 100 * min(max(share, 0.0), 1.0)


def _value(interval: Interval) -> str:
    return f"{percent(interval.value)}<small>{percent_range(interval)}</small>"


def _table(heads: Sequence[str], rows: Sequence[str], name: str) -> str:
    head = "".join(f"<th scope=col>{escape(text)}</th>" for text in heads)
    body = "".join(rows)
    return (
        f'<div class="scroll"><table class="{name}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )
