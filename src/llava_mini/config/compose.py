"""Resolve the command line's overrides into a `Config` with Hydra's compose API. Every mistake is one line."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import GrammarParseError, MissingMandatoryValue, OmegaConfBaseException

from llava_mini.config.overrides import PLACES, at_home, literal, quoted
from llava_mini.config.types import Config
from llava_mini.errors import UserError, refused
from llava_mini.files import CONFIG_DIR, reading, write_text, writing

# Keys of earlier versions that scripts may still use, longest first.
_RENAMED = {
    "data.splits.train": "data.train",
    "data.splits.val": "data.val",
    "data.splits.test": "data.test",
    "data.splits": "data.train, data.val and data.test",
    "experiment": "recipe",
    "experiment_name": "run_name",
    "model.hub.vision_tower": "model.vision_tower",
    "model.hub.language_model": "model.language_model",
    "savers.checkpointing": "memory.activation_checkpointing",
    "savers": "memory",
    "trainer.machines": "trainer.num_nodes",
}


def resolve(overrides: list[str], config_dirs: tuple[str, ...] = ()) -> Config:
    """Return the config that the overrides choose, with every value checked.

    Args:
        overrides: Arguments `key=value` as typed: text is taken literally (`overrides.py`), Hydra parses all else.
        config_dirs: Further folders with config groups and code (such as a user's own compressors).

    Raises:
        UserError: a key or group option is unknown, or a value does not parse, is not allowed or cannot be combined
            with another; the message is one line.
    """
    _check_keys(overrides)
    overrides = [*overrides, *_recipe_of(overrides)]
    search = [f"hydra.searchpath=[{','.join(literal('file://' + str(Path(d).resolve())) for d in config_dirs)}]"]
    typed = [quoted(override) for override in overrides]
    try:
        with initialize_config_dir(config_dir=str(CONFIG_DIR), version_base="1.3"):
            composed = compose("config", [*typed, *(search if config_dirs else [])], return_hydra_config=True)
            choices = dict(composed.hydra.runtime.choices)
            names: list[Any] = [key for key in composed if key != "hydra"]
            own = OmegaConf.masked_copy(composed, names)
            resolved = OmegaConf.to_container(own, resolve=True, throw_on_missing=True)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, TypeError, ValueError) as error:
        raise _recipe_fault(overrides, config_dirs) or _refused(error, overrides, config_dirs) from error
    hidden = ("launcher", "tracker")  # which change no result
    chosen = {group: name for group, name in choices.items() if group not in hidden and not group.startswith("hydra/")}
    assert isinstance(resolved, dict)
    for key in resolved:
        if not isinstance(key, str) or key in ("choices", "inputs"):
            raise UserError(f"{key!s}: no key that a config file may have at its top", key=str(key))
    values: dict[str, Any] = {"choices": chosen, **resolved}  # type: ignore[dict-item]  # a mapping at the top gives a dict
    _expand_homes(values)
    try:
        config = Config.read(values)
    except UserError as error:
        raise _recipe_fault(overrides, config_dirs) or error from error
    for component in (config.compressor, config.stage, config.launcher, config.tracker):
        import_own(component.target, config_dirs)
    return replace(config, inputs=_inputs(config, config_dirs))


def _recipe_of(overrides: list[str]) -> list[str]:
    """Return the choice of a recipe for a model other than the toy world's, if none was made: that of its stage.

    The default recipe is the toy world's, whose rates, lengths and data fit no other model.
    """
    chosen = dict(override.partition("=")[::2] for override in overrides)
    if "recipe" in chosen or chosen.get("model", "tiny") == "tiny":
        return []
    if chosen.get("stage") == "alignment":
        return ["recipe=stage1"]
    adapters = {"lora": "lora", "dora": "lora", "qlora": "qlora"}
    return [f"recipe={adapters.get(chosen.get('finetune', ''), 'stage2')}"]


def _check_keys(overrides: list[str]) -> None:
    for override in overrides:
        if override.startswith(("+", "~")):
            key, reason = override.lstrip("+~").partition("=")[0], "keys are neither added nor removed"
            raise refused(key, override, reason, given=override, only="key=value of a key that is there")
        if override.startswith("="):
            raise UserError(f"{override}: not of the form key=value", value=override, allowed="key=value")
        if override.startswith(("hydra.", "hydra/", "hydra=")):
            raise UserError(f"{override}: Hydra's own settings are fixed here", key=override.partition("=")[0])
        if override.encode(errors="replace") != override.encode(errors="surrogatepass"):
            raise UserError(
                f"{override!r}: contains bytes that are not text in the locale's encoding (UTF-8 is usual)",
                key=override.partition("=")[0],
                value=override,
            )


def _expand_homes(values: dict[str, Any]) -> None:
    """Expand `~` in every path of a resolved mapping, whether it came from a config file or the command line."""
    for key in PLACES:
        *path, name = key.split(".")
        node: Any = values
        for part in path:
            node = node.get(part) if isinstance(node, dict) else None
        if isinstance(node, dict) and name in node:
            node[name] = at_home(node[name])


def import_own(target: str, config_dirs: tuple[str, ...]) -> None:
    """Import a class's module if it is in a folder that the user named. A model never imports code by itself.

    Args:
        target: Full name of the class.
        config_dirs: Folders that the user named.
    """
    module = target.rpartition(".")[0]
    for folder in config_dirs:
        if module and (Path(folder) / _module(target)).is_file():
            if str(Path(folder).resolve()) not in sys.path:
                sys.path.insert(0, str(Path(folder).resolve()))
            try:
                importlib.import_module(module)
            except Exception as error:  # whatever the user's own code raises
                reason = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
                raise UserError(f"{folder}: {module} cannot be imported ({reason})", key="--config-dir") from error


def _module(target: str) -> Path:
    """Return the file of a class's module, relative to the folder it is imported from."""
    return Path(target.rpartition(".")[0].replace(".", "/") + ".py")


def _inputs(config: Config, config_dirs: tuple[str, ...]) -> dict[str, str]:
    """Return hashes of the files that a run starts from, so that a changed file with equal values is another run."""
    names = ("model.safetensors", "model.safetensors.index.json")
    weights = [folder / name for folder in config.model.folders for name in names]
    tokenizer = Path(config.model.tokenizer) / "tokenizer.json"
    hidden = [_module(each.target) for each in (config.launcher, config.tracker)]  # which change no result
    own = [
        path
        for each in config_dirs
        for path in sorted(Path(each).rglob("*.py"))
        if path.relative_to(each) not in hidden
    ]
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


def save(config: Config, path: Path) -> None:
    """Write a config as YAML, completely or not at all."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, yaml.safe_dump(config.to_dict(), sort_keys=False))


def load(path: Path) -> Config:
    """Read a config that `save` wrote.

    Raises:
        UserError: the file cannot be read, or is not the config of a run of this version.
    """
    values = load_values(path)
    try:
        return Config.read(values)
    except UserError as error:
        raise error.with_line(f"{path}: {error}") from error


def load_values(path: Path) -> dict[str, Any]:
    """Read a config of any version as a mapping, without checking its values.

    Raises:
        UserError: the file does not exist, is not YAML or is not a mapping.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; allowed is the folder of a run, which contains config.yaml")
    try:
        with reading(path):
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as yaml ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: not a config of this program")
    return values


def _recipe_fault(overrides: list[str], config_dirs: tuple[str, ...]) -> UserError | None:
    """Return what is wrong with the form of a user's own recipe, if anything: Hydra does not name its file."""
    name = next((each.partition("=")[2] for each in reversed(overrides) if each.startswith("recipe=")), None)
    path = next((path for each in config_dirs if (path := Path(each) / "recipe" / f"{name}.yaml").is_file()), None)
    if path is None:
        return None
    recipe = load_values(path)
    if not re.search(r"^# *@package +_global_ *$", path.read_text(encoding="utf-8"), re.MULTILINE):
        return UserError(f"{path}: needed is a first line `# @package _global_`", key="recipe", value=name)
    defaults = recipe.pop("defaults", None)
    for entry in defaults if isinstance(defaults, list) else []:
        for group, option in entry.items() if isinstance(entry, dict) else ():
            if group.removeprefix("/") in _groups():
                allowed = f"override /{group.removeprefix('/')}: {option}"
                return UserError(f"{path}: defaults: {group} is chosen already; needed is `{allowed}`", allowed=allowed)
    known = _default()
    unknown = [key for key in recipe if key not in known and key != "run_name"]
    for key, value in recipe.items():
        if isinstance(value, dict) and key in known and key not in _groups():
            unknown += [f"{key}.{name}" for name in value if name not in known[key]]
    if unknown:
        error = _unknown_key(str(unknown[0]))
        return error.with_line(f"{path}: {error}")
    if "run_name" not in recipe and not defaults:
        return UserError(f"{path}: needed is run_name, the name of the run's folder", key="run_name")
    return None


def _refused(error: Exception, overrides: list[str], config_dirs: tuple[str, ...]) -> UserError:
    """Return Hydra's or OmegaConf's error as ours."""
    text = str(error)
    if match := re.search(r"Could not override '([^']+)'", text):
        return _unknown_key(_within(match[1], error.__cause__))
    if match := re.fullmatch(r"Error merging override (.*)", text, re.DOTALL):
        return _not_merged(match[1], error.__cause__, overrides)
    if match := re.search(r"Could not (?:find|load) '([^/']+)/([^']+)'", text):
        group, name, allowed = match[1], match[2], ", ".join(options(match[1], config_dirs))
        return UserError(
            f"{group}={name}: no such {group}; allowed are {allowed}", key=group, value=name, allowed=allowed
        )
    if match := re.search(r"In '[^']+': Could not find '([^']+)'", text):
        allowed = ", ".join(_groups())
        return UserError(f"{match[1]}: no such config; groups are {allowed}", key=match[1], allowed=allowed)
    if isinstance(error, MissingMandatoryValue) and error.full_key:
        return UserError(f"{error.full_key}: needs a value: {error.full_key}=...", key=error.full_key, value="???")
    if isinstance(error, OmegaConfBaseException) and error.full_key:
        return UserError(f"{error.full_key}: {text.splitlines()[0]}", key=error.full_key)
    for override in overrides:
        if reason := _unreadable(override):
            key, _, value = override.partition("=")
            return UserError(f"{override}: {reason}", key=key, value=value, allowed=reason)
    values = ", ".join(override for override in overrides if "${" in override)
    return UserError(" ".join(text.split()) or f"{values}: ${{ begins the name of another key, as in ${{seed}}")


def _within(key: str, cause: BaseException | None) -> str:
    """Return the key within the value of `key` that OmegaConf does not know, if that is what it reports, else `key`."""
    full_key = cause.full_key if isinstance(cause, OmegaConfBaseException) else None
    return full_key if full_key is not None and full_key.startswith(f"{key}.") else key


def _not_merged(parsed: str, cause: BaseException | None, overrides: list[str]) -> UserError:
    """Return why the override that Hydra has read as `parsed` fits no config."""
    override = next((each for each in overrides if quoted(each) == parsed), parsed)
    key, _, value = override.partition("=")
    if isinstance(cause, GrammarParseError):
        allowed = "${ begins the name of another key, as in ${seed}; \\${ is the text ${ itself"
    else:
        allowed = next(iter(str(cause).splitlines()), "not a value of this key")
    return UserError(f"{override}: {allowed}", key=key, value=value, allowed=allowed)


def _unreadable(override: str) -> str | None:
    """Return why Hydra cannot read an override as one value, or None if it can."""
    key, equals, _ = override.partition("=")
    if not equals:
        return "not of the form key=value"
    if key != key.strip():
        return "a key has no spaces before or after it; allowed is key=value"
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


def _unknown_key(key: str) -> UserError:
    for old, new in _RENAMED.items():
        if key == old or key.startswith(f"{old}."):
            name = f"{new}{key.removeprefix(old)}"
            return UserError(f"unknown key {key}: it is {name} now", key=key, hint=name)
    node: Any = _default()
    path: list[str] = []
    for part in key.split("."):
        if not isinstance(node, DictConfig) or part not in node:
            break
        node, path = node[part], [*path, part]
    known = [str(name) for name in node] if isinstance(node, DictConfig) else []
    close = difflib.get_close_matches(key.split(".")[len(path)] if len(path) < len(key.split(".")) else "", known, n=1)
    prefix = ".".join(path)
    hint = ".".join([*path, close[0]]) if close else None
    meant, allowed = f" (did you mean {hint}?)" if hint else "", ", ".join(known) or "no keys"
    where = f" in {prefix}" if prefix else ""
    return UserError(f"unknown key {key}{meant}: allowed{where} are {allowed}", key=key, allowed=allowed, hint=hint)


def _default() -> DictConfig:
    """Return the config that nothing overrides, which has every key."""
    with initialize_config_dir(config_dir=str(CONFIG_DIR), version_base="1.3"):
        return compose("config")


def _groups() -> list[str]:
    return sorted(path.name for path in CONFIG_DIR.iterdir() if path.is_dir())
