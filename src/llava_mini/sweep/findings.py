"""The few sentences with which a report begins, computed from what was measured."""

from __future__ import annotations

from llava_mini.sweep.analysis import Analysis
from llava_mini.sweep.configurations import Configuration
from llava_mini.sweep.statistics import Difference
from llava_mini.sweep.text import percent, percent_range, points_range, tokens

# "Within a few points of uncompressed" is what a compressor is to reach.
FEW_POINTS = 0.03


def headline(analysis: Analysis) -> list[str]:
    """Sentences on the configuration that matters most, and what it is without fusion and without tokens."""
    if not analysis.configurations:
        counts = {state: len(analysis.of_state(state)) for state in ("failed", "interrupted")}
        return [f"No run is finished: {counts['failed']} failed, {counts['interrupted']} did not get to their end."]
    chosen = _chosen(analysis)
    if chosen is None:
        best = analysis.configurations[0]
        share = f"{percent(best.accuracy.value)} % of the {analysis.split} questions"
        return [f"{_named(best)} answers {share}, the most of this sweep."]
    return [_first(analysis, chosen), *_without_fusion(analysis, chosen), *_without_tokens(analysis, chosen)]


def _chosen(analysis: Analysis) -> Configuration | None:
    """The cheapest compressed configuration within a few points of its reference, else the most accurate one."""
    compared = [
        c for c in analysis.configurations if c.difference is not None and 0 < c.tokens < _most_tokens(analysis)
    ]
    near = [c for c in compared if c.difference is not None and c.difference.value >= -FEW_POINTS]
    if near:
        return min(near, key=lambda c: (c.prefill_flops, -c.accuracy.value))
    return max(compared, key=lambda c: c.accuracy.value, default=None)


def _most_tokens(analysis: Analysis) -> int:
    return max(c.tokens for c in analysis.configurations)


def _first(analysis: Analysis, chosen: Configuration) -> str:
    reference = analysis.reference_of(chosen)
    assert reference is not None and chosen.difference is not None  # noqa: PT018  by how it was chosen
    saving = reference.prefill_flops / chosen.prefill_flops
    cost = f"{saving:.1f} times fewer prefill FLOPs" if saving >= 1.05 else f"{1 / saving:.2f} times the prefill FLOPs"
    return (
        f"{_named(chosen)} answers {percent(chosen.accuracy.value)} % of the {analysis.split} questions "
        f"from {tokens(chosen.tokens)} instead of {reference.tokens}, {compared(chosen.difference)} "
        f"the uncompressed reference ({percent(reference.accuracy.value)} %), with {cost}."
    )


def _named(configuration: Configuration) -> str:
    """`query (C=2, 4 pre-fusion layers)`."""
    layers = configuration.n_fusion
    parts = [] if configuration.C is None else [f"C={configuration.C}"]
    parts.append(f"{layers or 'no'} pre-fusion layer{'' if layers == 1 else 's'}")
    parts += [f"{key}={value}" for key, value in configuration.values.items() if value is not None]
    return f"{configuration.compressor} ({', '.join(parts)})"


def compared(difference: Difference) -> str:
    """`1.2 points below (95 % interval −2.1 to −0.3)`."""
    size, interval = percent(abs(difference.value)), f"95 % interval {points_range(difference)}"
    if size == "0.0":
        return f"level with ({interval})"
    direction = "above" if difference.value > 0 else "below"
    return f"{size} point{'' if size == '1.0' else 's'} {direction} ({interval})"


def _without_fusion(analysis: Analysis, chosen: Configuration) -> list[str]:
    wanted = {**chosen.attributes(), "N": 0}
    found = [c for c in analysis.configurations if chosen.n_fusion and not c.reference and c.attributes() == wanted]
    return [_other("Without pre-fusion it answers", c) for c in found[:1]]


def _without_tokens(analysis: Analysis, chosen: Configuration) -> list[str]:
    found = [
        c
        for c in analysis.configurations
        if c.tokens == 0 and c.n_fusion == chosen.n_fusion and c.values == chosen.values
    ]
    return [_other(f"The control without any vision token, {_named(c)}, answers", c) for c in found[:1]]


def _other(beginning: str, configuration: Configuration) -> str:
    value = f"{beginning} {percent(configuration.accuracy.value)} %"
    if configuration.difference is None:
        return f"{value} ({percent_range(configuration.accuracy)})."
    return f"{value}, {compared(configuration.difference)} the reference."
