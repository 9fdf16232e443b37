"""Effects of single changes: pairs of configurations of a sweep that differ in one value."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

from llava_mini.sweep.configurations import Configuration, label_of
from llava_mini.sweep.statistics import Difference, Scores, corrected


@dataclass(frozen=True)
class Change:
    """Effect of changing one value, with all other values as in `at`."""

    key: str
    lower: Configuration
    upper: Configuration
    at: str  # label of what the two have in common
    differences: dict[str, Difference]  # score of `upper` minus that of `lower`, by group of question kinds

    @property
    def before(self) -> str:
        """Text of the value before the change."""
        return _shown(self.lower, self.key)

    @property
    def after(self) -> str:
        """Text of the value after the change."""
        return _shown(self.upper, self.key)


def single_changes(configurations: Sequence[Configuration], groups: Mapping[str, Scores]) -> list[Change]:
    """Compare all pairs that differ in one value: for numbers the neighboring values, for names any two.

    The p-values of a group of question kinds are corrected for all changes of the same value.
    """
    pairs = list(_all_pairs(configurations))
    found: dict[str, dict[int, Difference]] = {}
    for group, scores in groups.items():
        made = {index: upper.less(lower, scores) for index, (_, lower, upper, _) in enumerate(pairs)}
        found[group] = {}
        for key in dict.fromkeys(pair[0] for pair in pairs):
            found[group] |= corrected({i: d for i, d in made.items() if d is not None and pairs[i][0] == key})
    changes = [
        Change(key, lower, upper, at, {group: found[group][index] for group in groups if index in found[group]})
        for index, (key, lower, upper, at) in enumerate(pairs)
    ]
    return [change for change in changes if change.differences]


def _all_pairs(
    configurations: Sequence[Configuration],
) -> Iterator[tuple[str, Configuration, Configuration, str]]:
    """Yield for every pair the key, the two configurations and the label of what they have in common."""
    for key in configurations[0].attributes():
        groups = defaultdict[str, list[Configuration]](list)
        for configuration in configurations:
            rest = {name: value for name, value in configuration.attributes().items() if name != key}
            groups[label_of(rest)].append(configuration)
        for at, group in groups.items():
            nothing = [c for c in configurations if key == "C" and _passes_nothing_on(c, group[0])]
            for before, after in _pairs(key, group, nothing):
                yield key, before, after, at


def _passes_nothing_on(configuration: Configuration, other: Configuration) -> bool:
    """Whether `configuration` is the control without tokens that comes before C = 1 of `other`'s compressor."""
    same = {"compressor": None, "C": None}
    return (
        configuration.tokens == 0
        and other.C is not None
        and {**configuration.attributes(), **same} == {**other.attributes(), **same}
    )


def _pairs(
    key: str, group: Sequence[Configuration], first: Sequence[Configuration]
) -> Iterable[tuple[Configuration, Configuration]]:
    known = [c for c in group if c.attributes()[key] is not None]
    if all(isinstance(c.attributes()[key], int | float) for c in known):
        return pairwise([*first, *sorted(known, key=lambda c: c.attributes()[key])])
    return combinations(sorted(known, key=lambda c: str(c.attributes()[key])), 2)


def _shown(configuration: Configuration, key: str) -> str:
    value = configuration.attributes()[key]
    return f"0 ({configuration.compressor})" if value is None else str(value)
