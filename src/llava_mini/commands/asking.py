"""What the commands that answer have in common: the flags that say which model answers, and how."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from llava_mini.errors import UserError

if TYPE_CHECKING:
    from llava_mini.models import LlavaMiniForConditionalGeneration, LlavaMiniProcessor


def parser_for(command: str, description: str, epilog: str = "") -> argparse.ArgumentParser:
    """A parser with MODEL and the flags of every command that answers."""
    parser = argparse.ArgumentParser(
        prog=f"llava-mini {command}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="folder or Hub id of a LLaVA-Mini model, runs/mine/model")
    parser.add_argument(
        "--max-new-tokens", type=whole, default=256, metavar="N", help="of an answer at most (default: 256)"
    )
    parser.add_argument("--fps", type=rate, default=1.0, metavar="N", help="frames of a second of video (default: 1)")
    parser.add_argument("--frames", type=whole, metavar="N", help="of every video so many instead, at equal distances")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 (default: auto)")
    parser.add_argument(
        "--dtype", help="float32, float16, bfloat16 (default: as saved; float32 on a CPU)", metavar="TYPE"
    )
    parser.add_argument(
        "--config-dir", action="append", default=[], metavar="DIR", help="folder with the model's own compressor"
    )
    return parser


def load_model(given: argparse.Namespace) -> tuple[LlavaMiniForConditionalGeneration, LlavaMiniProcessor]:
    """The model of a command line.

    Raises:
        UserError: there is none, or it cannot be loaded.
    """
    from transformers.utils import logging

    from llava_mini.inference.loading import load, model_fields

    logging.disable_progress_bar()
    if given.config_dir:
        from llava_mini.config import import_own

        for folder in given.config_dir:
            if not Path(folder).is_dir():
                raise UserError(f"--config-dir {folder}: no such folder")
        import_own({"compressor": model_fields(given.model).get("compressor") or {}}, tuple(given.config_dir))
    return load(given.model, device=given.device, dtype=given.dtype)


def whole(text: str) -> int:
    """A whole number of 1 and above."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: allowed are whole numbers of 1 and above")
    return int(text)


def rate(text: str) -> float:
    """A number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}: allowed are numbers above 0")
    return value


def checked_questions(questions: list[str]) -> list[str]:
    """The questions, none of them empty.

    Raises:
        UserError: one is.
    """
    if not all(question.strip() for question in questions):
        raise UserError("--question: the question is empty")
    return questions
