"""Reference of the config, made from its types: keys with type, default and one line; groups with their options.

`llava-mini train --help` prints it, and `python -m llava_mini.config.reference` prints docs/reference/config.md.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from pydantic.fields import FieldInfo

from llava_mini import limits
from llava_mini.config.compose import options, resolve
from llava_mini.config.types import Component, Config
from llava_mini.settings import conf

GROUPS = {
    "compressor": "what reduces patches to C x C tokens",
    "order": "order of compression, projection and pre-fusion",
    "model": "shapes and weights of the parts",
    "data": "shard sets and how they are read",
    "stage": "which parts train, and their rates",
    "finetune": "full training, adapters, 4 bits",
    "hardware": "card, and its precision",
    "launcher": "how a sweep starts its runs",
    "tracker": "the service that runs are reported to",
    "memory": "what saves memory: chosen by the planner, or key by key",
    "recipe": "values of all other groups, for a stage and a kind of model",
}
_NAMES = {int: "int", float: "float", bool: "true | false", str: "text", Any: "any"}
_NAMES |= {dict: "{...}", list: "[...]", tuple: "[...]"}
_BOUNDS = {"ge": "{} or more", "gt": "above {}", "le": "at most {}", "lt": "below {}"}


@dataclass(frozen=True)
class Key:
    """A key of the config.

    Attributes:
        name: Full name, as it is typed.
        kind: Its type and limits as text.
        default: Its value in the default config, as YAML.
        text: What it is for.
    """

    name: str
    kind: str
    default: str
    text: str


def keys(config: Config) -> Iterator[Key]:
    """Return every key that has a type of its own, in the order of the types, with its value in a config."""
    for name, kind in get_type_hints(Config, include_extras=True).items():
        if name not in ("choices", "inputs") and _bare(kind)[0] is not Component:
            yield from _keys(name, kind, getattr(config, name))


def arguments() -> Iterator[Key]:
    """Return the arguments of the classes that options name, as their YAML gives and their source documents them."""
    for group in ("compressor", "stage", "launcher", "tracker"):
        found: dict[tuple[str, str, str], list[str]] = {}
        for option in options(group):
            given = conf(f"{group}/{option}")
            target = given.pop("_target_")
            for name, value in given.items():
                annotation, text = _documented(target)[name]
                kind = _kind(eval(annotation, vars(limits).copy()), [])
                found.setdefault((f"{group}.{name}", kind, text), []).append(f"{option}: {_value(value)}")
        for (name, kind, text), values in found.items():
            yield Key(name, kind, "; ".join(values), text)


@cache
def _documented(target: str) -> dict[str, tuple[str, str]]:
    """Return type and text of each argument of a class of this package, from its source: imports take seconds."""
    module, _, name = target.rpartition(".")
    tree = ast.parse(Path(__file__).parents[1].joinpath(*module.split(".")[1:]).with_suffix(".py").read_text())
    found = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    init = next((node for node in found.body if isinstance(node, ast.FunctionDef) and node.name == "__init__"), None)
    if init is None:
        base = ast.unparse(found.bases[0])
        imports = (node for node in tree.body if isinstance(node, ast.ImportFrom))
        return _documented(next(f"{each.module}.{base}" for each in imports if base in [a.name for a in each.names]))
    texts = dict(re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", ast.get_docstring(found) or "", re.MULTILINE))
    return {
        each.arg: (ast.unparse(each.annotation), " ".join(texts.get(each.arg, "").split()))
        for each in (*init.args.args, *init.args.kwonlyargs)
        if each.annotation
    }


def help_text() -> str:
    """Return groups and keys for `--help`."""
    lines = ["groups (group=option; * is the default):"]
    config = resolve([])
    hidden = {"launcher": config.launcher.target, "tracker": config.tracker.target}  # not in `choices`
    targets = ((group, name) for group in hidden for name in options(group))
    chosen = config.choices | {g: name for g, name in targets if conf(f"{g}/{name}")["_target_"] == hidden[g]}
    for group, text in GROUPS.items():
        listed = ", ".join(f"{name}*" if name == chosen[group] else name for name in options(group))
        lines += [f"  {group:<11} {text}", f"              {listed}"]
    lines += ["", "keys (key=value), with type and default:"]
    for key in keys(config):
        lines.append(f"  {key.name}={key.default}  ({key.kind})")
        lines += [f"      {key.text}"] if key.text else []
    lines += ["", "arguments of the classes that options name, with the value of each option:"]
    for key in arguments():
        lines.append(f"  {key.name}  ({key.kind})  {key.default}")
        lines += [f"      {key.text}"] if key.text else []
    return "\n".join(lines)


def page() -> str:
    """Return docs/reference/config.md."""
    lines = [
        "# Config keys",
        "",
        "Made from the types by `python -m llava_mini.config.reference`; `llava-mini config` prints a run's values.",
        "",
        "## Groups",
        "",
        "| group | what it chooses | options |",
        "|---|---|---|",
    ]
    for group, text in GROUPS.items():
        lines.append(f"| `{group}` | {text} | {', '.join(f'`{name}`' for name in options(group))} |")
    section = ""
    for key in keys(resolve([])):
        if (first := key.name.partition(".")[0] if "." in key.name else "run") != section:
            section = first
            lines += ["", f"## {section}", "", "| key | type | default | meaning |", "|---|---|---|---|"]
        lines.append(f"| `{key.name}` | {_cell(key.kind)} | `{key.default}` | {key.text} |")
    lines += ["", "## Arguments of components", "", "What the classes that options name take.", ""]
    lines += ["| key | type | values | meaning |", "|---|---|---|---|"]
    lines += [f"| `{key.name}` | {_cell(key.kind)} | {key.default} | {key.text} |" for key in arguments()]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _keys(name: str, kind: Any, value: Any) -> Iterator[Key]:
    kind, notes = _bare(kind)
    text = next((note.description for note in notes if isinstance(note, FieldInfo) and note.description), "")
    if not is_dataclass(value):
        yield Key(name, _kind(kind, notes), _value(value), text)
        return
    for field, hint in get_type_hints(kind, include_extras=True).items():
        yield from _keys(f"{name}.{field}", hint, getattr(value, field))


def _bare(kind: Any) -> tuple[Any, list[Any]]:
    """Return a type without its annotations, and these."""
    notes: list[Any] = []
    while get_origin(kind) is Annotated:
        kind, *more = get_args(kind)
        notes += more
    return kind, notes


def _kind(kind: Any, notes: list[Any]) -> str:
    """Return a type as text, for example `int, 1 or more`, `null | true | false`."""
    kind, more = _bare(kind)
    limits = [limit for note in [*more, *notes] for limit in (note.metadata if isinstance(note, FieldInfo) else ())]
    if get_origin(kind) in (Union, UnionType):
        parts = [_kind(part, []) for part in get_args(kind) if part is not NoneType]
        return " | ".join([*parts, *(["null"] if NoneType in get_args(kind) else [])])
    if get_origin(kind) is Literal:
        return " | ".join(str(each) for each in get_args(kind))
    if is_dataclass(kind):
        return "{...}"
    text = _NAMES.get(get_origin(kind) or kind, str(kind))
    return ", ".join([text, *filter(None, map(_limit, limits))])


def _limit(limit: Any) -> str:
    """Return a limit of pydantic as text; nothing for what is no bound."""
    found = asdict(limit) if is_dataclass(limit) and not isinstance(limit, type) else {}
    return ", ".join(_BOUNDS[name].format(value) for name, value in found.items() if name in _BOUNDS)


def _value(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False).strip()
    text = text.removesuffix("...").strip()
    return text if len(text) <= 60 else f"{text[:57]}..."


if __name__ == "__main__":
    sys.stdout.write(page())
