"""`llava-mini data build|check|stats|features`: LLaVA JSON to shards, checks and counts of shards, stored features."""

from __future__ import annotations

import argparse
import sys
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path

from llava_mini.command_line.parser import Parser, at_least
from llava_mini.data.building.workers import WorkerDiedError
from llava_mini.data.format.shard_set import ShardSet
from llava_mini.data.format.shards import is_complete
from llava_mini.errors import UserError, named_as
from llava_mini.media.images import WHITE, Color, color_of
from llava_mini.processes import cores

_BUILD = """\
Packs JSON (an array) or JSON Lines of conversations and the images and videos that they name into shards: standard
WebDataset tars with an index, from which training reads in any order. Records are LLaVA's, LLaMA-Factory's (sharegpt,
alpaca), ms-swift's or OpenAI's messages; docs/data.md shows each.

The records are shuffled once, by --seed. Images are decoded once to see that they are whole, and stored as they are
(or smaller, with --resize). Videos become JPEG frames: the middles of equal parts, --fps of them for a second. What
cannot be used is left out and listed with its reason, and keys that are not read are counted. Repeat the command to
continue after an interruption."""

_EXAMPLES = """\
examples:
  llava-mini data build llava_v1_5_mix665k.json --images images --out data/mix665k
  llava-mini data build blip_laion_cc_sbu_558k.json --images images --resize 336 --out data/captions
  llava-mini data build video.json text.jsonl --videos clips --out data/video --workers 32

On several machines that share the folders, each builds a part; here as a SLURM array of 16:
  #SBATCH --array=0-15
  llava-mini data build mix.json --images images --out data/mix --task $SLURM_ARRAY_TASK_ID --of 16"""

_CHECK = """\
Reads a shard set whole: checksums, every image, every conversation and the supervised tokens. Fails (exit
status 1) when a file is damaged, or when there is nothing to supervise in more than 1 % of the samples."""

_STATS = """\
Counts samples by modality and source, turns, characters and frames, and draws them as stats.png."""


_BUILD_FLAGS = (
    "images", "videos", "out", "seed", "samples_per_shard", "resize", "fps", "strict", "workers", "task", "of",
)  # fmt: skip


def data(arguments: list[str], _config_dirs: tuple[str, ...] = ()) -> int:
    """Run a subcommand, and return 1 if a shard set does not pass its check or a process was killed.

    Raises:
        UserError: a mistake in the arguments or in what they name.
    """
    if arguments[:1] == ["features"]:  # it takes config values too
        from llava_mini.commands.data_features import features

        return features(arguments[1:])
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except WorkerDiedError as error:
        return _fail(
            f"the process of shard {error.task} died, {error.cause} (not enough memory for so many --workers?)."
            " Repeat the command: what is complete is not done again"
        )


def _fail(message: str) -> int:
    print(f"llava-mini: {message}", file=sys.stderr)
    return 1


@named_as({name: f"--{name.replace('_', '-')}" for name in _BUILD_FLAGS})
def _build(options: argparse.Namespace) -> int:
    from llava_mini.data.building.plan import Options
    from llava_mini.data.building.run import build_part

    if (options.task is None) != (options.of is None):
        raise UserError("--task and --of go together, as in --task 0 --of 16", key="--task", value=options.task)
    chosen = Options(
        options.images, options.videos, options.seed, options.samples_per_shard, options.resize, options.fps,
        options.follow_links, options.strict, options.fetch, options.background,
    )  # fmt: skip
    task, of = (0, 1) if options.task is None else (options.task, options.of)
    build_part(options.source, options.out, chosen, workers=options.workers, task=task, of=of)
    return 0


def _check(options: argparse.Namespace) -> int:
    from llava_mini.data.inspection.check import check_set, finding_lines, report_to

    try:
        shards = ShardSet(options.folder)
    except UserError as error:
        if is_complete(Path(options.folder)):  # complete but unreadable, so it is damaged
            return _fail(str(error))
        raise
    folder = options.tokenizer or _default_tokenizer()
    with named_as({"template": "--template", "tokenizer": "--tokenizer", "path": "--report"}):
        tokenize = None
        if folder is not None:
            from llava_mini.data.text.labels import tokenizer_in  # imports torch

            tokenize = tokenizer_in(folder, options.template, options.image_tokens, options.max_length)
        with report_to(options.report) as on_bad:
            found = check_set(shards, tokenize, workers=options.workers, on_bad=on_bad)
    print("\n".join(finding_lines(shards, found)))
    if options.tokenizer is None:
        counted = "supervised tokens were not counted" if folder is None else f"tokens are those of {folder}"
        print(f"{counted}; --tokenizer names your model's")
    failure = found.failure()
    return _fail(f"{shards.folder}: {failure}") if failure else 0


def _default_tokenizer() -> Path | None:
    """Return the folder of a run's default tokenizer, or None if it does not exist from the current folder."""
    from llava_mini.config import resolve

    folder = Path(resolve([]).model.tokenizer)
    return folder if (folder / "tokenizer_config.json").is_file() else None


def _stats(options: argparse.Namespace) -> int:
    from llava_mini.data.inspection.stats import statistics, statistics_lines
    from llava_mini.data.inspection.stats_plot import draw

    shards = ShardSet(options.folder)
    found = statistics(shards, options.workers)
    print("\n".join(statistics_lines(shards, found)))
    with named_as({"out": "--out"}):
        draw(shards, found, options.out / "stats.png")
    print(f"\ndrawn in {options.out / 'stats.png'}")
    return 0


def _parser() -> ArgumentParser:
    parser = Parser(prog="llava-mini data", description="Shard sets: make them, check them, count.")
    commands = parser.add_subparsers(required=True, metavar="command", title="commands")

    def add(
        name: str, run: Callable[[argparse.Namespace], int], summary: str, about: str, more: str = ""
    ) -> ArgumentParser:
        command = commands.add_parser(
            name, help=summary, description=about, epilog=more, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        command.set_defaults(run=run)
        return command

    _add_build_options(add("build", _build, "LLaVA JSON, images and videos to a shard set", _BUILD, _EXAMPLES))
    _add_check_options(add("check", _check, "read a shard set again, whole", _CHECK))
    _add_stats_options(add("stats", _stats, "count what is in a shard set", _STATS))
    commands.add_parser("features", help="store the frozen vision tower's features of a shard set", add_help=False)
    return parser


def _add_build_options(parser: ArgumentParser) -> None:
    parser.add_argument("source", nargs="+", type=Path, metavar="SOURCE", help="JSON or JSON Lines of LLaVA records")
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder of the images that records name")
    parser.add_argument("--videos", type=Path, metavar="DIR", help="folder of the videos that records name")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the set; made if missing")
    parser.add_argument("--seed", type=int, default=0, help="of the shuffle (default: 0)")
    parser.add_argument("--samples-per-shard", type=int, default=1000, metavar="N", help="(default: 1000)")
    parser.add_argument(
        "--resize", type=int, metavar="N",
        help="store images with a shorter side of N pixels at most: 8 times faster to read at 336, but pixels shift"
        " by about 3/255 against resizing the original (default: images as they are, frames at most 336)",
    )  # fmt: skip
    parser.add_argument("--fps", type=float, default=1.0, metavar="F", help="frames of a second of video (default: 1)")
    parser.add_argument(
        "--background", type=_color, default=WHITE, metavar="R,G,B",
        help="behind transparent parts of videos, and of images that are not stored as they are (default: 255,255,255,"
        " white); those of other images are put on data.background of a run",
    )  # fmt: skip
    parser.add_argument(
        "--follow-links", action="store_true", help="links in these folders may lead out of them, as to another disk"
    )
    parser.add_argument(
        "--fetch", type=Path, metavar="DIR",
        help="download files that records name by http(s) URL into this folder, where they stay; only from public"
        " addresses, 1 GiB and 10 minutes a file at most (default: such records are rejected)",
    )  # fmt: skip
    parser.add_argument(
        "--strict", action="store_true", help="end (status 2) at the first record that cannot be used, and name it"
    )
    _add_workers(parser)
    parser.add_argument("--task", type=int, metavar="I", help="build only part I (from 0) ...")
    parser.add_argument("--of", type=int, metavar="N", help="... of N; the last to finish completes the set")


def _color(text: str) -> Color:
    try:
        return color_of([int(part) for part in text.split(",")])
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}; allowed are R,G,B, each from 0 to 255") from None


def _add_check_options(parser: ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="a shard set: a folder or a URL (s3://..., https://...)")
    parser.add_argument(
        "--tokenizer", type=Path, metavar="DIR", help="of the model that is to be trained (default: the config's)"
    )
    parser.add_argument(
        "--template", default="vicuna_v1", metavar="NAME",
        help="how conversations are written out, as data.template of a run (default: vicuna_v1)",
    )  # fmt: skip
    parser.add_argument(
        "--max-length", type=at_least(1), default=4096, metavar="N", help="tokens of a sample (default: 4096)"
    )
    parser.add_argument(
        "--image-tokens", type=at_least(0), default=1, metavar="N", help="tokens of an image (default: 1)"
    )
    parser.add_argument("--report", type=Path, metavar="FILE", help="write all bad samples there, as JSON Lines")
    _add_workers(parser)


def _add_stats_options(parser: ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="a shard set: a folder or a URL (s3://..., https://...)")
    parser.add_argument("--out", type=Path, default=Path(), metavar="DIR", help="where stats.png goes (default: here)")
    _add_workers(parser)


def _add_workers(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--workers",
        type=at_least(1),
        default=cores(),
        metavar="N",
        help=f"processes (default: one a core, here {cores()})",
    )
