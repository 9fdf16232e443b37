"""Output that nobody reads, or that a full disk does not take, is no traceback, neither when printed nor at the end."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.inference.conftest import make_asked, model_folder

from llava_mini.cli import main
from llava_mini.command_line.output import BROKEN_PIPE, output_ends
from llava_mini.inference.session import Session

__all__ = ["make_asked", "model_folder"]  # fixtures
Captured = pytest.CaptureFixture[str]
FULL = "llava-mini: output cannot be written: No space left on device\n"


def nobody() -> int:
    """The end of a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    return writing


def ended(arguments: list[str], place: str | int, monkeypatch: pytest.MonkeyPatch) -> object:
    """The status with which a command ends that prints to a file or a descriptor."""
    with open(place, "w") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert sys.stdout is stream
    return caught.value.code


def test_ask_says_nothing_where_nobody_reads_and_a_line_where_the_disk_is_full(
    model_folder: Path, capfd: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["ask", str(model_folder), "--question", "what", "--json", "--max-new-tokens", "2"]
    assert ended(asked, nobody(), monkeypatch) == BROKEN_PIPE == 141
    assert not capfd.readouterr().err
    assert ended(asked, "/dev/full", monkeypatch) == 2
    assert capfd.readouterr().err == FULL


def test_chat_ends_quietly_where_nobody_reads(
    model_folder: Path, capfd: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = []

    def stream(_: Session, question: str, **given: Any) -> Iterator[str]:
        try:
            yield question
        finally:
            closed.append(question)

    reading, writing = os.pipe()
    os.write(writing, b"first\nsecond\n")
    os.close(writing)
    monkeypatch.setattr(Session, "stream", stream)
    with open(reading) as lines:
        monkeypatch.setattr(sys, "stdin", lines)
        assert ended(["chat", str(model_folder)], nobody(), monkeypatch) == BROKEN_PIPE
    assert closed == ["first"] and not capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "full", "unbuffered"),
    [
        *(("--help", full, unbuffered) for full in (True, False) for unbuffered in ("", "1")),
        ("config", True, ""),  # which takes seconds to load: each stream once
        ("config", False, "1"),
    ],
)
def test_whole_processes_leave_no_traceback(arguments: str, full: bool, unbuffered: str) -> None:
    command = [sys.executable, "-m", "llava_mini", arguments]
    env = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full" if full else nobody(), "w") as stream:
        run = subprocess.run(command, stdout=stream, stderr=subprocess.PIPE, text=True, env=env, check=False)
    assert (run.returncode, run.stderr) == ((2, FULL) if full else (BROKEN_PIPE, ""))


def test_errors_that_nobody_reads_end_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with open(nobody(), "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        with pytest.raises(SystemExit) as caught:
            main(["compare", "one", "two"])
    assert caught.value.code == BROKEN_PIPE


def test_other_files_and_streams_that_are_closed_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BrokenPipeError), output_ends():
        raise BrokenPipeError
    monkeypatch.setattr(sys, "stdout", None)
    with output_ends():
        print("nobody was ever there")


def test_an_answer_is_not_lost_to_a_locale(model_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    image = tmp_path / "image.png"
    Image.new("RGB", (24, 24), "red").save(image)
    short = ["--max-new-tokens", "4"]
    for encoding, shown in (("ascii", "caf\\u00e9 \\u65e5"), ("latin-1", "caf\\u00e9 \\u65e5"), ("utf-8", "café 日")):
        path = tmp_path / encoding
        with path.open("w", encoding=encoding) as stream, monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", stream)
            assert (
                main(["ask", str(model_folder), "--image", str(image), "--question", "café 日", "--json", *short]) == 0
            )
            with output_ends():
                print("日")
        line, last = path.read_text(encoding).splitlines()
        assert json.loads(line)["question"] == "café 日"
        assert shown in line
        assert last == ("日" if encoding == "utf-8" else "\\u65e5")
