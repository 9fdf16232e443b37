"""`llava-mini <command> key=value ...`: reads the command line, resolves the config, calls the command.

Exit status:

- 2 for a user's mistake, with one line on standard error.
- 1 for a run that stops itself (non-finite loss, out of memory, a worker that died).
- 130 for Ctrl-C.
- 141 for output that nothing reads any more (`| head`).

Commands are imported when they are called, so that a mistake is reported before torch is loaded.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from llava_mini.commands.output import output_ends, writes_any_text
from llava_mini.commands.ranks import INTERRUPTED, OWN_MESSAGE, own_rank, run_ranks, train_command
from llava_mini.data.errors import LoaderError, loader_failures_told
from llava_mini.errors import UserError
from llava_mini.files import disk_trouble_told

Command = Callable[[list[str], tuple[str, ...]], int]


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit status.
    """
    with output_ends():
        return _run(argv)


def _run(argv: list[str] | None) -> int:
    given = [_at_home(each) for each in (sys.argv[1:] if argv is None else argv)]
    if not sys.stderr.isatty():  # transformers reads it on import: no progress bars for loading and saving weights
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if given and given[0] in _CONFIGURED and {"-h", "--help"} & set(given[1:]):
        print(_help_of(given[0]))
        return 0
    if given and given[0] in _WITH_FLAGS:
        arguments = argparse.Namespace(command=given[0], overrides=given[1:], config_dir=[])
    else:
        arguments = _read(given)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for folder in arguments.config_dir:
        if not Path(folder).is_dir():
            return _fail(f"--config-dir {folder}: no such folder")
    try:
        with loader_failures_told(), disk_trouble_told():
            return COMMANDS[arguments.command][0](arguments.overrides, tuple(arguments.config_dir))
    except UserError as error:
        return _fail(str(error))
    except LoaderError as error:
        print(f"{OWN_MESSAGE}{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        if own_rank() is None:  # else the process that started the ranks prints it
            print("interrupted; repeat the command to continue", file=sys.stderr)
        return INTERRUPTED


def _at_home(argument: str) -> str:
    """Return a flag's path with `~` expanded. A shell expands `~` only at the start of a word, not in --flag=~/here."""
    flag, equals, value = argument.partition("=")
    is_place = flag.startswith("--") and flag != "--question"
    return f"{flag}{equals}{os.path.expanduser(value)}" if is_place else argument


def _read(given: list[str]) -> argparse.Namespace:
    parser = _parser()
    arguments = parser.parse_intermixed_args(given)
    if arguments.strict and arguments.command != "train":
        parser.error(f"{arguments.command} takes no --strict; allowed are train and plan")
    if arguments.strict:
        arguments.overrides.append(_STRICT)
    return arguments


def _fail(message: str) -> int:
    print(f"{OWN_MESSAGE}{' '.join(message.split())}", file=sys.stderr)
    return 2


def _train(overrides: list[str], config_dirs: tuple[str, ...]) -> int:
    from llava_mini.commands.run_folder import claim
    from llava_mini.config import resolve

    strict, overrides = _STRICT in overrides, [override for override in overrides if override != _STRICT]
    config = resolve(overrides, config_dirs)
    count, num_nodes, rank = config.trainer.devices, config.trainer.num_nodes, own_rank()
    run_dir = Path(config.run_dir)
    if num_nodes > 1 and rank is None:
        raise UserError(f"trainer.num_nodes={num_nodes}: begin the run on each by torchrun -m llava_mini train ...")
    if rank is None and claim(run_dir, config):
        from llava_mini.commands.tracked import send_waiting

        if config.tracking.enabled:
            send_waiting(run_dir)
        return 0
    if strict and not rank:
        from llava_mini.commands.planned import check_fits

        check_fits(config)
    if count > 1 and rank is None:
        from llava_mini.build import check_training

        check_training(config)  # once here, before every rank loads everything only to find the same mistake
        return run_ranks([*train_command(config_dirs), *overrides], count, run_dir)
    if rank:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # rank 0 shuts down cleanly, and then all ranks are stopped
    from llava_mini.commands.lost_rank import LostRankError
    from llava_mini.commands.out_of_memory import RunOutOfMemoryError
    from llava_mini.commands.train import train
    from llava_mini.stages.base import NonFiniteLossError

    try:
        train(config)
    except (NonFiniteLossError, RunOutOfMemoryError, LostRankError) as error:
        print(f"{OWN_MESSAGE}{error}", file=sys.stderr)
        return 1
    return 0


def _world(overrides: list[str], config_dirs: tuple[str, ...]) -> int:
    from llava_mini.commands.world import make_tiny_world

    make_tiny_world(overrides, config_dirs)
    return 0


def _config(overrides: list[str], config_dirs: tuple[str, ...]) -> int:
    import yaml

    from llava_mini.config import resolve

    config = resolve(overrides, config_dirs)
    print(yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=writes_any_text()), end="")
    return 0


def _sweep(arguments: list[str], config_dirs: tuple[str, ...]) -> int:
    from llava_mini.commands.sweep import sweep

    return sweep(arguments, config_dirs)


def _compare(arguments: list[str], _config_dirs: tuple[str, ...]) -> int:
    from llava_mini.commands.sweep import DEFAULT_FOLDER
    from llava_mini.sweep.report import compare

    if len(arguments) > 1:
        raise UserError(f"compare {' '.join(arguments)}: takes one folder of a sweep")
    compare(Path(arguments[0] if arguments else DEFAULT_FOLDER))
    return 0


def _data(arguments: list[str], _config_dirs: tuple[str, ...]) -> int:
    from llava_mini.commands.data import data

    return data(arguments)


def _merge(arguments: list[str], _config_dirs: tuple[str, ...]) -> int:
    from llava_mini.commands.merge import merge

    return merge(arguments)


def _bench(arguments: list[str], _config_dirs: tuple[str, ...]) -> int:
    from llava_mini.commands.bench import bench

    return bench(arguments)


def _plan(arguments: list[str], config_dirs: tuple[str, ...]) -> int:
    from llava_mini.commands.plan import plan

    return plan(arguments, config_dirs)


def _doctor(arguments: list[str], _config_dirs: tuple[str, ...]) -> int:
    from llava_mini.commands.doctor import doctor

    return doctor(arguments)


def _convert(arguments: list[str], _config_dirs: tuple[str, ...]) -> int:
    from llava_mini.commands.convert import convert

    return convert(arguments)


def _ask(arguments: list[str], _config_dirs: tuple[str, ...]) -> int:
    from llava_mini.commands.ask import ask

    return ask(arguments)


def _chat(arguments: list[str], _config_dirs: tuple[str, ...]) -> int:
    from llava_mini.commands.chat import chat

    return chat(arguments)


def _batch(arguments: list[str], _config_dirs: tuple[str, ...]) -> int:
    from llava_mini.commands.batch import batch

    return batch(arguments)


def _completion(arguments: list[str], _config_dirs: tuple[str, ...]) -> int:
    from llava_mini.commands.completion import completion

    return completion(arguments, list(COMMANDS), [name for name in _CONFIGURED if name != "compare"] + ["plan"])


def _mlflow(arguments: list[str], _config_dirs: tuple[str, ...]) -> int:
    from llava_mini.commands.mlflow import mlflow

    return mlflow(arguments)


COMMANDS: dict[str, tuple[Command, str]] = {
    "train": (_train, "one run: train, evaluate, write result.json in run_dir"),
    "plan": (_plan, "memory of a run's step, whether it fits the card, what saves"),
    "sweep": (_sweep, "many runs: key=value,value,... for any config key, sweep_dir=FOLDER; ends with compare"),
    "compare": (_compare, "table, plots and report.html of a sweep's folder"),
    "mlflow": (_mlflow, "all runs in a browser, and the charts of the latest sweep"),
    "world": (_world, "make the toy world's data and pre-trained parts again"),
    "config": (_config, "print the resolved config of a run"),
    "data": (_data, "LLaVA JSON, images and videos to shards; their check, their counts"),
    "convert": (_convert, "weights of LLaVA and of the official release to ours, and back"),
    "merge": (_merge, "a run with adapters as one plain model: llava-mini merge RUN DST"),
    "ask": (_ask, "answer questions about images and videos"),
    "chat": (_chat, "the same in the terminal, with history: llava-mini chat MODEL"),
    "batch": (_batch, "many requests from a file, batched, resumable"),
    "bench": (_bench, "measure this program on this machine"),
    "completion": (_completion, 'for your shell: eval "$(llava-mini completion bash)", or zsh'),
    "doctor": (_doctor, "what is installed, whether it drives the card found, what to install instead"),
}
# Commands that parse their own --flags instead of a config's key=value.
_WITH_FLAGS = ("plan", "mlflow", "data", "convert", "merge", "ask", "chat", "batch", "bench", "doctor")
_STRICT = "--strict"
# Commands that read a config, and what their own --help says first.
_CONFIGURED = {
    "train": """usage: llava-mini [--config-dir FOLDER] train [--strict] [key=value ...]

Trains one run, evaluates it on validation and test, and writes result.json and the model to run_dir. A run that was
interrupted or killed continues when the command is repeated. --strict ends with status 2 before anything is loaded if,
as planned, a step does not fit the card.

  llava-mini train compressor.C=4 run_dir=runs/mine
  llava-mini train compressor=avg_pool fusion.num_layers=0 trainer.max_steps=600""",
    "sweep": """usage: llava-mini [--config-dir FOLDER] sweep [key=value,value,... ...] [sweep_dir=FOLDER]

Trains every combination of the given values, each as a run of its own, and compares them. The reference (all patches,
no pre-fusion) is added. Finished runs are kept; repeat the command to continue, or to add values.

  llava-mini sweep compressor.C=1,4 seed=0,1,2
  llava-mini sweep compressor=query,avg_pool fusion.num_layers=0,4 seed=0,1,2 sweep_dir=sweeps/mine""",
    "compare": """usage: llava-mini compare [FOLDER]

Writes table, plots, report.html, results.csv and results.json of a sweep again. FOLDER is the default sweep's if it is
left out.""",
    "world": """usage: llava-mini world [key=value ...]

Makes the three checkpoints of the toy world again from the seed: vision tower, aligned and uncompressed model.""",
    "config": """usage: llava-mini [--config-dir FOLDER] config [key=value ...]

Prints the config that a run would use, and trains nothing.""",
}
_HEADINGS = {
    "prepare": ("data", "convert", "world", "doctor", "completion"),
    "train": ("train", "plan", "merge"),
    "compare": ("sweep", "compare", "mlflow", "config"),
    "use": ("ask", "chat", "batch"),
    "measure": ("bench",),
}
_VALUES = r"""values (key=value of train, plan, sweep, world, config):
  "run_dir=~/runs/lr=1e-4 (1)"   a path, name or URI as it is typed; ~ is a home, ${key} the value of another key
  seed=3 data.features=false     numbers, true and false
  data.cache_dir=null            none
  "model.weights=[~/a, b=1]"     a list; paths and names in it are as they are typed, but for commas
  "data.splits.train={a: 0.9, b: 0.1}"  names of letters, digits and . / - _, with a value each
  'tracking.experiment="a, b"'   text in quotes of its own within the shell's: where a sweep would read two values,
                                 where text would be null, and for other keys if it has other characters than those"""


def _help_of(command: str) -> str:
    """Return the --help of a command that reads a config."""
    if command == "compare":
        return _CONFIGURED[command]
    from llava_mini.config.reference import help_text

    return f"{_CONFIGURED[command]}\n\n{help_text()}\n\n{_VALUES}"


def _parser() -> argparse.ArgumentParser:
    listing = "\n".join(
        "\n".join([f" {heading}", *(f"  {name:<10} {COMMANDS[name][1]}" for name in names)])
        for heading, names in _HEADINGS.items()
    )
    parser = argparse.ArgumentParser(
        prog="llava-mini",
        description="Train, compare and ask LLaVA-Mini models.",
        epilog=f"commands (each has its own --help):\n{listing}\n\n{_VALUES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config-dir", action="append", default=[], help="a further folder with config groups and code"
    )
    parser.add_argument(_STRICT, action="store_true", help="train: status 2 when, as planned, it does not fit the card")
    parser.add_argument("command", choices=COMMANDS, metavar="command", help="see below")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="config values, see below")
    return parser
