"""`llava-mini bench`: measure this program and write the results.

Studies of a GPU run where only torch and transformers are installed, so nothing here imports more.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from llava_mini.command_line.parser import Parser, at_least
from llava_mini.errors import UserError, named_as, refused
from llava_mini.tracking.mlflow import check_installed

_DATA = """\
Makes JPEGs and conversations, and measures reading them as a run does, against a LLaVA-style loader (JSON in memory,
files, Pillow, floats) and against WebDataset; opening a set of three million samples; and building shards. Needs
1.3 GB in the folder for temporary files (TMPDIR) and, with the defaults, about ten minutes."""
_FLOPS = """\
Counts the FLOPs of a first token by part while the models' code runs on tensors that hold nothing, at real sizes:
LLaVA, LLaVA-Mini in the official release's order of work and with everything left out that no answer needs, images, HD
images and videos, first and follow-up questions. As in the paper `flops` leaves out what attention multiplies besides
weights, but in the vision tower; `flops_with_attention` has it all. Takes about a minute."""
_MEMORY = """\
Bytes of an image and of a session of 10,000 frames at 7B and 8B, by arithmetic; and the peak memory of small models
against the number of frames, a process a point. Takes a few minutes. --device cuda is another study, with other flags:
training steps."""
_LATENCY = """\
Measures, on this machine's CPU and in one process on the same weights: transformers' LLaVA, ours without compression,
LLaVA-Mini in the official release's order of work, and ours. A mid-size shape with random weights: first and further
tokens, batches, a video of 16 frames, follow-up questions; interleaved rounds; against the peak of large products.
With the defaults it takes about ten minutes on a core that does nothing else. --device cuda has other flags."""
_TRAIN = """\
Measures training steps on this machine's CPU in one process: transformers' LLaVA in a plain loop, and ours without
compression, with query compression to 1 and 16 tokens, and from stored features; in the toy world and in the shape of
`bench latency`, random weights. Making the batch, the forward and the backward pass and the optimizer are on clocks of
their own; rounds are interleaved. Needs 12 GB of memory and, with the defaults, about fifteen minutes on a core that
does nothing else."""
_GPU_MEMORY = """\
Trains real shapes with random weights for a few steps on this machine's GPU, each in a process with the memory of a
smaller card, and compares the peaks with what `llava-mini plan` plans. Takes under eight minutes; needs no more than
torch, transformers, peft and bitsandbytes."""
_GPU_LATENCY = """\
Measures on this machine's GPU, at the 7B shape with random weights: first and further tokens, batches, HD images,
videos, follow-up questions; 10,000 frames within the memory of a 24 GB card; decoding with a static cache, compiled and
not. Takes under eight minutes; needs no more than torch and transformers."""
_EFFICIENCY = "experiments/006-efficiency"
_UNTRACKED = "--no-mlflow"

_COUNT: dict[str, Any] = {"type": at_least(1), "metavar": "N"}
_ROUNDS = {"--rounds": {**_COUNT, "default": 5, "help": "of all measurements (default: 5)"}}
_THREADS = {"--threads": {**_COUNT, "default": 1, "help": "of torch (default: 1)"}}
_ON_GPU: dict[str, dict[str, Any]] = {
    "--seconds": {"type": float, "default": 450, "help": "nothing runs for longer than this in all"},
    "--tiny": {"action": "store_true", "help": "tiny shapes on the CPU: the command is tried, no GPU measured"},
}


@dataclass(frozen=True)
class Study:
    """A study: `llava_mini.bench.MODULE.study` yields its report, again after everything that takes long.

    `study` gets the values of its flags, but for torch's threads and `json`.
    """

    module: str
    help: str  # the study in a few words
    description: str  # the study in some sentences
    out: str  # default folder of the report
    files: tuple[str, ...]  # Markdown, JSON and, if there is one, the plot
    flags: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # for argparse
    packages: tuple[str, ...] = ()  # needed and noted besides torch and transformers
    tracked: bool = True  # whether MLflow gets the metrics


def _files(name: str) -> tuple[str, ...]:
    return f"{name}.md", f"{name}.json", f"{name}.png"


_STUDIES = {
    ("data", "cpu"): Study(
        "data_path", "the data path against other loaders", _DATA, "experiments/003-data-path",
        ("table.md", "results.json", "data_path.png"),
        {"--samples": {**_COUNT, "default": 2000, "help": "made and read (default: 2000)"}, **_ROUNDS},
        ("tokenizers", "pillow", "simplejpeg", "webdataset", "numpy"), tracked=False,
    ),
    ("flops", "cpu"): Study(
        "flops", "FLOPs by part at real sizes", _FLOPS, _EFFICIENCY, _files("flops"),
        {
            "--json": {"action": "store_true", "help": "print a JSON list of rows and write nothing"},
            "--text-tokens": {**_COUNT, "metavar": "T", "default": 40, "help": "of the prompt (default: 40)"},
        },
    ),
    ("memory", "cpu"): Study(
        "memory", "memory of images, frames and sessions", _MEMORY, _EFFICIENCY, _files("memory")
    ),
    ("latency", "cpu"): Study(
        "latency", "seconds to first and further tokens", _LATENCY, _EFFICIENCY, _files("latency"),
        {**_ROUNDS, **_THREADS},
    ),
    ("train", "cpu"): Study(
        "train", "samples a CPU-second of training steps, by part", _TRAIN, "experiments/008-training-speed",
        _files("train"),
        {"--rounds": {**_COUNT, "default": 5, "help": "of the mid-size shape; tiny: 8 times (default: 5)"}, **_THREADS},
    ),
    ("memory", "cuda"): Study(
        "step_memory", "memory of training steps against the plan", _GPU_MEMORY, "experiments/005-gpu",
        ("table.md", "results.json"), _ON_GPU, ("peft", "bitsandbytes"), tracked=False,
    ),
    ("latency", "cuda"): Study(
        "gpu_latency", "seconds to first and further tokens", _GPU_LATENCY, _EFFICIENCY, ("gpu.md", "gpu.json"),
        _ON_GPU, tracked=False,
    ),
}  # fmt: skip
"""Studies by command and device."""

_LONGEST = 24 * 3600  # seconds


def bench(arguments: list[str], _config_dirs: tuple[str, ...] = ()) -> int:
    """Run a benchmark, and return 1 if something was not measured.

    Raises:
        UserError: a mistake in the arguments, a package is missing, or there is no GPU that can be measured.
    """
    options = _parser(arguments).parse_args(arguments)
    study: Study = options.study
    names = [flag.strip("-").replace("-", "_") for flag in study.flags if flag not in ("--threads", "--json")]
    values = {name: getattr(options, name) for name in names}
    if options.mlflow and not options.json:
        check_installed(f"bench {options.command}", _UNTRACKED)
    card = _card(study, **values) if options.device == "cuda" else None
    try:
        import torch

        from llava_mini.bench.report import check_folder, circumstances, track

        module = import_module(f"llava_mini.bench.{study.module}")
        if options.json:
            [report] = module.study(**values)
            print(json.dumps(report.figures["rows"], indent=1))
            return 0
        with named_as({"out": "--out"}):
            check_folder(options.out)
        torch.set_num_threads(options.threads or torch.get_num_threads())
        about = circumstances(("torch", "transformers", *study.packages), card)
    except ModuleNotFoundError as error:
        raise UserError(f"bench {options.command} needs {error.name}: pip install 'llava-mini-lab[bench]'") from None
    for report in module.study(**values):
        shown = report.write(options.out, study.files, about)
    if options.mlflow:
        track(options.command, about, report.metrics)
    print(f"{shown}\nwritten to {options.out}")
    return 0 if report.complete else 1


def _card(study: Study, seconds: float, tiny: bool) -> str:
    """Check that a GPU can be measured and return its description.

    Raises:
        UserError: `seconds` is out of range, a package is missing, there is no GPU, or this torch does not support it.
    """
    from llava_mini.finetune.packages import require
    from llava_mini.hardware import card_to_measure

    if not 0 <= seconds <= _LONGEST:  # also refuses NaN
        raise refused("--seconds", seconds, given=f"--seconds {seconds:g}", allowed=f"0 to {_LONGEST}")
    for package in study.packages:
        require(package, "training steps")
    return "CPU, tiny shapes: no figure of it means anything" if tiny else str(card_to_measure())


def _parser(arguments: list[str]) -> Parser:
    """Return the parser of the studies of the device that the arguments name."""
    first = Parser(prog="llava-mini bench", add_help=False)
    first.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="what is measured (default: cpu)")
    device = first.parse_known_args(arguments)[0].device
    parser = Parser(prog="llava-mini bench", description="Measures this program on this machine.")
    commands = parser.add_subparsers(required=True, metavar="command", title="commands", dest="command")
    for (name, where), study in _STUDIES.items():
        if where != device:
            continue
        command = commands.add_parser(name, help=study.help, description=study.description, parents=[first])
        command.set_defaults(study=study, json=False, threads=None, mlflow=False)
        for flag, described in study.flags.items():
            command.add_argument(flag, **described)
        where_to = f"where {', '.join(study.files[:-1])} and {study.files[-1]} go (default: {study.out})"
        command.add_argument("--out", type=Path, default=Path(study.out), metavar="DIR", help=where_to)
        if study.tracked:
            described = {"action": "store_false", "default": True, "help": "log nothing to MLflow"}
            command.add_argument(_UNTRACKED, dest="mlflow", **described)
    return parser
