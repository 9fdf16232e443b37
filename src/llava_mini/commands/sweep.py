"""`llava-mini sweep`: many runs from one command line, then their comparison."""

from __future__ import annotations

import functools
from pathlib import Path

from llava_mini.command_line.table import OUT
from llava_mini.config import instantiate, resolve
from llava_mini.errors import refused
from llava_mini.run.provenance import code_version, git_commit
from llava_mini.run.ranks import train_command
from llava_mini.sweep.folder import outcome, run_folder
from llava_mini.sweep.grid import expand
from llava_mini.sweep.launcher import Launcher
from llava_mini.sweep.runner import INTERRUPTED, run_sweep
from llava_mini.tracking.service import Service

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
    from llava_mini.assembly import check_model  # imports torch, so only after the arguments are parsed
    from llava_mini.training.shared_features import share_features

    for config in configs:  # an impossible value is reported before any run starts
        check_model(config)
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
