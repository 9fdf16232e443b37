"""Flags and functions that the question-answering commands share: which model answers, and how."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from llava_mini.command_line.parser import Parser, at_least, gibibytes, rate
from llava_mini.errors import UserError, named_as, refused
from llava_mini.files import is_url
from llava_mini.units import GIB

if TYPE_CHECKING:
    from PIL import Image

    from llava_mini.inference.media_source import Media
    from llava_mini.inference.session import Session
    from llava_mini.media.video import VideoReader
    from llava_mini.models import LlavaMiniForConditionalGeneration, LlavaMiniProcessor

    Source = tuple[Path, Image.Image] | VideoReader

# Of what errors of lower packages name.
FLAGS = {name: f"--{name.replace('_', '-')}" for name in ("device", "dtype", "max_new_tokens")}
FLAGS |= {"context_scaling.tokens": "--context", "context_scaling.kind": "--scaling"}
FLAGS |= {"count": "--frames", "kv_bits": "--kv-bits"}
LESS_MEMORY = "fewer frames, --keep-gib 0 or --kv-bits 8 need less"


def parser_for(command: str, description: str, epilog: str = "") -> argparse.ArgumentParser:
    """Return a parser with MODEL and the flags of every question-answering command."""
    parser = Parser(
        prog=f"llava-mini {command}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="folder or Hub id of a LLaVA-Mini model, runs/mine/model")
    parser.add_argument(
        "--max-new-tokens", type=at_least(1), default=256, metavar="N", help="of an answer at most (default: 256)"
    )
    parser.add_argument("--fps", type=rate, default=1.0, metavar="N", help="frames of a second of video (default: 1)")
    parser.add_argument("--frames", type=at_least(1), metavar="N", help="so many of every video, at equal distances")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 (default: auto)")
    parser.add_argument(
        "--dtype", help="float32, float16, bfloat16 (default: as saved; float32 on a CPU)", metavar="TYPE"
    )
    parser.add_argument(
        "--config-dir", action="append", default=[], metavar="DIR", help="folder with the model's own compressor"
    )
    parser.add_argument("--context", type=at_least(1), metavar="TOKENS", help="scale the model for so many tokens")
    parser.add_argument("--scaling", default="yarn", help="how: linear, dynamic, yarn (default: yarn)")
    parser.add_argument(
        "--kv-bits", type=int, choices=(8, 4),
        help="of what a session holds in the language model's cache (default: the model's type)",
    )  # fmt: skip
    return parser


@named_as(FLAGS)
def load_model(given: argparse.Namespace) -> tuple[LlavaMiniForConditionalGeneration, LlavaMiniProcessor]:
    """Load the model and processor that the command line names, scaled to its --context.

    Raises:
        UserError: MODEL is empty, or the model cannot be loaded or scaled to that context.
    """
    if not given.model.strip():
        allowed = "the folder and the Hub id of a model"
        raise UserError(f"MODEL is empty; allowed are {allowed}", key="MODEL", value=given.model, allowed=allowed)
    from transformers.utils import logging

    from llava_mini.inference.loading import load, model_fields
    from llava_mini.inference.long_context import extend_context

    logging.disable_progress_bar()
    if given.config_dir:
        from llava_mini.config import import_own

        for folder in given.config_dir:
            if not Path(folder).is_dir():
                raise refused("--config-dir", folder, "no such folder")
        compressor = model_fields(given.model).get("compressor") or {}
        import_own(str(compressor.get("_target_", "")), tuple(given.config_dir))
    model, processor = load(given.model, device=given.device, dtype=given.dtype)
    if given.context is not None:
        extend_context(model, given.context, given.scaling)
    return model, processor


def add_media(parser: argparse.ArgumentParser) -> None:
    """Add the flags for images and videos, which are read in the order in which they are given."""
    for kind in ("image", "video"):
        parser.add_argument(
            f"--{kind}", action="append", dest="shown", default=[], metavar="PATH",
            type=partial(lambda kind, path: (kind, path), kind),
            help="shown to the model; any number of times, of both kinds, in their order",
        )  # fmt: skip


def add_session(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say what a session starts from and what it stores."""
    parser.add_argument(
        "--session", type=Path, metavar="FILE", help="begin with what a session of this model saw, as --save wrote it"
    )
    parser.add_argument(
        "--save", type=Path, metavar="FILE", help="at the end write what was seen, to be asked again without it"
    )
    parser.add_argument(
        "--keep-gib", type=gibibytes, metavar="GIB",
        help="memory for keys and values that make follow-up questions cheap; frames beyond it are computed again for "
        "every question (default: a quarter of what is free)",
    )  # fmt: skip


def open_session(
    given: argparse.Namespace, model: LlavaMiniForConditionalGeneration, processor: LlavaMiniProcessor
) -> Session:
    """Open the session that the command line asks for.

    Raises:
        UserError: a value is not allowed, the --session file is not a session of this model, or the existing --save
            file is not a session.
    """
    from llava_mini.inference.frame_cache import FrameCacheConfig
    from llava_mini.inference.session import Session
    from llava_mini.inference.session_file import check_replaceable

    if given.save is not None and not given.save.parent.is_dir():
        raise refused("--save", given.save, f"no folder {given.save.parent}")
    if given.save is not None:
        check_replaceable(given.save)
    keep = FrameCacheConfig(kv_budget=None if given.keep_gib is None else int(given.keep_gib * GIB))
    options = {"keep": keep, "kv_bits": given.kv_bits}
    if given.session is None:
        return Session(model, processor, **options)
    return Session.load(given.session, model, processor, **options)


def opened(given: argparse.Namespace) -> list[Source]:
    """Open the images and videos of the command line, so that they are checked before a model is loaded.

    Raises:
        UserError: a file cannot be used.
    """
    return [opened_one(f"--{kind}", path, given) for kind, path in given.shown]


def opened_one(name: str, path: str, given: argparse.Namespace) -> Source:
    """Open what --image or /image names and return it with its path, or a video of which no frame is decoded yet.

    Raises:
        UserError: the file cannot be used.
    """
    from llava_mini.media.named import open_image, open_video

    if not path:
        raise UserError(f"{name}: a path is needed", key=name, value=path)
    if is_url(path):
        raise UserError(f"{name} {path[:200]}: a URL; only files are read, so fetch it first", key=name, value=path)
    place = Path(path).expanduser()
    if name.endswith("image"):
        return place, open_image(place)
    return open_video(place, fps=given.fps, count=given.frames)


def add_source(session: Session, source: Source, given: argparse.Namespace, reserve: int = 0) -> Media:
    """Add an image or a video to the session, with a progress bar for videos in a terminal.

    `reserve` tokens are left free for a question and its answer.

    Raises:
        UserError: the image cannot be resized, the video cannot be decoded, or it has more frames than fit.
    """
    if isinstance(source, tuple):
        path, image = source
        try:
            return session.add_media(image, reserve=reserve)
        except UserError as error:
            raise error.with_line(f"{path}: {error}") from None
    return session.add_media(
        source.path, fps=given.fps, count=given.frames, reserve=reserve, progress=sys.stderr.isatty()
    )
