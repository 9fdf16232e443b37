"""What each single change brings: configurations of a sweep that differ in one value, compared in pairs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

from llava_mini.sweep.configurations import Configuration, label_of
from llava_mini.sweep.statistics import Bootstrap, Difference


@dataclass(frozen=True)
class Change:
    """The effect of changing one value: `key` from `before` to `after`, all else as in `at`."""

    key: str
    before: str
    after: str
    at: str
    difference: Difference


def single_changes(configurations: Sequence[Configuration], bootstrap: Bootstrap) -> Iterator[Change]:
    """All pairs that differ in one value: neighbouring ones of numbers, any two of names."""
    for key in configurations[0].attributes():
        groups = defaultdict[str, list[Configuration]](list)
        for configuration in configurations:
            rest = {name: value for name, value in configuration.attributes().items() if name != key}
            groups[label_of(rest)].append(configuration)
        for at, group in sorted(groups.items()):
            nothing = [c for c in configurations if key == "C" and _passes_nothing_on(c, group[0])]
            for before, after in _pairs(key, group, nothing):
                difference = after.less(before, bootstrap)
                if difference is not None:
                    yield Change(key, _shown(before, key), _shown(after, key), at, difference)


def _passes_nothing_on(configuration: Configuration, other: Configuration) -> bool:
    """Whether it is the control without tokens that stands before C = 1 of another compressor."""
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
