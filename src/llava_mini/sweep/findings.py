"""The first sentences of a report, computed from the measurements.

They say what compression costs against the uncompressed reference, whether more tokens help and what the control
without tokens reaches, for each group of question kinds. A difference is reported as one only if it is clear
(`Difference.clear`). Figures of runs that were still improving are reported together with their budget of steps. With
too few seeds nothing is compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from llava_mini.sweep.analysis import Analysis
from llava_mini.sweep.changes import Change
from llava_mini.sweep.configurations import Configuration, label_of
from llava_mini.sweep.seed_spread import few_seeds
from llava_mini.sweep.statistics import FEWEST_SEEDS, Difference
from llava_mini.sweep.text import percent
from llava_mini.sweep.training import budget
from llava_mini.sweep.wording import clauses, listed, name, sentence, span, step, where, with_interval, with_intervals

# A reference this close to 100 %, or to all other configurations, leaves no room for a difference.
CEILING = 0.01
# If there are more settings or series than this, they are counted instead of named.
_SETTINGS, _SERIES = 3, 3


def headline(analysis: Analysis) -> list[str]:
    """Return the report's first sentences, for the terminal, the page and MLflow."""
    if not analysis.configurations:
        counts = {state: len(analysis.of_state(state)) for state in ("failed", "interrupted")}
        return [f"No run is finished: {counts['failed']} failed, {counts['interrupted']} did not get to their end."]
    if not analysis.conclusive:
        ceilings = [_ceiling(analysis, r, group) for group in analysis.groups for r in _references(analysis, group)]
        most = max(len(c.columns) for c in analysis.configurations)
        few = few_seeds(analysis.common_seeds, analysis.groups, in_common=most > analysis.common_seeds)
        return [few, *filter(None, ceilings), _training(analysis)]
    sentences = []
    if lacking := _without_reference(analysis):
        sentences.append(lacking)
    for group in analysis.groups:
        sentences += _of_group(analysis, group)
    return [*sentences, _training(analysis)]


def _without_reference(analysis: Analysis) -> str:
    """Sentence on settings that are not compared because no reference is finished; empty if all have one."""
    lacking = [label_of(c.setting) for c in analysis.configurations if analysis.reference_of(c) is None]
    if not lacking:
        return ""
    if not any(c.reference for c in analysis.configurations):
        return "No run of the uncompressed reference is finished, so nothing is compared with it."
    places = "; ".join(dict.fromkeys(lacking))
    return f"No run of the uncompressed reference is finished with {places}, so nothing is compared with it there."


def at_ceiling(analysis: Analysis, reference: Configuration, group: str) -> bool:
    """Whether the reference is within a percentage point of 100 %, or of every other configuration of its setting."""
    return reference.scores[group].mean.value >= 1 - CEILING or _nothing_differs(analysis, reference, group)


def _references(analysis: Analysis, group: str) -> list[Configuration]:
    return [c for c in analysis.configurations if c.reference and group in c.scores]


def _others(analysis: Analysis, reference: Configuration, group: str) -> list[Configuration]:
    """Other configurations of the reference's setting that have a score in the group."""
    same = [c for c in analysis.configurations if c.setting == reference.setting and c is not reference]
    return [c for c in same if group in c.scores]


def _of_group(analysis: Analysis, group: str) -> list[str]:
    """Sentences on one group; for a second group, only on how configurations compare with the reference."""
    references, first = _references(analysis, group), group == analysis.groups[0]
    said = []
    if len(references) <= (_SETTINGS if first else 1):
        for reference in references:
            said += _of_setting(analysis, reference, group)
    else:
        said += [*filter(None, (_ceiling(analysis, r, group) for r in references)), _counted(analysis, group)]
    if first and not (references and all(_nothing_differs(analysis, r, group) for r in references)):
        said += [*_controls(analysis, group), *_more_tokens(analysis, group)]
    return said


def _nothing_differs(analysis: Analysis, reference: Configuration, group: str) -> bool:
    """Whether every other configuration of the setting is within a percentage point of the reference."""
    value = reference.scores[group].mean.value
    others = [c.scores[group].mean.value for c in _others(analysis, reference, group)]
    return bool(others) and all(abs(other - value) <= CEILING for other in others)


def _ceiling(analysis: Analysis, reference: Configuration, group: str) -> str:
    """Sentence saying that a group cannot tell configurations apart; empty if it can."""
    if not at_ceiling(analysis, reference, group):
        return ""
    value = percent(reference.scores[group].mean.value)
    reason = f"the uncompressed reference is at the ceiling ({value} %)"
    if _nothing_differs(analysis, reference, group):
        reason = f"all are within {100 * CEILING:.0f} point of the uncompressed reference ({value} %)"
    place = where(analysis, group, reference, [reference, *_others(analysis, reference, group)])
    return sentence(place, f"this sweep cannot tell configurations apart: {reason}")


def _of_setting(analysis: Analysis, reference: Configuration, group: str) -> list[str]:
    """Sentences on how the configurations of one setting compare with their reference in one group."""
    others = _others(analysis, reference, group)
    if group == analysis.groups[0]:
        others = [c for c in others if c.tokens > 0]  # controls get a separate sentence
    ceiling = _ceiling(analysis, reference, group)
    verdicts = _verdicts(analysis, others, group, at_the_ceiling=bool(ceiling))
    if ceiling:
        return [ceiling, *([sentence("all the same", clauses(verdicts))] if verdicts else [])]
    value = f"the uncompressed reference gets {percent(reference.scores[group].mean.value)} % of the words right"
    place = where(analysis, group, reference, [reference, *others])
    return [sentence(place, clauses([value, *verdicts]))]


def _verdicts(
    analysis: Analysis, configurations: Sequence[Configuration], group: str, at_the_ceiling: bool
) -> list[str]:
    """Clauses naming configurations clearly below the reference, clearly above it, level with it, or not compared."""
    found = [(c, c.scores[group].difference) for c in configurations]
    known = [(c, d) for c, d in found if d is not None and d.p is not None]
    below = [(c, d) for c, d in known if d.clear and d.value < 0]
    above = [(c, d) for c, d in known if d.clear and d.value > 0]
    level = [(c, d) for c, d in known if not d.clear]
    lacking = [name(analysis, c) for c, d in found if d is None or d.p is None]
    texts = [f"clearly below it {with_intervals(analysis, below)}"] if below else []
    if above:
        texts.append(f"clearly above it {with_intervals(analysis, above)}")
    if level and not at_the_ceiling:
        texts.append(_level(analysis, level, alone=len(level) == len(found)))
    if lacking:
        same = " with the same questions" if analysis.test_sets > 1 else ""
        texts.append(f"not compared, for fewer than {FEWEST_SEEDS} common seeds{same}: {listed(lacking)}")
    return texts


def _level(analysis: Analysis, level: Sequence[tuple[Configuration, Difference]], alone: bool) -> str:
    """Clause on configurations that are not clearly different from the reference; `alone` if all are like that."""
    if alone and len(level) > 2:
        control = ", the control without tokens among them," if any(c.tokens == 0 for c, _ in level) else ""
        return f"none of the {len(level)} others{control} can be told from it ({span([d for _, d in level])})"
    return f"cannot be told from it {with_intervals(analysis, level)}"


def _counted(analysis: Analysis, group: str) -> str:
    """Sentence that counts the comparisons if there are many references."""
    known = [d for d in analysis.to_reference(group) if d.p is not None]
    below, above = _clear(known, -1), _clear(known, +1)
    return sentence(
        where(analysis, group, None, analysis.configurations),
        f"{below} of {len(known)} comparisons find a configuration clearly below the uncompressed reference of its "
        f"setting and {above} clearly above it; {len(known) - below - above} cannot tell them apart",
    )


def _clear(differences: Sequence[Difference], sign: int) -> int:
    """Number of differences that are clear and have this sign."""
    return sum(d.clear and d.value * sign > 0 for d in differences)


def _controls(analysis: Analysis, group: str) -> list[str]:
    """Sentences on the score of the fused instruction text without vision tokens, and on what a first token adds."""
    controls = [c for c in analysis.configurations if c.tokens == 0 and group in c.scores]
    if len(controls) == 1:
        return [_control(analysis, controls[0], group)]
    if not controls:
        return []
    values = [f"{name(analysis, c)} {percent(c.scores[group].mean.value)} %" for c in controls]
    known = [d for d in (c.scores[group].difference for c in controls) if d is not None and d.p is not None]
    references = [r for r in map(analysis.reference_of, controls) if known and r is not None]
    within = _within_budget([*controls, *references])
    text = f"without any vision token{within}, of the words are right: {listed(values)}"
    if known:
        text += f"; {_clear(known, -1)} of these {len(known)} are clearly below the reference, {_clear(known, 1)} above"
    return [sentence(text)]


def _control(analysis: Analysis, control: Configuration, group: str) -> str:
    """Sentence on the only control, and on what a first token adds to it."""
    score = control.scores[group]
    steps = [c for c in analysis.changes if c.key == "C" and c.lower is control and group in c.differences]
    added = [(c.upper, c.differences[group]) for c in steps if c.differences[group].p is not None]
    text = f"without any vision token ({name(analysis, control)}) {percent(score.mean.value)} % of the words are right"
    known = score.difference is not None and score.difference.p is not None
    reference = analysis.reference_of(control) if known else None
    text += _within_budget([control, *filter(None, [reference]), *(upper for upper, _ in added)])
    if score.difference is not None and score.difference.p is not None:
        verdict = "clearly below" if score.difference.value < 0 else "clearly above"
        verdict = verdict if score.difference.clear else "not to be told from"
        text += f", {verdict} the reference ({with_interval(score.difference)})"
    more = [f"from there to {name(analysis, upper)} {step(difference)}" for upper, difference in added[:_SERIES]]
    return sentence("; ".join([text, *more]))


def _more_tokens(analysis: Analysis, group: str) -> list[str]:
    """Sentences on whether more tokens help: every increase to the next C, series by series."""
    steps = [c for c in analysis.changes if c.key == "C" and c.lower.tokens > 0 and group in c.differences]
    steps = [c for c in steps if c.differences[group].p is not None]
    series = [list(own) for _, own in groupby(steps, key=lambda c: c.lower.series)]
    if len(series) <= _SERIES:
        return [_series(analysis, own, group) for own in series]
    differences = [c.differences[group] for c in steps]
    up, down = _clear(differences, +1), _clear(differences, -1)
    return [
        sentence(
            where(analysis, group, None, [each for c in steps for each in (c.lower, c.upper)]),
            f"{up} of {len(steps)} steps to more tokens clearly raise word accuracy, {down} clearly lower it; "
            f"of {len(steps) - up - down} it cannot be told",
        )
    ]


def _series(analysis: Analysis, steps: Sequence[Change], group: str) -> str:
    differences = [c.differences[group] for c in steps]
    up, down = _clear(differences, +1), _clear(differences, -1)
    who = name(analysis, steps[0].lower, without=("C",))
    begin = f"more tokens help {who}" if up else f"whether more tokens help {who} cannot be told"
    if down:
        begin = f"more tokens both raise and lower {who}" if up else f"more tokens lower {who}"
    within = _within_budget([each for c in steps for each in (c.lower, c.upper)])
    values = [f"C={c.before} to {c.after} {step(difference)}" for c, difference in zip(steps, differences, strict=True)]
    return sentence(f"{begin}{within}: {', '.join(values)}")


def _within_budget(configurations: Sequence[Configuration]) -> str:
    return "" if all(c.training.converged for c in configurations) else " within this budget"


def _training(analysis: Analysis) -> str:
    """Sentence naming the configurations that were still improving, whose figures are those of a budget of steps."""
    marked = [c for c in analysis.configurations if not c.training.converged]
    if not marked:
        return "No run is marked as still improving over the last third of its steps."
    names = listed([f"{name(analysis, c)} ({c.training.mark()})" for c in marked])
    length = budget(c.training for c in marked).removeprefix("after ")
    return f"These are figures of a budget ({length}), not of what a configuration can do: {names}."
