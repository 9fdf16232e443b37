"""`llava-mini bench`: measure this program and write the results."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path

from llava_mini.commands.numbers import at_least
from llava_mini.commands.parser import Parser
from llava_mini.errors import UserError
from llava_mini.run.provenance import git_commit
from llava_mini.tracking.mlflow import check_installed

_DATA = """\
Makes JPEGs and conversations, and measures reading them as a run does against the usual loader (JSON in memory, a file
an image, Pillow, floats) and against WebDataset; opening a set of three million samples; and building shards. Needs
1.3 GB in the folder for temporary files (TMPDIR) and, with the defaults, about ten minutes."""
_FLOPS = """\
Counts the FLOPs of a first token by part (vision tower, compressor, projector, pre-fusion, language model) while the
models' code runs on tensors that hold nothing, at real sizes: LLaVA, LLaVA-Mini in the official release's order of
work and with everything left out that no answer needs, images, HD images and videos, first and later questions. As in
the paper `flops` leaves out what attention multiplies besides weights, but in the vision tower;
`flops_with_attention` has it all. Takes about half a minute."""
_MEMORY = """\
Bytes of an image and of a session of 10,000 frames at 7B and 8B, by arithmetic; and the peak memory of small models
against the number of frames, a process a point. Takes a few minutes."""
_LATENCY = """\
Measures, on this machine's CPU and in one process on the same weights: transformers' LLaVA, ours without compression,
LLaVA-Mini in the official release's order of work, and ours. A mid-size shape with random weights: first and further
tokens, batches, a video of 16 frames, later questions; interleaved rounds; against the peak of large matrix products.
With the defaults it takes about ten minutes on a core that does nothing else."""
_TRAIN = """\
Measures training steps on this machine's CPU in one process: transformers' LLaVA in a plain loop, and ours without
compression, with query compression to 1 and 16 tokens, and from stored features; in the toy world and in the shape of
`bench latency`, random weights. Making the batch, the forward and the backward pass and the optimizer are on clocks of
their own; rounds are interleaved. Needs 12 GB of memory and, with the defaults, about fifteen minutes on a core that
does nothing else."""
_EFFICIENCY = Path("experiments/006-efficiency")
_UNTRACKED = "--no-mlflow"


def bench(arguments: list[str], _config_dirs: tuple[str, ...] = ()) -> int:
    """Run a benchmark.

    Returns:
        The exit status.

    Raises:
        UserError: a mistake in the arguments, or a library is missing.
    """
    options = _parser().parse_args(arguments)
    return int(options.run(options))


def _data(options: argparse.Namespace) -> int:
    try:
        from llava_mini.bench.data_path import run
        from llava_mini.bench.plot import draw
        from llava_mini.bench.record import circumstances
        from llava_mini.bench.report import LIBRARIES, table, write_report

        about = circumstances(git_commit(), LIBRARIES)
    except ModuleNotFoundError as error:
        raise UserError(f"bench data needs {error.name}: pip install 'llava-mini-lab[bench]'") from None
    with tempfile.TemporaryDirectory(prefix="llava-mini-bench-") as work:
        found = run(Path(work), options.samples, options.rounds)
    write_report(found, options.out, about)
    draw(found, options.out / "data_path.png")
    print(f"{table(found, about)}\nwritten to {options.out}")
    return 0


def _memory(options: argparse.Namespace) -> int:
    if options.mlflow:
        check_installed("bench memory", _UNTRACKED)
    from llava_mini.bench.memory import all_session_plans, visual_states
    from llava_mini.bench.memory_report import metrics, write_memory
    from llava_mini.bench.peak_memory import measure
    from llava_mini.bench.record import circumstances, track

    about, plans, points = circumstances(git_commit()), all_session_plans(), measure()
    shown = write_memory(options.out, visual_states(), plans, points, about)
    if options.mlflow:
        track("memory", about, metrics(plans, points))
    print(f"{shown}\nwritten to {options.out}")
    return 0


def _flops(options: argparse.Namespace) -> int:
    if options.mlflow and not options.json:
        check_installed("bench flops", _UNTRACKED)
    from llava_mini.bench.flop_rows import rows, table
    from llava_mini.bench.flops_plot import draw
    from llava_mini.bench.record import circumstances, circumstances_text, track, write

    found = rows(options.text_tokens)
    if options.json:
        print(json.dumps(found, indent=1))
        return 0
    about = {**circumstances(git_commit()), "text_tokens": options.text_tokens}
    shown = f"{circumstances_text(about)}\nT = {options.text_tokens} text tokens.\n\n{table(found)}"
    write(options.out, "flops", {"about": about, "rows": found}, shown)
    draw(found, options.out / "flops.png")
    if options.mlflow:
        names = ("model", "resolution", "frames", "order")
        metrics = {
            ".".join([*(str(row[name]) for name in names), *(["later"] if row["cached"] else [])]): row["flops"]
            for row in found
        }
        track("flops", about, metrics)
    print(f"{shown}\nwritten to {options.out}")
    return 0


def _latency(options: argparse.Namespace) -> int:
    if options.mlflow:
        check_installed("bench latency", _UNTRACKED)
    import torch

    from llava_mini.bench.latency import Setting, mid_size, run
    from llava_mini.bench.latency_report import draw, figures, metrics, table
    from llava_mini.bench.record import circumstances, circumstances_text, track, write

    torch.set_num_threads(options.threads)
    about = circumstances(git_commit())
    found = run(mid_size(), Setting(), options.rounds)
    shown = f"{circumstances_text(about)}\n{table(found)}"
    write(options.out, "latency", {"about": about, **figures(found)}, shown)
    draw(found, options.out / "latency.png")
    if options.mlflow:
        track("latency", about, metrics(found))
    print(f"{shown}\nwritten to {options.out}")
    return 0


def _train(options: argparse.Namespace) -> int:
    if options.mlflow:
        check_installed("bench train", _UNTRACKED)
    import torch

    from llava_mini.bench.record import circumstances, circumstances_text, track, write
    from llava_mini.bench.training import run
    from llava_mini.bench.training_report import draw, figures, metrics, table

    torch.set_num_threads(options.threads)
    about = {**circumstances(git_commit()), "load": round(os.getloadavg()[0], 1)}
    with tempfile.TemporaryDirectory(prefix="llava-mini-bench-") as work:
        found = run(Path(work), options.rounds)
    busy = f"Processes that ran or waited on the {about['cores']} cores when it began: {about['load']} on average."
    shown = f"{circumstances_text(about)} {busy}\n\n{table(found)}"
    write(options.out, "train", {"about": about, "shapes": figures(found)}, shown)
    draw(found, options.out / "train.png")
    if options.mlflow:
        track("train", about, metrics(found))
    print(f"{shown}\nwritten to {options.out}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="llava-mini bench", description="Measures this program on this machine.")
    commands = parser.add_subparsers(required=True, metavar="command", title="commands")
    data = commands.add_parser("data", help="the data path against the usual ways", description=_DATA)
    data.set_defaults(run=_data)
    data.add_argument("--samples", type=at_least(1), default=2000, metavar="N", help="made and read (default: 2000)")
    data.add_argument("--rounds", type=at_least(1), default=5, metavar="N", help="of all measurements (default: 5)")
    data.add_argument(
        "--out", type=Path, default=Path("experiments/003-data-path"), metavar="DIR",
        help="where table.md, results.json and data_path.png go (default: experiments/003-data-path)",
    )  # fmt: skip
    flops = commands.add_parser("flops", help="FLOPs by part at real sizes", description=_FLOPS)
    flops.set_defaults(run=_flops)
    flops.add_argument("--json", action="store_true", help="print a JSON list of rows and write nothing")
    flops.add_argument("--text-tokens", type=at_least(1), default=40, metavar="T", help="of the prompt (default: 40)")
    _add_out(flops, "flops")
    _add_mlflow(flops)
    memory = commands.add_parser("memory", help="memory of images, frames and sessions", description=_MEMORY)
    memory.set_defaults(run=_memory)
    _add_out(memory, "memory")
    _add_mlflow(memory)
    latency = commands.add_parser("latency", help="seconds to first and further tokens", description=_LATENCY)
    latency.set_defaults(run=_latency)
    latency.add_argument("--rounds", type=at_least(1), default=5, metavar="N", help="of all measurements (default: 5)")
    latency.add_argument("--threads", type=at_least(1), default=1, metavar="N", help="of torch (default: 1)")
    _add_out(latency, "latency")
    _add_mlflow(latency)
    train = commands.add_parser("train", help="samples a CPU-second of training steps, by part", description=_TRAIN)
    train.set_defaults(run=_train)
    train.add_argument(
        "--rounds", type=at_least(1), default=5, metavar="N", help="of the mid-size shape; tiny: 8 times (default: 5)"
    )
    train.add_argument("--threads", type=at_least(1), default=1, metavar="N", help="of torch (default: 1)")
    _add_out(train, "train", Path("experiments/008-training-speed"))
    _add_mlflow(train)
    return parser


def _add_out(parser: argparse.ArgumentParser, name: str, folder: Path = _EFFICIENCY) -> None:
    parser.add_argument(
        "--out", type=Path, default=folder, metavar="DIR",
        help=f"where {name}.md, {name}.json and {name}.png go (default: {folder})",
    )  # fmt: skip


def _add_mlflow(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(_UNTRACKED, dest="mlflow", action="store_false", help="log nothing to MLflow")
