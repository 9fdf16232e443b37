"""Expansion of arguments like `compressor.C=1,2 fusion.num_layers=0,2 seed=0,1` into the runs of a sweep.

Every combination of values is one run, with two exceptions. Combinations that differ only in a value that does not
apply (`compressor.C` for a compressor without C) are the same run. The uncompressed reference is always included.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from llava_mini.config import Config
from llava_mini.config.overrides import split, text_keys
from llava_mini.errors import UserError, refused
from llava_mini.run.identity import config_hash

Resolve = Callable[[list[str]], Config]

# Config groups that have a fixed value in the reference, or no use there.
_STRUCTURE = ("compressor", "fusion", "order")
_REFERENCE = ("compressor=none", "fusion.num_layers=0")
_FUNCTIONS = ("range(", "choice(", "interval(")  # of Hydra's grammar, each several values


@dataclass(frozen=True)
class Run:
    """One training run of a sweep."""

    label: str  # compressor, C, N_fusion, other varied values, seed
    overrides: list[str]  # of the config
    config_hash: str  # of the resolved config; see `config_hash`
    seed: int
    compressor: str  # its name
    C: int | None  # side of the grid of compressed tokens; None if the compressor has none
    n_fusion: int
    reference: bool  # whether this is the uncompressed reference
    values: dict[str, Any] = field(default_factory=dict)  # of every other key that varies; None: does not apply

    def setting(self) -> dict[str, Any]:
        """Varied values that the reference has too; runs are compared with the reference of their own setting."""
        return {key: value for key, value in self.values.items() if _room(key) not in _STRUCTURE}


def expand(arguments: Sequence[str], resolve: Resolve) -> list[Run]:
    """Return the runs of a sweep, seed by seed, so that an interrupted sweep contains complete comparisons.

    Args:
        arguments: Arguments `key=value` or `key=value,value,...`. Commas within brackets or quotes belong to the
            value. Text (`overrides.py`) is otherwise used as typed.
        resolve: Function that returns the resolved config for a list of overrides, or raises UserError. It is called
            many times with the same overrides.

    Raises:
        UserError: for an argument that cannot be parsed, or raised by `resolve`.
    """
    choices = parse(arguments)
    varied = [key for key, values in choices.items() if len(values) > 1]
    runs: dict[str, Run] = {}
    for overrides, reference in _combinations(choices, resolve):
        run = _make_run(overrides, resolve(overrides), varied, reference)
        runs.setdefault(run.config_hash, run)
    return list(runs.values())


def parse(arguments: Sequence[str]) -> dict[str, list[str]]:
    """Parse the arguments of a sweep: `["a=1,2", "b=[1,2]"]` -> `{"a": ["1", "2"], "b": ["[1,2]"]}`.

    Functions of Hydra's grammar are several values too: `seed=range(0,3)`.

    Raises:
        UserError: naming the argument, if it is not key=value, repeats a key, or has an empty or unclosed value.
    """
    choices: dict[str, list[str]] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_][\w@./-]*", key):
            raise _fault(argument, "a sweep takes key=value or key=value,value,...")
        if key in choices:
            raise _fault(argument, f"{key} is given twice; write its values as {key}=value,value")
        kind = text_keys().get(key)
        values = _values(argument, text) if kind is None else split(text, brackets=kind.items or kind.others)
        choices[key] = list(dict.fromkeys(_not_empty(argument, value) for value in values))
    return choices


def _combinations(choices: Mapping[str, list[str]], resolve: Resolve) -> Iterator[tuple[list[str], bool]]:
    """Yield the overrides of every run and whether it is the reference, which comes first for each seed and setting."""
    keys = sorted(choices, key=lambda key: key != "seed")  # seeds are the outermost loop
    optional = _compressor_keys(choices, resolve)
    for values in itertools.product(*(choices[key] for key in keys)):
        overrides = [f"{key}={value}" for key, value in zip(keys, values, strict=True)]
        yield [*(item for item in overrides if _room(item) not in _STRUCTURE), *_REFERENCE], True
        own = [item for item in overrides if item.startswith("compressor.")]
        choosing = [item for item in overrides if item not in own and not item.startswith("seed=")]
        dropped = optional - set(resolve(choosing).compressor.spec()) if own else set()
        yield [item for item in overrides if item not in own or _name(item) not in dropped], False


def _compressor_keys(choices: Mapping[str, list[str]], resolve: Resolve) -> set[str]:
    """Keys that some compressor of the sweep has; a key that no compressor has is a mistake to be reported."""
    keys = {"C"}
    if "compressor" in choices:
        for name in choices["compressor"]:
            keys |= set(resolve([f"compressor={name}"]).compressor.spec())
    return keys


def _room(override: str) -> str:
    """Config group of an override: `fusion.init=copy` -> `fusion`."""
    return re.split(r"[.@=]", override, maxsplit=1)[0]


def _name(override: str) -> str:
    """Key of an override within its config group: `compressor.C=1` -> `C`."""
    return override.partition("=")[0].partition(".")[2]


def _make_run(overrides: list[str], config: Config, varied: Iterable[str], reference: bool) -> Run:
    given = dict(item.split("=", 1) for item in overrides)
    seed = config.seed
    if not isinstance(seed, int):
        raise refused("seed", seed, "a seed is a whole number")
    # The chosen option, or else the module of the class: `...compressors.query.QueryCompressor` -> `query`.
    compressor = given.get("compressor") or config.compressor.target.split(".")[-2]
    c = config.compressor.get("C")
    n_fusion = config.fusion.num_layers
    known = ("compressor", "compressor.C", "fusion.num_layers", "seed")
    values = {key: _value(key, given, config) for key in varied if key not in known}
    parts = [compressor, *([f"C{c}"] if c is not None else []), f"N{n_fusion}"]
    parts += [f"{key.rpartition('.')[2]}={value}" for key, value in values.items() if value is not None]
    label = re.sub(r"[^\w.=+-]+", "_", "-".join([*parts, f"s{seed}"]))[:100]
    return Run(label, overrides, config_hash(config), seed, compressor, c, n_fusion, reference, values)


def _value(key: str, given: Mapping[str, str], config: Config) -> Any:
    """Resolved value of a dotted key, chosen option of a config group, or None if the key was dropped."""
    if key not in given:
        return None
    node: Any = config.to_dict()
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return given[key]
        node = node[part]
    return given[key] if isinstance(node, Mapping) else node


def _values(argument: str, text: str) -> list[str]:
    """Return the values of a key that takes no free text, by Hydra's grammar: `1,2`, `[1,2],[3]`, `range(1,4)`."""
    parser = OverridesParser.create()
    try:
        override = parser.parse_override(argument)
        if text.startswith(_FUNCTIONS):
            return list(override.sweep_string_iterator())
    except HydraException as error:
        reason = " ".join(str(error).splitlines()[0].split())
        raise _fault(argument, f"cannot be read as values ({reason})") from error
    return split(text, brackets=True)  # as they were typed, which Hydra's own iterator changes: 1e-3 to 0.001


def _not_empty(argument: str, value: str) -> str:
    if not value.strip():
        raise _fault(argument, "a value is empty; write '' for an empty text")
    return value.strip()


def _fault(argument: str, reason: str) -> UserError:
    key, _, value = argument.partition("=")
    return UserError(f"{argument!r}: {reason}", key=key, value=value)
