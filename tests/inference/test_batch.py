"""A batch answers as one request at a time does, and what is wrong with one is that one's own."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tests.media.test_video import clip
from tests.refusals import refuses

from llava_mini.inference import batch as module
from llava_mini.inference.batch import Batcher
from llava_mini.inference.requests import Answers, Request, open_answers
from llava_mini.media.named import open_image

__all__ = ["clip"]  # a fixture


@pytest.fixture
def batcher(make_asked: Callable[..., Any]) -> Batcher:
    model, processor = make_asked()
    return Batcher(model, processor, max_new_tokens=5)


@pytest.fixture
def requests(pictures: Path, clip: Callable[..., Path]) -> list[Request]:
    """Requests of every kind, short and long."""
    images = [pictures / f"{number}.png" for number in range(6)]
    videos = [clip(30, name="a.mp4"), clip(70, name="b.mp4")]
    return [
        Request(1, "what color is the star", (images[0],)),
        Request(2, "how many objects", (images[1], images[2])),
        Request(3, "what moved", (), (videos[0],)),
        Request(4, "where is the star in the box and is there a red circle", (images[3],)),
        Request(5, "what color appeared first", (images[4],), (videos[1], videos[0])),
        Request(6, "what"),
        Request(7, "what color is the circle", (images[5],)),
    ]


def answered(batcher: Batcher, requests: list[Request], path: Path) -> dict[Any, dict[str, Any]]:
    with open_answers(path, requests) as answers:
        batcher.run(requests, answers)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(records) == len({record["id"] for record in records})
    return {record["id"]: record for record in records}


def test_answers_are_the_same_whatever_the_batch(batcher: Batcher, requests: list[Request], tmp_path: Path) -> None:
    alone = answered(replace(batcher, batch_size=1), requests, tmp_path / "1.jsonl")
    assert sorted(alone) == [1, 2, 3, 4, 5, 6, 7] and not any("error" in record for record in alone.values())
    assert len({record["answer"] for record in alone.values()}) > 3, "answers that differ"
    for size in (2, 4, 7):
        assert answered(replace(batcher, batch_size=size), requests, tmp_path / f"{size}.jsonl") == alone


def test_a_request_is_answered_as_by_the_model_itself(
    batcher: Batcher, requests: list[Request], tmp_path: Path
) -> None:
    inputs = batcher.processor(
        text="<image>\nwhat color is the star <answer>", images=Image.open(requests[0].images[0])
    )
    ids = batcher.model.generate(**inputs, max_new_tokens=5, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    expected = batcher.processor.batch_decode(ids, skip_special_tokens=True)[0]
    assert answered(batcher, requests, tmp_path / "a.jsonl")[1] == {
        "id": 1, "question": "what color is the star", "answer": expected.strip(),
    }  # fmt: skip


def test_bad_requests_are_records_and_the_rest_goes_on(
    batcher: Batcher, requests: list[Request], pictures: Path, clip: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "short.png").write_bytes((pictures / "0.png").read_bytes()[:2000])
    stopped = clip(100, name="stopped.mkv")
    stopped.write_bytes(stopped.read_bytes()[: stopped.stat().st_size * 6 // 10])
    wrong = {
        "gone": Request("gone", "what", (tmp_path / "gone.png",)),
        "short": Request("short", "what", (pictures / "0.png", tmp_path / "short.png")),
        "none": Request("none", "what", (), (pictures / "0.png",)),
        "empty": Request("empty", " \n"),
        "mark": Request("mark", "what <image> is"),
        "end": Request("end", "what </s> is"),
        "long": Request("long", "what " * 300),
        "refused": Request("refused", refused="as it says"),
    }
    note = Request("note", "what moved", (), (stopped,))
    found = answered(batcher, [*requests, *wrong.values(), note], tmp_path / "a.jsonl")
    assert {key for key, record in found.items() if "error" in record} == wrong.keys()
    assert list(found["gone"]) == ["id", "question", "error"] and list(found["refused"]) == ["id", "error"]
    assert "No such file" in found["gone"]["error"]
    reasons = {
        "short": "short.png: image cannot", "none": "video", "empty": "is empty", "mark": "<image>", "end": "</s>",
        "long": "the question is too long", "refused": "as it says",
    }  # fmt: skip
    for key, reason in reasons.items():
        assert reason in found[key]["error"] and "\n" not in found[key]["error"]
    assert "stopped.mkv: video stops after" in found["note"]["note"] and found["note"]["answer"]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (torch.OutOfMemoryError("CUDA out of memory.\nTried"), "out of memory (CUDA out of memory.)"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"),
         "out of memory (DefaultCPUAllocator: can't allocate memory)"),
        (MemoryError(), "out of memory (MemoryError)"),
    ],
)  # fmt: skip
def test_requests_without_memory_are_halved_until_they_fit(
    batcher: Batcher, requests: list[Request], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    error: Exception, told: str,
) -> None:  # fmt: skip
    alone = answered(replace(batcher, batch_size=1), requests, tmp_path / "1.jsonl")
    original, tried = batcher.model.generate, []

    def generate(**inputs: Any) -> torch.Tensor:
        tried.append(len(inputs["input_ids"]))
        if len(inputs["input_ids"]) > 2 or bool((inputs["num_frames"] > 5).any()):
            raise error
        return original(**inputs)

    monkeypatch.setattr(batcher.model, "generate", generate)
    found = answered(replace(batcher, batch_size=7), requests, tmp_path / "7.jsonl")
    assert found.pop(5) == {"id": 5, "question": requests[4].question, "error": told} and alone.pop(5)
    assert found == alone and tried[0] == 7


@pytest.mark.parametrize("most_frames", [module.MOST_FRAMES, 1])
def test_memory_that_runs_out_on_a_picture_is_its_own_record(
    batcher: Batcher, requests: list[Request], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most_frames: int
) -> None:
    """Whether a request is read in a batch or as a stream; any other error is a defect, and stays one."""

    def opened(path: Path) -> Image.Image:
        if path.name == "1.png":
            raise raised
        return open_image(path)

    monkeypatch.setattr(module, "open_image", opened)
    monkeypatch.setattr(module, "MOST_FRAMES", most_frames)
    raised: Exception = MemoryError()
    found = answered(batcher, requests, tmp_path / "a.jsonl")
    assert found[2]["error"] == "out of memory (MemoryError)"
    assert [each for each in found if "error" in found[each]] == [2] and len(found) == len(requests)
    raised = RuntimeError("shapes do not match")
    with pytest.raises(RuntimeError, match="shapes"):
        answered(batcher, requests, tmp_path / "b.jsonl")


def test_a_batch_holds_no_more_frames_than_are_allowed(
    batcher: Batcher, requests: list[Request], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests with more are read as a stream, and answered alike; also what is said of a video that stops."""
    expected = answered(batcher, requests, tmp_path / "whole.jsonl")
    monkeypatch.setattr(module, "MOST_FRAMES", 4)
    monkeypatch.setattr(module, "_GROUP", 3)
    seen, streamed = [], []
    generate, stream = Batcher.generate, Batcher._streamed

    def counted(self: Batcher, prompts: Any, images: Any, videos: Any) -> list[str]:
        seen.append((len(prompts), len(images) + sum(map(len, videos))))
        return generate(self, prompts, images, videos)

    def noted(self: Batcher, one: module.Prepared) -> dict[str, Any]:
        streamed.append(one.request.id)
        return stream(self, one)

    monkeypatch.setattr(Batcher, "generate", counted)
    monkeypatch.setattr(Batcher, "_streamed", noted)
    assert answered(batcher, requests, tmp_path / "a.jsonl") == expected
    assert max(frames for _, frames in seen) <= 4 and max(rows for rows, _ in seen) > 1
    assert streamed == [5], "an image and videos of seven and three frames"


def test_a_long_video_that_stops_or_cannot_be_read_has_its_own_record(
    batcher: Batcher, clip: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_FRAMES", 2)
    stopped = clip(100, name="stopped.mkv")
    stopped.write_bytes(stopped.read_bytes()[: stopped.stat().st_size * 6 // 10])
    gone, prepare = clip(50, name="gone.mp4"), Batcher.prepare

    def prepared(self: Batcher, request: Request) -> module.Prepared:
        found = prepare(self, request)
        gone.unlink(missing_ok=True)
        return found

    monkeypatch.setattr(Batcher, "prepare", prepared)
    requests = [Request(1, "what moved", (), (gone,)), Request(2, "what moved", (), (stopped,))]
    found = answered(batcher, requests, tmp_path / "a.jsonl")
    assert "gone.mp4: No such file" in found[1]["error"]
    assert found[2]["answer"] and "stopped.mkv: video stops after" in found[2]["note"]


def test_records_are_there_as_soon_as_their_batch_is_done(
    batcher: Batcher, requests: list[Request], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is raised in the third batch leaves the records of two, and the next run does the others alone."""
    path, calls = tmp_path / "a.jsonl", []
    original = Answers.add

    def add(self: Answers, records: list[Any]) -> None:
        calls.append(len(records))
        if len(calls) == 4:
            raise KeyboardInterrupt
        original(self, records)

    monkeypatch.setattr(Answers, "add", add)
    small = replace(batcher, batch_size=2)
    with pytest.raises(KeyboardInterrupt):
        answered(small, requests, path)
    before = path.read_text()
    assert len(before.splitlines()) == 4
    monkeypatch.setattr(Answers, "add", original)
    assert sorted(answered(small, requests, path)) == [1, 2, 3, 4, 5, 6, 7]
    assert path.read_text().startswith(before)


def test_a_template_that_writes_the_first_token_gets_no_second(make_asked: Callable[..., Any], pictures: Path) -> None:
    model, processor = make_asked(chat_template="<s> <image> what is here <answer>")
    with_own = Batcher(model, processor, max_new_tokens=3)
    plain = Batcher(model, make_asked()[1], max_new_tokens=3)
    image = open_image(pictures / "0.png")
    own = with_own.generate(["<s> <image> what is here <answer>"], [image], [])
    assert own == plain.generate(["<image> what is here <answer>"], [image], [])


def test_impossible_frames_are_named(batcher: Batcher, clip: Callable[..., Path]) -> None:
    with refuses("fps", 0.0):
        replace(batcher, fps=0.0).prepare(Request(1, "what", (), (clip(10),)))
