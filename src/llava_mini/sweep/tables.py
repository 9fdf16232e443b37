"""Tables of the HTML page, by the templates next to it, which escape every text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from llava_mini.sweep.analysis import Analysis
from llava_mini.sweep.statistics import FEWEST_SEEDS, Difference
from llava_mini.sweep.text import duration, group_head, operations, percent, percent_range, points, points_range
from llava_mini.units import size_text

# Wider than a difference that matters between good configurations, narrower than the loss of a useless one.
_SCALE_POINTS = 0.15
TEMPLATES = Environment(
    loader=PackageLoader("llava_mini.sweep"), autoescape=True, undefined=StrictUndefined, trim_blocks=False
)
for _as_text in (duration, operations, percent, percent_range, points, points_range, size_text):
    TEMPLATES.globals[_as_text.__name__] = _as_text


def configurations_table(analysis: Analysis) -> Markup:
    """Table of word accuracy by group of question kinds, its difference to the reference, and the costs."""
    heads = ["Configuration", "Tokens"]
    for group in analysis.groups:
        head = group_head(group, analysis.groups)
        heads += [f"{head}, %", f"to uncompressed, points{_made(analysis.to_reference(group))}"]
    heads += ["Seeds", "Prefill", "Time", "Memory"]
    differences = analysis.to_reference()
    return _table("configurations", analysis, heads, _how_to_read(differences), Bars(differences))


def changes_tables(analysis: Analysis) -> Markup:
    """Tables of the effects of single changes: one for each value that was changed."""
    everything = [difference for change in analysis.changes for difference in change.differences.values()]
    tables = []
    for key in dict.fromkeys(change.key for change in analysis.changes):
        changes = [change for change in analysis.changes if change.key == key]
        made = [[c.differences[group] for c in changes if group in c.differences] for group in analysis.groups]
        named = [f"{group_head(group, analysis.groups)}, points" for group in analysis.groups]
        heads = [f"{head}{_made(column)}" for head, column in zip(named, made, strict=True)]
        tables.append(([f"{key} from → to", "All else", *heads], changes))
    return _table("changes", tables, analysis.groups, _how_to_read(everything), Bars(everything))


def kinds_tables(analysis: Analysis) -> Markup:
    """Tables of word accuracy, exact match and nats per word for each kind of question."""
    return _table("kinds", analysis)


def runs_table(analysis: Analysis) -> Markup:
    """Table of all runs, finished or not."""
    heads = ["Run", "Seed", "Status", *(f"{group_head(group, analysis.groups)}, %" for group in analysis.groups)]
    heads += ["Exact match, %", "Gain in the last third, points", "Converged", "Time", "MLflow run"]
    return _table("runs", analysis, heads)


def _table(name: str, *arguments: object) -> Markup:
    table: Markup = getattr(TEMPLATES.get_template("tables.jinja").module, name)(*arguments)
    return table


@dataclass(frozen=True)
class Bar:
    """Bar of a difference: places in percent of its width, and classes of the style sheet."""

    low: float
    place: float
    high: float
    zero: float
    look: str
    beyond: str


class Bars:
    """Differences as bars on one scale that includes 0."""

    def __init__(self, differences: Iterable[Difference]) -> None:
        intervals = [difference.interval for difference in differences if difference.interval is not None]
        ends = [0.0, *(end for interval in intervals for end in interval)]
        beyond = any(abs(end) > _SCALE_POINTS for end in ends)
        self.note = f"A triangle is beyond the scale of {100 * _SCALE_POINTS:.0f} points." if beyond else ""
        self._low, self._high = max(min(ends), -_SCALE_POINTS), min(max(ends), _SCALE_POINTS)

    def bar(self, difference: Difference) -> Bar:
        """Return the bar of a difference that has an interval."""
        assert difference.interval is not None
        low, place, high, zero = map(self._place, (difference.interval[0], difference.value, difference.interval[1], 0))
        look = "none" if not difference.clear else "more" if difference.value > 0 else "less"
        inside = self._low <= difference.value <= self._high
        beyond = "" if inside else f" beyond {'left' if difference.value < 0 else 'right'}"
        return Bar(low, place, high, zero, look, beyond)

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
