"""Wording of configurations and differences in the report's sentences."""

from __future__ import annotations

from collections.abc import Sequence

from llava_mini.sweep.analysis import Analysis
from llava_mini.sweep.configurations import Configuration, label_of
from llava_mini.sweep.statistics import Difference
from llava_mini.sweep.text import on_group, points, points_range
from llava_mini.sweep.training import budget

_LISTED = 6
_HOW = "(points, 95 % interval)"


def name(analysis: Analysis, configuration: Configuration, without: Sequence[str] = ()) -> str:
    """Name such as `query C=1 N=4`, without values that all but the references have in common or that `without` names.

    If another configuration has the references' compressor, the values that distinguish it from them are not left out.
    """
    own = configuration.attributes()
    compressors = {c.compressor for c in analysis.configurations if c.reference}
    alike = any(c.compressor in compressors for c in analysis.configurations if not c.reference)
    others = [c.attributes() for c in analysis.configurations if alike or not c.reference]
    same = {key for key in own if key != "compressor" and len({repr(other[key]) for other in others}) < 2}
    return label_of({key: value for key, value in own.items() if key not in {*same, *without}}).replace(", ", " ")


def listed(names: Sequence[str]) -> str:
    """Text with the first names: `a, b and 3 more`."""
    shown = ", ".join(names[:_LISTED])
    return shown if len(names) <= _LISTED else f"{shown} and {len(names) - _LISTED} more"


def with_intervals(analysis: Analysis, found: Sequence[tuple[Configuration, Difference]]) -> str:
    """Text with every configuration and its difference; if there are many, with their number and range."""
    if len(found) > _LISTED:
        return f"{len(found)} configurations ({span([difference for _, difference in found])})"
    named = [f"{name(analysis, c)} {points(difference.value)} ({points_range(difference)})" for c, difference in found]
    return f"{_HOW}: {', '.join(named)}"


def with_interval(difference: Difference) -> str:
    """Text such as `−1.2 points, 95 % interval −2.1 to −0.3`."""
    return f"{points(difference.value)} points, 95 % interval {points_range(difference)}"


def span(differences: Sequence[Difference]) -> str:
    """Range of differences as text: `−1.2 to +0.3 points`."""
    values = [difference.value for difference in differences]
    return f"{points(min(values))} to {points(max(values))} points"


def step(difference: Difference) -> str:
    """Difference as text: `+12.1 points (clear)`."""
    return f"{points(difference.value)} points ({'clear' if difference.clear else 'not clear'})"


def where(
    analysis: Analysis, group: str, reference: Configuration | None, configurations: Sequence[Configuration]
) -> str:
    """Phrase like `with max_steps=300, after 300 steps from a common start, on dense answers`, in the parts that apply.

    The setting is the reference's, if there is one. The budget is named unless all `configurations`, which the sentence
    is about, had converged.
    """
    setting = "" if reference is None else label_of(reference.setting)
    parts = [f"with {setting}"] if setting else []
    if not all(c.training.converged for c in configurations):
        parts.append(budget(c.training for c in configurations))
    return ", ".join([*parts, *filter(None, [on_group(group, analysis.groups).strip()])])


def clauses(texts: Sequence[str]) -> str:
    """Join clauses by semicolons; only the first explains how differences are written."""
    head, how, rest = "; ".join(texts).partition(_HOW)
    return head + how + rest.replace(f" {_HOW}", "")


def sentence(*parts: str) -> str:
    """Join the parts that are not empty, with a capital letter and a period."""
    text = " ".join(filter(None, parts))
    return f"{text[:1].upper()}{text[1:]}."
