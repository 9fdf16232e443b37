"""`llava-mini sweep`: many runs from one command line, then their comparison."""

from __future__ import annotations

import functools
import json
import logging
from dataclasses import asdict
from pathlib import Path

from llava_mini.commands.table import OUT
from llava_mini.config import Config, instantiate, resolve
from llava_mini.errors import refused
from llava_mini.run.provenance import code_version, git_commit
from llava_mini.run.ranks import train_command
from llava_mini.sweep.folder import outcome, run_folder
from llava_mini.sweep.grid import expand
from llava_mini.sweep.launcher import Launcher
from llava_mini.sweep.runner import INTERRUPTED, run_sweep
from llava_mini.tracking.service import Service

log = logging.getLogger("llava_mini")

DEFAULT_FOLDER = "sweeps/latest"
# What takes a run seconds to import: the package's own modules, and what they import later.
_TRAINING = ("llava_mini.training.run", "transformers.optimization")
_TRACKING = ("llava_mini.tracking.mlflow_calls", "llava_mini.tracking.lightning_logger")


def sweep(arguments: list[str], config_dirs: tuple[str, ...] = ()) -> int:
    """Run all configs that `key=value,value,...` ask for, then compare them; 1 if some failed, 130 if interrupted."""
    sweep_dir, own = split_folder(arguments)
    known = functools.cache(lambda overrides: resolve(list(overrides), config_dirs))
    runs = expand(own, lambda overrides: known(tuple(overrides)))
    configs = [known(tuple(run.overrides)) for run in runs]
    tracking = configs[0].tracking
    service: Service | None = instantiate(configs[0].tracker, "tracker") if tracking.enabled else None
    _check(configs)
    devices = max(config.trainer.devices for config in configs)
    launcher: Launcher = instantiate(configs[0].launcher, "launcher", devices=devices)
    version = code_version()
    folders = [run_folder(sweep_dir, run, version) for run in runs]
    states = [outcome(folder, run, version).state for folder, run in zip(folders, runs, strict=True)]
    share_features([config for config, state in zip(configs, states, strict=True) if state != "finished"])
    status = run_sweep(
        runs,
        arguments=arguments,
        sweep_dir=sweep_dir,
        launcher=launcher,
        command=train_command(config_dirs),
        imports=_TRAINING if service is None else (*_TRAINING, *_TRACKING),
        code_version=version,
        commit=git_commit(),
        service=service,
        tracker_uri=tracking.uri,
        experiment=tracking.experiment,
    )
    if status != INTERRUPTED:
        from llava_mini.sweep.report import compare

        compare(sweep_dir)
        if service is not None:
            from llava_mini.sweep.tracked import track_report

            track_report(sweep_dir, service)
    return status


def _check(configs: list[Config]) -> None:
    """Report an impossible value before any run starts."""
    from llava_mini.assembly import check_model  # imports torch, so only after the arguments are parsed

    for config in configs:
        check_model(config)


def split_folder(arguments: list[str]) -> tuple[Path, list[str]]:
    """Return the folder that `--out=` names (or the default), and all other arguments.

    Raises:
        UserError: `--out=` is empty, or the folder is named by `sweep_dir=`, as in earlier versions.
    """
    folder = DEFAULT_FOLDER
    for name, _, value in (argument.partition("=") for argument in arguments):
        if name == "sweep_dir":
            raise refused(name, value, f"it is {OUT} {value or 'DIR'} now")
        if name == OUT and not value:
            raise refused(OUT, value, "a folder is needed")
        folder = value if name == OUT else folder
    return Path(folder), [argument for argument in arguments if not argument.startswith(f"{OUT}=")]


def share_features(configs: list[Config]) -> None:
    """Compute the frozen vision tower's features once for all unfinished runs with the same data and tower."""
    shared: dict[str, list[Config]] = {}
    for config in configs:
        if config.data.features:
            shared.setdefault(features_of(config), []).append(config)
    if not shared:
        return
    from llava_mini.training.run import assemble

    for group in shared.values():
        splits = assemble(group[0]).datamodule.splits.values()
        readers = {id(reader): reader for mix in splits for reader in mix.readers}
        stores = [reader.features for reader in readers.values() if reader.features is not None]
        seconds = sum(store.seconds for store in stores)
        log.info(
            "vision features of %d images: computed once in %.1f s, shared by the %d runs to do, which saves %.1f s",
            sum(len(store) for store in stores), seconds, len(group), seconds * (len(group) - 1),
        )  # fmt: skip


def features_of(config: Config) -> str:
    """Return a key of what the vision tower's features depend on: images, views, vision tower and its weights."""
    data, model = asdict(config.data), asdict(config.model)
    pictures = {key: data[key] for key in ("folder", "world_seed", "sizes", "train", "val", "test", "views", "features")}
    tower = {key: model[key] for key in ("vision_config", "vision_feature_layer", "image_processor", "weights", "hub")}
    return json.dumps([pictures, tower], sort_keys=True)
