"""`llava-mini batch`: a run that is killed again and again answers every request once; mistakes are one line."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.inference.conftest import make_asked, model_folder, pictures
from tests.media.test_video import clip
from tests.several_ranks import Nursery, wait_for

from llava_mini.cli import main
from llava_mini.commands.batch import _DESCRIPTION
from llava_mini.inference import batch, loading
from llava_mini.inference.cache import SessionCache

__all__ = ["clip", "make_asked", "model_folder", "pictures"]  # fixtures
KINDS = ("star", "ring", "box", "circle", "cross")


@pytest.fixture
def requests(tmp_path: Path, pictures: Path) -> Path:
    """Sixty requests, every sixth of which cannot be answered."""
    lines = []
    for number in range(60):
        image = os.path.relpath(pictures / f"{number % 6}.png", tmp_path) if number % 6 else "none.png"
        question = f"what color is the {KINDS[number % 5]} " + "and the box " * (number % 4)
        lines.append({"id": f"n{number}", "image": image, "question": question})
    path = tmp_path / "requests.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def records(path: Path) -> dict[str, Any]:
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(found) == len({record["id"] for record in found}), "none twice"
    return {record["id"]: record for record in found}


def test_a_run_that_is_killed_continues_and_answers_as_one_that_was_not(
    nursery: Nursery, model_folder: Path, requests: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    asked = ["batch", str(model_folder), "--input", str(requests), "--max-new-tokens", "12", "--output"]
    assert main([*asked, str(whole), "--batch-size", "7"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"50 answered, 10 failed; {whole}"
    expected = records(whole)
    assert len(expected) == 60 and expected["n0"]["error"].endswith("none.png: No such file or directory")

    process = nursery.start(*asked, str(killed), "--batch-size", "1")
    wait_for(lambda: killed.exists() and len(killed.read_bytes().splitlines()) >= 15, seconds=120)
    os.kill(process, signal.SIGKILL)
    assert nursery.status() == -signal.SIGKILL
    kept = killed.read_bytes()
    assert 14 <= len(kept.splitlines()) < 60
    last = kept.rfind(b"\n", 0, -1) + 1
    killed.write_bytes(kept[: last + 9])  # as if the kill had torn the last line

    assert main([*asked, str(killed), "--batch-size", "4"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("50 answered, 10 failed (")
    assert records(killed) == expected
    assert killed.read_bytes().startswith(kept[:last]), "what was answered stays"
    assert main([*asked, str(killed)]) == 0
    assert capsys.readouterr().out == f"50 answered, 10 failed (60 of them earlier); {killed}\n"


def test_more_frames_than_the_model_was_trained_for_are_answered_as_by_ask(
    model_folder: Path,
    clip: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert f"more than {batch.MOST_FRAMES} frames" in _DESCRIPTION.replace("\n", " ")
    bits, original = [], SessionCache.__init__

    def made(self: SessionCache, *given: Any) -> None:
        bits.append(given[1])
        original(self, *given)

    monkeypatch.setattr(SessionCache, "__init__", made)
    monkeypatch.setattr(batch, "MOST_FRAMES", 40)
    question, path = "what moved", clip(300)
    (tmp_path / "in.jsonl").write_text(json.dumps({"id": "film", "video": str(path), "question": question}) + "\n")
    asked = ["--fps", "10", "--max-new-tokens", "6"]
    scaled = [*asked, "--context", "2000", "--kv-bits", "4"]
    found = []
    for name, flags in (("short.jsonl", asked), ("long.jsonl", scaled)):
        given = ["--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / name)]
        assert main(["batch", str(model_folder), *given, *flags]) == 0
        found.append(records(tmp_path / name)["film"])
    assert "the language model reads 256; " in found[0]["error"] and "--context" in found[0]["error"]
    capsys.readouterr()
    assert main(["ask", str(model_folder), "--video", str(path), "--question", question, *scaled]) == 0
    assert capsys.readouterr().out.strip() == found[1]["answer"]
    assert set(bits) == {4}


def test_no_memory_for_the_model_is_one_line(
    requests: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: Any, **given: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes\nmore")

    monkeypatch.setattr(loading, "load", load)
    output = tmp_path / "answers.jsonl"
    assert main(["batch", "none", "--input", str(requests), "--output", str(output)]) == 2
    said = capsys.readouterr().err
    assert "tried to allocate 9 bytes): --dtype bfloat16 needs less" in said and said.count("\n") == 1
    assert not output.exists()


def test_mistakes_are_one_line_and_leave_no_file(
    model_folder: Path, requests: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers, twice = tmp_path / "answers.jsonl", tmp_path / "twice.jsonl"
    twice.write_text('{"id": 1, "question": "?"}\n' * 2)
    for model, given, output, reason in [
        (model_folder, tmp_path / "none.jsonl", answers, "none.jsonl: cannot be read: No such file"),
        (model_folder, twice, answers, "lines 1 and 2 have the same id 1"),
        (model_folder, requests, requests, "name another"),
        (model_folder, requests, tmp_path / "no" / "a.jsonl", "cannot be written"),
        (model_folder, requests, Path("/dev/full"), "cannot be written (no file"),
        (tmp_path, requests, answers, "no model, it has no config.json"),
    ]:
        assert main(["batch", str(model), "--input", str(given), "--output", str(output)]) == 2
        said = capsys.readouterr().err
        assert reason in said and len(said.splitlines()) == 1
        assert output.exists() == (output in (requests, Path("/dev/full")))
