"""`llava-mini ask`: each question stands alone, mistakes are one line before a model is loaded."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.inference.conftest import make_asked, model_folder, pictures
from tests.media.test_video import clip

from llava_mini.cli import main
from llava_mini.inference.batch import Batcher
from llava_mini.inference.loading import load
from llava_mini.inference.prompts import question_tokens
from llava_mini.inference.requests import Request, open_answers
from llava_mini.inference.session import Session
from llava_mini.media.named import open_image

__all__ = ["clip", "make_asked", "model_folder", "pictures"]  # fixtures
MakeClip = Callable[..., Path]
Captured = pytest.CaptureFixture[str]
LONG = "what color is the star and how many objects are there"
SHORT = ("--max-new-tokens", "6")


def asked_alone(folder: Path, request: Request, path: Path) -> str:
    """The answer that `batch` gives."""
    model, processor = load(str(folder))
    with open_answers(path, [request]) as answers:
        Batcher(model, processor, max_new_tokens=6).run([request], answers)
    answer: str = json.loads(path.read_text())["answer"]
    return answer


def test_questions_stand_alone_and_are_answered_as_in_a_batch(
    model_folder: Path, pictures: Path, clip: MakeClip, tmp_path: Path, capsys: Captured
) -> None:
    questions = ["what color is the star", "how many objects", "what color is the star"]
    shown = ["--image", str(pictures / "0.png"), "--video", str(clip(30)), "--image", str(pictures / "1.png")]
    flags = [flag for question in questions for flag in ("--question", question)]
    assert main(["ask", str(model_folder), *shown, *flags, *SHORT]) == 0
    answers = capsys.readouterr().out.splitlines()
    assert len(answers) == 3 and answers[0] == answers[2] and answers[0]
    only = ["--image", str(pictures / "0.png"), "--image", str(pictures / "2.png")]
    assert main(["ask", str(model_folder), *only, *flags[:2], *SHORT]) == 0
    request = Request(1, questions[0], (pictures / "0.png", pictures / "2.png"))
    assert capsys.readouterr().out.strip() == asked_alone(model_folder, request, tmp_path / "a.jsonl")


def test_json_is_an_object_a_question_and_nothing_else(
    model_folder: Path, clip: MakeClip, tmp_path: Path, capsys: Captured
) -> None:
    path = clip(40)
    flags = ["--question", "what moved", "--question", " where is the box ", "--json", *SHORT]
    assert main(["ask", str(model_folder), "--video", str(path), *flags]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert list(first) == ["question", "answer", "seconds", "frames"] and first["seconds"] > 0
    assert [first["frames"], first["question"], second["question"]] == [4, "what moved", " where is the box "]
    assert first["answer"] == asked_alone(model_folder, Request(1, "what moved", (), (path,)), tmp_path / "a.jsonl")
    assert main(["ask", str(model_folder), "--video", str(path), *flags, "--frames", "2"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[0])["frames"] == 2
    assert main(["ask", str(model_folder), "--video", str(path), *flags, "--fps", "2"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[0])["frames"] == 8


def test_a_question_without_pictures(model_folder: Path, tmp_path: Path, capsys: Captured) -> None:
    assert main(["ask", str(model_folder), "--question", "what", *SHORT]) == 0
    assert capsys.readouterr().out.strip() == asked_alone(model_folder, Request(1, "what"), tmp_path / "a.jsonl")


def test_what_was_seen_is_saved_and_asked_again_without_it(
    model_folder: Path, pictures: Path, tmp_path: Path, capsys: Captured
) -> None:
    question = ["--question", "how many objects", *SHORT]
    saved = tmp_path / "seen.safetensors"
    shown = ["--image", str(pictures / "0.png"), "--image", str(pictures / "1.png")]
    assert main(["ask", str(model_folder), *shown, *question, "--save", str(saved)]) == 0
    first = capsys.readouterr().out
    again = ["--session", str(saved), "--keep-gib", "0", "--kv-bits", "8", "--context", "5000", "--json"]
    assert main(["ask", str(model_folder), *question, *again]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["frames"] == 2 and record["answer"]
    assert main(["ask", str(model_folder), *question, "--session", str(saved)]) == 0
    assert capsys.readouterr().out == first


def test_only_a_session_is_overwritten_by_one(
    model_folder: Path, pictures: Path, tmp_path: Path, capsys: Captured
) -> None:
    image = tmp_path / "photo.png"
    image.write_bytes(before := (pictures / "0.png").read_bytes())
    asked = ["ask", str(model_folder), "--image", str(image), "--question", "what", *SHORT, "--save"]
    for wrong in (image, model_folder / "model.safetensors", tmp_path):
        assert main([*asked, str(wrong)]) == 2
        said = capsys.readouterr()
        assert f"{wrong}: there is such a file, and it is no session" in said.err and said.err.count("\n") == 1
    assert image.read_bytes() == before
    for _ in range(2):
        assert main([*asked, str(tmp_path / "seen")]) == 0


def test_frames_leave_room_for_the_longest_question_or_are_refused_unseen(
    model_folder: Path, clip: MakeClip, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = load(str(model_folder))
    context: int = model.config.text_config.max_position_embeddings
    flags = ["ask", str(model_folder), "--video", str(clip(40)), "--question", "what", "--question", LONG]
    most = context - 4 * model.layout.frame() - question_tokens(processor, LONG, ["video"])
    assert main([*flags, "--max-new-tokens", str(most)]) == 0
    monkeypatch.setattr(Session, "_add", lambda *_: pytest.fail("a frame was encoded"))
    capsys.readouterr()
    assert main([*flags, "--max-new-tokens", str(most + 1)]) == 2
    said = capsys.readouterr()
    assert "at most 3 frames fit" in said.err and said.err.count("\n") == 1 and not said.out


def test_a_picture_that_cannot_be_resized_is_named(
    model_folder: Path, pictures: Path, tmp_path: Path, capsys: Captured
) -> None:
    Image.new("RGB", (9_000_000, 1)).save(tmp_path / "line.png")
    shown = ["--image", str(pictures / "0.png"), "--image", str(tmp_path / "line.png")]
    assert main(["ask", str(model_folder), *shown, "--question", "what", "--max-new-tokens", "8"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"llava-mini: {tmp_path / 'line.png'}: image of 9000000x1 pixels is too elongated")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "answer", "culprit"), [(3000, 8, "the question is too long"), (1, 3000, "--max-new-tokens is too large")]
)
@pytest.mark.parametrize("shown", [False, True])
def test_a_question_that_is_too_long_is_reported_so_whatever_is_shown(
    model_folder: Path, pictures: Path, capsys: Captured, words: int, answer: int, culprit: str, shown: bool
) -> None:
    flags = ["--image", str(pictures / "0.png")] * shown + ["--max-new-tokens", str(answer)]
    assert main(["ask", str(model_folder), *flags, "--question", "what " * words]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"llava-mini: {culprit}: ") and f"and {answer} for the answer" in said
    assert said.count("\n") == 1 and "frames" not in said


def test_no_memory_is_one_line(model_folder: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(*_: Any, **given: Any) -> str:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB\nmore")

    monkeypatch.setattr(Session, "ask", ask)
    assert main(["ask", str(model_folder), "--question", "what", "--max-new-tokens", "8"]) == 2
    said = capsys.readouterr().err
    assert "out of memory (CUDA out of memory. Tried to allocate 9 GiB): fewer frames" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--save", "no/folder/seen"], "--save no/folder/seen: no folder no/folder"),
        (["--session", "none"], "none: No such file or directory"),
        (["--context", "3"], "--context 3"),
        (["--context", "9000", "--scaling", "ntk"], "--scaling ntk"),
    ],
)
def test_flags_of_a_session_that_cannot_be(
    model_folder: Path, capsys: Captured, flags: list[str], message: str
) -> None:
    assert main(["ask", str(model_folder), "--question", "what", *flags]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1 and not captured.out


def test_a_photo_is_shown_upright(model_folder: Path, tmp_path: Path, capsys: Captured) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    upright = open_image(tmp_path / "turned.png")
    upright.save(tmp_path / "plain.png")
    assert not np.array_equal(np.asarray(upright), pixels)
    for name in ("turned.png", "plain.png"):
        assert main(["ask", str(model_folder), "--image", str(tmp_path / name), "--question", "what", *SHORT]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == second


def test_a_video_that_stops_is_answered_on_what_was_read(model_folder: Path, clip: MakeClip, capsys: Captured) -> None:
    path = clip(100, name="a.mkv")
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    flags = ["--video", str(path), "--question", "what moved", *SHORT]
    assert main(["ask", str(model_folder), *flags, "--json"]) == 0
    said = capsys.readouterr()
    record = json.loads(said.out)
    assert 2 <= record["frames"] < 9 and record["answer"] and "video stops after" in record["note"]
    assert "answers are about what could be read" in said.err


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--image", "none.png", "--question", "what"], "none.png: No such file or directory"),
        (["--image", "empty.png", "--question", "what"], "empty.png: the file is empty"),
        (["--image", "short.png", "--question", "what"], "short.png: image cannot be decoded"),
        (["--image", "text.jpg", "--question", "what"], "text.jpg: image cannot be decoded"),
        (["--video", "text.jpg", "--question", "what"], "text.jpg: video cannot be read"),
        (["--video", ".", "--question", "what"], "no file"),
        (["--image", "https://host/a.png", "--question", "what"], "--image https://host/a.png: a URL; only files"),
        (["--question", " "], "the question is empty"),
        (["--question", "what \udcff"], "the question is no Unicode text from its character 6 on"),
        (["--question", "what <image>"], "<image>, which is a special token"),
        (["--question", "what", "--device", "gpu"], "--device gpu: allowed are auto"),
        (["--question", "what", "--dtype", "int8"], "--dtype int8: allowed are float32"),
        (["--question", "what", "--config-dir", "none"], "--config-dir none: no such folder"),
    ],
)
def test_mistakes_are_one_line(
    model_folder: Path, pictures: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch,
    flags: list[str], reason: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("empty.png").touch()
    Path("short.png").write_bytes((pictures / "0.png").read_bytes()[:1000])
    Path("text.jpg").write_text("text")
    assert main(["ask", str(model_folder), *flags]) == 2
    said = capsys.readouterr()
    assert reason in said.err and len(said.err.splitlines()) == 1 and not said.out


@pytest.mark.parametrize("empty", ["", " "])
def test_an_empty_model_is_named(capsys: Captured, empty: str) -> None:
    assert main(["ask", empty, "--question", "what"]) == 2
    assert capsys.readouterr().err == "llava-mini: MODEL is empty; allowed are the folder and the Hub id of a model\n"


@pytest.mark.parametrize("amount", ["1e300", "1048577", "-1", "nan", "inf", "much"])
def test_memory_that_no_machine_has_is_refused(capsys: Captured, amount: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["ask", "none", "--question", "what", "--keep-gib", amount])
    assert ended.value.code == 2
    assert f"--keep-gib: {amount}: allowed are numbers from 0" in capsys.readouterr().err.splitlines()[-1]


def test_a_language_model_is_given_no_images(pictures: Path, tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert main(["ask", str(tmp_path), "--image", str(pictures / "0.png"), "--question", "what"]) == 2
    assert "a model of type 'llama', which this program gives no images to" in capsys.readouterr().err
