"""Tables of the HTML page. Every text that comes from a config, a log or a folder's name is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from llava_mini.sweep.analysis import Analysis
from llava_mini.sweep.changes import Change
from llava_mini.sweep.configurations import Configuration
from llava_mini.sweep.measured import Measured
from llava_mini.sweep.statistics import FEWEST_SEEDS, Difference, Estimate
from llava_mini.sweep.text import (
    duration,
    group_head,
    memory,
    operations,
    percent,
    percent_range,
    points,
    points_range,
)

# Wider than a difference that matters between good configurations, narrower than the loss of a useless one.
_SCALE_POINTS = 0.15


def configurations_table(analysis: Analysis) -> str:
    """Table of word accuracy by group of question kinds, its difference to the reference, and the costs."""
    bars = Bars(analysis.to_reference())
    heads = ["Configuration", "Tokens"]
    for group in analysis.groups:
        head = group_head(group, analysis.groups)
        heads += [f"{head}, %", f"to uncompressed, points{_made(analysis.to_reference(group))}"]
    rows = [_configuration(c, analysis, bars) for c in analysis.configurations]
    return (
        f"<p>Share of the answers' words that are right, the mean over kinds, on {escape(analysis.split)} data; N is "
        f"the number of pre-fusion layers. {_how_to_read(analysis.to_reference())} {bars.note}</p>"
        + table([*heads, "Seeds", "Prefill", "Time", "Memory"], rows, "configurations")
    )


def changes_tables(analysis: Analysis) -> str:
    """Tables of the effects of single changes: one for each value that was changed."""
    everything = [difference for change in analysis.changes for difference in change.differences.values()]
    bars = Bars(everything)
    tables = []
    for key in dict.fromkeys(change.key for change in analysis.changes):
        changes = [change for change in analysis.changes if change.key == key]
        made = [[c.differences[group] for c in changes if group in c.differences] for group in analysis.groups]
        named = [f"{group_head(group, analysis.groups)}, points" for group in analysis.groups]
        heads = [f"{head}{_made(column)}" for head, column in zip(named, made, strict=True)]
        rows = [_change(change, analysis.groups, bars) for change in changes]
        tables.append(table([f"{key} from → to", "All else", *heads], rows, "changes"))
    note = f"What changing a single value brings, all else equal. {_how_to_read(everything)} {bars.note}"
    return f"<p>{note}</p>" + "".join(tables)


def kinds_tables(analysis: Analysis) -> str:
    """Tables of word accuracy, exact match and nats per word for each kind of question."""
    words = [{kind: value(c.by_kind[kind]) for kind in c.by_kind} for c in analysis.configurations]
    exact = [{kind: percent(share) for kind, share in c.exact_by_kind.items()} for c in analysis.configurations]
    nats = [{kind: f"{nll:.2f}" for kind, nll in c.nll_by_kind.items()} for c in analysis.configurations]
    named = (
        ("Words right, %", words),
        ("Exact match: the whole answer right, %", exact),
        ("Negative log-likelihood, nats per word", nats),
    )
    return "".join(
        f"<details><summary>{title}</summary>{_by_kind(analysis, cells)}</details>" for title, cells in named
    )


def runs_table(analysis: Analysis) -> str:
    """Table of all runs, finished or not."""
    heads = ["Run", "Seed", "Status", *(f"{group_head(group, analysis.groups)}, %" for group in analysis.groups)]
    heads += ["Exact match, %", "Gain in the last third, points", "Converged", "Time", "MLflow run"]
    return table(heads, [_run(measured, analysis.groups) for measured in analysis.runs], "runs")


def table(heads: Sequence[str], rows: Sequence[str], name: str) -> str:
    """HTML table that scrolls sideways if it is too wide."""
    head = "".join(f"<th scope=col>{escape(text)}</th>" for text in heads)
    return (
        f'<div class="scroll"><table class="{name}"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody>'
        "</table></div>"
    )


def value(estimate: Estimate) -> str:
    """HTML of a share in percent with its interval; gray if there are too few seeds for an interval."""
    if estimate.interval is None:
        return f"<span class=few>{percent(estimate.value)}</span>"
    return f"{percent(estimate.value)}<small>{percent_range(estimate)}</small>"


class Bars:
    """Differences as text and as bars on one scale that includes 0.

    Args:
        differences: All differences that are to be shown.
    """

    def __init__(self, differences: Iterable[Difference]) -> None:
        intervals = [difference.interval for difference in differences if difference.interval is not None]
        ends = [0.0, *(end for interval in intervals for end in interval)]
        beyond = any(abs(end) > _SCALE_POINTS for end in ends)
        self.note = f"A triangle is beyond the scale of {100 * _SCALE_POINTS:.0f} points." if beyond else ""
        self._low, self._high = max(min(ends), -_SCALE_POINTS), min(max(ends), _SCALE_POINTS)

    def cell(self, difference: Difference) -> str:
        """Table cell of a difference; gray and without a bar if there are too few seeds for an interval."""
        if difference.interval is None:
            return f'<td class="difference few">{points(difference.value)}</td>'
        low, place, high, zero = map(self._place, (difference.interval[0], difference.value, difference.interval[1], 0))
        look = "none" if not difference.clear else "more" if difference.value > 0 else "less"
        beyond = "" if self._low <= difference.value <= self._high else " beyond"
        side = " left" if difference.value < 0 else " right"
        return (
            f'<td class="difference {look}"><span class="track"><i class="zero" style="left:{zero:.1f}%"></i>'
            f'<i class="range" style="left:{low:.1f}%;width:{high - low:.1f}%"></i>'
            f'<i class="dot{beyond}{side if beyond else ""}" style="left:{place:.1f}%"></i></span>'
            f"<span class=number>{points(difference.value)}<small>{points_range(difference)}</small></span></td>"
        )

    def _place(self, difference: float) -> float:
        """Position of a difference in percent of the bar's width."""
        share = (difference - self._low) / max(self._high - self._low, 1e-9)
        return 100 * min(max(share, 0.0), 1.0)


def _made(column: Sequence[Difference]) -> str:
    """Text ` (5 comparisons)`: the number that a p-value is corrected for."""
    count = sum(difference.p is not None for difference in column)
    return f" ({count} comparison{'' if count == 1 else 's'})" if count else ""


def _how_to_read(differences: Sequence[Difference]) -> str:
    """Text on what bold and gray mean, if they occur."""
    text = []
    if any(difference.p is not None for difference in differences):
        text.append(
            "Differences are paired by seed and scene. Bold: clear after Holm's correction for all comparisons of its "
            "column. Intervals are 95 %, each by itself, not corrected."
        )
    if any(difference.p is None for difference in differences):
        text.append(f"Gray: fewer than {FEWEST_SEEDS} common seeds, which show no difference.")
    return " ".join(text)


def _configuration(configuration: Configuration, analysis: Analysis, bars: Bars) -> str:
    reference = analysis.reference_of(configuration)
    cost = operations(configuration.prefill_flops)
    if reference is not None and reference is not configuration:
        cost += f"<small>{configuration.prefill_flops / reference.prefill_flops:.2f} times</small>"
    mark = configuration.training.mark()
    marked = f'<span class="mark">{escape(mark)}</span>' if mark else ""
    cells = [f"<th scope=row>{escape(configuration.label)}{marked}</th>", f"<td>{configuration.tokens}</td>"]
    for group in analysis.groups:
        score = configuration.scores.get(group)
        cells.append("<td></td>" if score is None else f"<td>{value(score.mean)}</td>")
        if score is not None and score.difference is not None:
            cells.append(bars.cell(score.difference))
        else:
            cells.append("<td>reference</td>" if configuration.reference else "<td>not compared</td>")
    lacking = len(configuration.columns) < len(configuration.wanted)
    seeds = f"{len(configuration.columns)} of {len(configuration.wanted)}" if lacking else len(configuration.columns)
    cells += [
        f"<td class={'lacking' if lacking else 'all'}>{seeds}</td>",
        f"<td>{cost}</td>",
        f"<td>{duration(configuration.seconds)}</td>",
        f"<td>{memory(configuration.peak_memory_bytes)}</td>",
    ]
    return f"<tr{' class=reference' * configuration.reference}>{''.join(cells)}</tr>"


def _change(change: Change, groups: Sequence[str], bars: Bars) -> str:
    cells = [bars.cell(change.differences[group]) if group in change.differences else "<td></td>" for group in groups]
    return (
        f"<tr><th scope=row>{escape(change.before)} → {escape(change.after)}</th>"
        f"<td>{escape(change.at)}</td>{''.join(cells)}</tr>"
    )


def _by_kind(analysis: Analysis, cells: Sequence[Mapping[str, str]]) -> str:
    rows = [
        f"<tr{' class=reference' * c.reference}><th scope=row>{escape(c.label)}</th>"
        + "".join(f"<td>{own.get(kind, '')}</td>" for kind in analysis.kinds)
        + "</tr>"
        for c, own in zip(analysis.configurations, cells, strict=True)
    ]
    return table(["Configuration", *analysis.kinds], rows, "kinds")


def _run(measured: Measured, groups: Sequence[str]) -> str:
    row = measured.row()
    words, gained, noise = row["word_accuracy"] or {}, row["gained_last_third"], row["gain_noise"]
    gain = "" if gained is None else points(gained) + ("" if noise is None else f"<small>± {100 * noise:.1f}</small>")
    converged = {None: "", True: "yes", False: "no"}[row["converged"]]
    cells = [
        f"<code>{escape(row['run'])}</code>", row["seed"], row["status"],
        *(percent(words[group]) if group in words else "" for group in groups),
        "" if measured.accuracy is None else value(measured.accuracy), gain, converged,
        "" if row["seconds"] is None else duration(row["seconds"]),
        f"<code>{escape(row['mlflow_run_id'] or '')}</code>",
    ]  # fmt: skip
    first, *others = cells
    return f"<tr><th scope=row>{first}</th>{''.join(f'<td>{cell}</td>' for cell in others)}</tr>"
