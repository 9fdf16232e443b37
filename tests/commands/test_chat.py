"""`llava-mini chat`: lines from a pipe or a terminal, answers piece by piece, and no mistake that ends it."""

import io
import os
import pty
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.inference.conftest import make_asked, model_folder, pictures
from tests.media.test_video import clip
from tests.several_ranks import Nursery, is_gone, wait_for

from llava_mini.cli import main
from llava_mini.inference.session import Session

__all__ = ["clip", "make_asked", "model_folder", "pictures"]  # fixtures
Captured = pytest.CaptureFixture[str]


@pytest.fixture
def chat(
    model_folder: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[list[str], list[str]]]:
    """chat([lines], *flags): what it answers, and what it says besides."""

    def run(lines: list[str], *flags: str) -> tuple[list[str], list[str]]:
        monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
        assert main(["chat", str(model_folder), "--max-new-tokens", "6", *flags]) == 0
        said = capsys.readouterr()
        return said.out.splitlines(), said.err.splitlines()

    return run


def test_a_piped_chat_answers_every_question(
    chat: Callable[..., Any], pictures: Path, clip: Callable[..., Path]
) -> None:
    path = clip(30, name="a clip.mp4")
    answers, said = chat(
        ["what is here", "", f"/image {pictures / '1.png'}", "what", f"/video {path}", "what moved", "/quit", "no"],
        "--image", str(pictures / "0.png"),
    )  # fmt: skip
    assert len(answers) == 3 and all(answers)
    assert said == ["image: 1 frame", "image: 1 frame", "video: 3 frames of 3.0 s"]


def test_mistakes_are_a_line_and_the_chat_goes_on(chat: Callable[..., Any], pictures: Path) -> None:
    lines = ["/image none.png", "/image", "/what", f"/video {pictures / '0.png'}", "a <image>", "what is here"]
    answers, said = chat(lines)
    assert len(answers) == 1 and len(said) == 5
    for line, reason in zip(
        said,
        ["none.png: No such file", "image: a path is needed", "/what: unknown", "0.png: video cannot", "<image>"],
        strict=True,
    ):
        assert reason in line


def test_a_line_that_is_no_utf_8_is_a_mistake(
    model_folder: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    piped = io.TextIOWrapper(io.BytesIO(b"what \xff\nwhat is here\n"), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", piped)
    assert main(["chat", str(model_folder), "--max-new-tokens", "6"]) == 0
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 1
    assert said.err == "the question is no Unicode text from its character 6 on\n"


def test_closed_input_is_one_line(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert main(["chat", "none"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("llava-mini: standard input is closed; allowed are") and said.count("\n") == 1


def test_no_memory_for_an_answer_is_a_line_and_the_chat_goes_on(
    chat: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stream(_: Session, question: str, **given: Any) -> Iterator[str]:
        if question == "first":
            raise torch.OutOfMemoryError("CUDA out of memory")
        yield question

    monkeypatch.setattr(Session, "stream", stream)
    answers, said = chat(["first", "second"])
    assert answers == ["second"] and len(said) == 1 and "out of memory (CUDA out of memory)" in said[0]


def test_later_questions_know_of_earlier_ones_until_they_are_forgotten(
    chat: Callable[..., Any], pictures: Path
) -> None:
    image = ("--image", str(pictures / "0.png"))
    first, second = "what color is the star in the box", "how many objects"
    alone, _ = chat([second], *image)
    behind, _ = chat([first, second], *image)
    forgotten, _ = chat([first, "/forget", second], *image)
    assert behind[1] != alone[0] and forgotten[1] == alone[0]


def test_answers_are_printed_as_they_come(
    chat: Callable[..., Any], capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def stream(_: Session, question: str, **given: Any) -> Iterator[str]:
        assert given["follow_up"] is True and given["max_new_tokens"] == 6
        for piece in question.split():
            yield piece + " "
            seen.append(capsys.readouterr().out)

    monkeypatch.setattr(Session, "stream", stream)
    chat(["one two three"])
    assert seen == ["one ", "two ", "three "]


def test_ctrl_c_ends_an_answer_and_the_chat_goes_on(chat: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    ended = []

    def stream(_: Session, question: str, **given: Any) -> Iterator[str]:
        try:
            yield question
            if question == "first":
                raise KeyboardInterrupt
        finally:
            ended.append(question)

    monkeypatch.setattr(Session, "stream", stream)
    answers, _ = chat(["first", "second"])
    assert answers == ["first", "second"] and ended == answers


def until_asleep(pid: int) -> None:
    """Return when a process waits."""
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "S":
        time.sleep(0.01)


@pytest.mark.skipif(sys.platform != "linux", reason="whether a process waits is read in /proc")
def test_in_a_terminal_ctrl_c_leaves_a_line_and_ctrl_d_the_chat(nursery: Nursery, model_folder: Path) -> None:
    ours, theirs = pty.openpty()
    process = nursery.start("chat", str(model_folder), "--max-new-tokens", "4", terminal=os.ttyname(theirs))
    shown = b""

    def until(text: bytes) -> None:
        nonlocal shown
        while text not in shown:
            assert select.select([ours], [], [], 60)[0], f"no {text!r} behind {shown!r}"
            shown += os.read(ours, 4096)
        shown = shown.partition(text)[2]

    try:
        until(b"/quit")
        until(b"> ")
        os.write(ours, b"half a line")
        until(b"half a line")
        until_asleep(process)  # between writing the echo and waiting for a key, `input` notices no signal
        os.kill(process, signal.SIGINT)
        until(b"> ")
        os.write(ours, b"what is here\n")
        until(b"what is here")
        until(b"> ")
        os.write(ours, b"\x04")
        wait_for(partial(is_gone, process), seconds=60)
    finally:
        if not is_gone(process):
            os.kill(process, signal.SIGKILL)
        status = nursery.status()
        os.close(ours)
        os.close(theirs)
    assert status == 0
