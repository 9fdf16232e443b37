"""Resolve the command line's overrides into one config with Hydra's compose API. Every mistake is a one-line message.

The signature of a class named by `_target_` is its schema: `instantiate` checks names and types before the call.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import inspect
import re
import sys
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError

from llava_mini.combinations import check_combinations
from llava_mini.errors import UserError
from llava_mini.files import CONFIG_DIR, reading, write_text, writing
from llava_mini.overrides import PLACES, at_home, literal, quoted
from llava_mini.schema import check, describe

# Keys of earlier versions that scripts may still use, longest first.
_RENAMED = {
    "savers.checkpointing": "memory.activation_checkpointing",
    "savers": "memory",
    "trainer.machines": "trainer.num_nodes",
}


def resolve(overrides: list[str], config_dirs: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the resolved config as a plain dict.

    Its `choices` names the chosen option of every group. Its `inputs` contains hashes of the files that a run starts
    from.

    Args:
        overrides: Arguments `key=value` as typed: text is taken literally (`overrides.py`), Hydra parses all else.
        config_dirs: Further folders with config groups and code (such as a user's own compressors).

    Raises:
        UserError: a key or group option is unknown, or a value does not parse; the message is one line.
    """
    for override in overrides:
        if override.startswith(("+", "~")):
            raise UserError(
                f"{override}: keys are neither added nor removed; allowed is key=value of a key that is there"
            )
        if override.startswith("="):
            raise UserError(f"{override}: not of the form key=value")
        if override.encode(errors="replace") != override.encode(errors="surrogatepass"):
            raise UserError(f"{override!r}: contains bytes that are not UTF-8")
    search = [f"hydra.searchpath=[{','.join(literal('file://' + str(Path(d).resolve())) for d in config_dirs)}]"]
    typed = [quoted(override) for override in overrides]
    try:
        with initialize_config_dir(config_dir=str(CONFIG_DIR), version_base="1.3"):
            composed = compose("config", [*typed, *(search if config_dirs else [])], return_hydra_config=True)
            choices = dict(composed.hydra.runtime.choices)
            own = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
            resolved = OmegaConf.to_container(own, resolve=True, throw_on_missing=True)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise UserError(_one_line(error, overrides)) from error
    chosen = {group: name for group, name in choices.items() if group != "launcher" and not group.startswith("hydra/")}
    config: dict[str, Any] = {"choices": chosen, **resolved}  # type: ignore[dict-item]  # a mapping at the top gives a dict
    _expand_homes(config)
    check(config)
    check_combinations(config)
    import_own(config, config_dirs)
    return {**config, "inputs": _inputs(config, config_dirs)}


def _expand_homes(config: dict[str, Any]) -> None:
    """Expand `~` in every path of the config, whether it came from a config file or the command line."""
    for key in PLACES:
        *path, name = key.split(".")
        node: Any = config
        for part in path:
            node = node.get(part) if isinstance(node, dict) else None
        if isinstance(node, dict) and name in node:
            node[name] = at_home(node[name])


def import_own(config: dict[str, Any], config_dirs: tuple[str, ...]) -> None:
    """Import the compressor's module if it is in a folder that the user named. A model never imports code by itself."""
    module = str(config["compressor"].get("_target_", "")).rpartition(".")[0]
    for folder in config_dirs:
        if module and (Path(folder) / (module.replace(".", "/") + ".py")).is_file():
            if str(Path(folder).resolve()) not in sys.path:
                sys.path.insert(0, str(Path(folder).resolve()))
            importlib.import_module(module)


def _inputs(config: dict[str, Any], config_dirs: tuple[str, ...]) -> dict[str, str]:
    """Return hashes of the files that a run starts from, so that a changed file with equal values is another run."""
    given = config["model"]["weights"]
    folders = [Path(folder) for folder in given] if isinstance(given, list) else []
    weights = [folder / name for folder in folders for name in ("model.safetensors", "model.safetensors.index.json")]
    tokenizer = Path(config["model"]["tokenizer"]) / "tokenizer.json"
    own = [path for folder in config_dirs for path in sorted(Path(folder).rglob("*.py"))]
    groups = {"weights": weights, "tokenizer": [tokenizer], "own_code": own}
    return {name: _digest([path for path in paths if path.is_file()]) for name, paths in groups.items()}


def _digest(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with reading(path):
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def options(group: str, config_dirs: tuple[str, ...] = ()) -> list[str]:
    """Return the names of a config group's YAML files."""
    folders = [CONFIG_DIR, *(Path(d) for d in config_dirs)]
    return sorted({path.stem for folder in folders for path in (folder / group).glob("*.yaml")})


def instantiate(spec: dict[str, Any], key: str, **given: Any) -> Any:
    """Call the class that `_target_` names with the spec's other keys, checked against its signature.

    Args:
        spec: Dict of `_target_` and keyword arguments.
        key: Key of the spec in the config, for messages.
        **given: Arguments that are not in the config.

    Raises:
        UserError: the class does not exist, a key is unknown or missing, or a value has the wrong type.
    """
    target, arguments = _checked_call(spec, key, set(given))
    return target(**arguments, **given)


def check_spec(spec: dict[str, Any], key: str, given: set[str]) -> None:
    """Check what `instantiate` would refuse, without calling the class.

    Args:
        spec: Dict of `_target_` and keyword arguments.
        key: Key of the spec in the config, for messages.
        given: Names of the arguments that are not in the config.

    Raises:
        UserError: `instantiate` would raise it.
    """
    _checked_call(spec, key, given)


def _checked_call(spec: dict[str, Any], key: str, given: set[str]) -> tuple[Any, dict[str, Any]]:
    """Return the class that `_target_` names and its checked arguments."""
    arguments = {name: value for name, value in spec.items() if name != "_target_"}
    try:
        target = get_class(spec["_target_"])
    except Exception as error:  # hydra wraps whatever the import raised
        raise UserError(f"{key}._target_={spec.get('_target_')}: {str(error).splitlines()[0]}") from error
    parameters = inspect.signature(target, eval_str=True).parameters
    allowed = [name for name in parameters if name not in given]
    for name, value in arguments.items():
        if name not in allowed:
            raise UserError(f"unknown key {key}.{name}: {target.__name__} takes {', '.join(allowed)}")
        arguments[name] = _checked(f"{key}.{name}", value, parameters[name].annotation)
    missing = [n for n in allowed if parameters[n].default is inspect.Parameter.empty and n not in arguments]
    if missing:
        raise UserError(f"missing key {key}.{missing[0]}: {target.__name__} needs it")
    return target, arguments


def save(config: dict[str, Any], path: Path) -> None:
    """Write a config as YAML, completely or not at all."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, yaml.safe_dump(config, sort_keys=False))


def load(path: Path) -> dict[str, Any]:
    """Read a config that `save` wrote.

    Raises:
        UserError: the file does not exist, is not YAML or is not a mapping.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; allowed is the folder of a run, which contains config.yaml")
    try:
        with reading(path):
            config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as yaml ({' '.join(str(error).split())})") from error
    if not isinstance(config, dict):
        raise UserError(f"{path}: not a config of this program")
    return config


def _checked(key: str, value: Any, annotation: Any) -> Any:
    if annotation is inspect.Parameter.empty:
        return value
    try:
        return TypeAdapter(annotation).validate_python(value)
    except ValidationError as error:
        raise UserError(describe(key, error)) from error


def _one_line(error: Exception, overrides: list[str]) -> str:
    text = str(error)
    if match := re.search(r"Could not override '([^']+)'", text):
        return _unknown_key(match[1])
    if match := re.search(r"Could not find '([^/']+)/([^']+)'", text):
        return f"{match[1]}={match[2]}: no such {match[1]}; allowed are {', '.join(options(match[1]))}"
    if match := re.search(r"In '[^']+': Could not find '([^']+)'", text):
        return f"{match[1]}: no such config; groups are {', '.join(_groups())}"
    if match := re.search(r"Could not (?:append|delete)[^\n]*", text):
        return match[0]
    for override in overrides:
        if reason := _unreadable(override):
            return f"{override}: {reason}"
    return " ".join(text.split())


def _unreadable(override: str) -> str | None:
    """Return why Hydra cannot read an override as one value, or None if it can."""
    key, equals, _ = override.partition("=")
    if not equals:
        return "not of the form key=value"
    try:
        several = OverridesParser.create().parse_override(quoted(override)).is_sweep_override()
    except HydraException:
        return (
            "the value cannot be read; allowed are numbers, true, null, [a, b], {a: 1} and text, in quotes of its own "
            f"if it has other characters than letters, digits and . / - _: '{key}=\"text\"'"
        )
    if several:
        return (
            f"several values, which `llava-mini sweep` takes; a list is {key}=[a,b], text with a comma is in quotes of "
            f"its own: '{key}=\"a,b\"'"
        )
    return None


def _unknown_key(key: str) -> str:
    for old, new in _RENAMED.items():
        if key == old or key.startswith(f"{old}."):
            return f"unknown key {key}: it is {new}{key.removeprefix(old)} now"
    with initialize_config_dir(config_dir=str(CONFIG_DIR), version_base="1.3"):
        node: Any = compose("config")
    path: list[str] = []
    for part in key.split("."):
        if not isinstance(node, DictConfig) or part not in node:
            break
        node, path = node[part], [*path, part]
    known = [str(name) for name in node] if isinstance(node, DictConfig) else []
    close = difflib.get_close_matches(key.split(".")[len(path)] if len(path) < len(key.split(".")) else "", known, n=1)
    prefix = ".".join(path)
    hint = f" (did you mean {'.'.join([*path, close[0]])}?)" if close else ""
    return f"unknown key {key}{hint}: allowed{' in ' + prefix if prefix else ''} are {', '.join(known) or 'no keys'}"


def _groups() -> list[str]:
    return sorted(path.name for path in CONFIG_DIR.iterdir() if path.is_dir())
