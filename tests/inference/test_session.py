"""A session's answers are those of `generate` on the whole prompt, however much of it was computed before."""

from __future__ import annotations

import copy
import json
import threading
import time
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from tests.refusals import refuses

from llava_mini.errors import UserError
from llava_mini.inference.frame_cache import FrameCacheConfig
from llava_mini.inference.long_context import extend_context
from llava_mini.inference.media_source import Progress
from llava_mini.inference.prompts import prompt_of, user_message
from llava_mini.inference.session import Session
from llava_mini.inference.session_file import checksum

QUESTIONS = ["how many circle objects", "what color is the square", "is there a triangle"]
LENGTH = 6
KEEPS = {
    "keys and values": FrameCacheConfig(),
    "features": FrameCacheConfig(kv_budget=0),
    "keys and values of some": FrameCacheConfig(kv_budget=40_000),
    "on the host": FrameCacheConfig(kv_place="host"),
}


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 30, 3), dtype=np.uint8))


def clip(seed: int, frames: int) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, 256, (frames, 24, 24, 3), dtype=np.uint8))


def when(done: Callable[[], None]) -> bool:
    """Whether it can be done before long."""
    for _ in range(500):
        try:
            done()
        except UserError:
            time.sleep(0.01)
        else:
            return True
    return False


class Watched:
    """What a language model is given and gives: tokens that it read, and its logits of every step."""

    def __init__(self, model: Any):
        self.tokens, self.logits = 0, list[torch.Tensor]()
        model.get_decoder().layers[0].register_forward_pre_hook(self._count)
        model.language_model.lm_head.register_forward_hook(lambda _, given, out: self.logits.append(out[:, -1]))

    def _count(self, _layer: Any, given: Any) -> None:
        self.tokens += given[0].shape[1]

    def take(self) -> tuple[int, torch.Tensor]:
        """Tokens read and logits of the steps since the last call."""
        found = self.tokens, torch.cat(self.logits)
        self.tokens, self.logits = 0, []
        return found


def reference(asked: Any, prompt: str, images: Any = None, videos: Any = None, **given: Any) -> str:
    model, processor = asked
    inputs = processor(images=images, videos=videos, text=prompt)
    said = model.generate(**inputs, **given, max_new_tokens=LENGTH, do_sample=False)
    return str(processor.tokenizer.decode(said[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)).strip()


def same(session: Session, watched: Watched, expected: Callable[[], str], **asked: Any) -> int:
    """See that a session's answer and the logits of all its steps are the reference's; how many tokens were read."""
    answer = session.ask(**asked, max_new_tokens=LENGTH)
    tokens, logits = watched.take()
    assert answer == expected()
    torch.testing.assert_close(logits, watched.take()[1], atol=2e-5, rtol=2e-5)
    return tokens


@pytest.fixture
def asked(make_asked: Callable[..., Any]) -> Any:
    return make_asked()


@pytest.mark.parametrize("name", KEEPS)
@torch.no_grad()
def test_answers_are_those_of_generate(asked: Any, name: str) -> None:
    session, watched = Session(*asked, keep=KEEPS[name], frame_batch=2), Watched(asked[0])
    assert session.add_media(picture(1)).kind == "image"
    assert session.add_media(iter(clip(2, 5))).frames == 5

    def expected(question: str, kinds: list[str], images: list[Any]) -> str:
        return reference(asked, prompt_of(asked[1], [user_message(question, kinds)]), images, [clip(2, 5)])

    read = [
        same(session, watched, partial(expected, question, ["image", "video"], [picture(1)]), question=question)
        for question in QUESTIONS
    ]
    assert read[1] < read[0] / 2  # the follow-up question starts behind what was looked at
    session.add_media(picture(3))
    same(
        session,
        watched,
        lambda: expected(QUESTIONS[0], ["image", "video", "image"], [picture(1), picture(3)]),
        question=QUESTIONS[0],
    )
    held = session.store.held_bytes()
    assert (held["kv"] == 0) == (name == "features")


@torch.no_grad()
def test_the_whole_video_is_seen_once_for_all_questions(asked: Any) -> None:
    model, _ = asked
    views: list[int] = []
    model.vision_tower.register_forward_pre_hook(
        lambda _, args, given: views.append(len(given["pixel_values"])), with_kwargs=True
    )
    session = Session(*asked, frame_batch=2)
    session.add_media(clip(2, 5))
    mlp_rows: list[int] = []
    model.prefusion.layers[0].mlp.register_forward_pre_hook(lambda _, given: mlp_rows.append(given[0].shape[1]))
    for question in QUESTIONS:
        session.ask(question, max_new_tokens=2)
    assert views == [2, 2, 1]
    assert max(mlp_rows) < model.side**2  # text alone, never a frame's patches again


@torch.no_grad()
def test_a_conversation_hides_answers_from_prefusion(asked: Any) -> None:
    model, processor = asked
    session, watched = Session(*asked), Watched(model)
    session.add_media(picture(1))
    first = session.ask(QUESTIONS[0], max_new_tokens=LENGTH)
    watched.take()
    said = {"role": "assistant", "content": [{"type": "text", "text": first}]}
    messages = [user_message(QUESTIONS[0], ["image"]), said, user_message(QUESTIONS[1])]
    prompt = prompt_of(processor, messages)
    before = prompt_of(processor, messages[:1])
    ids = processor(images=[picture(1)], text=prompt)["input_ids"]
    start = processor(images=[picture(1)], text=before)["input_ids"].shape[1]
    behind = len(processor.tokenizer(processor.tokenizer.eos_token + prompt_of(processor, [messages[2]])).input_ids)
    end = ids.shape[1] - behind + 1 + 1  # behind the answer's end token; a text begins with one more
    mask = torch.ones_like(ids)
    mask[0, start:end] = 0
    kept = [processor.tokenizer.decode(i) for i in ids[0, start:end]]
    assert kept[-1] == processor.tokenizer.eos_token and " ".join(kept[:-1]).split() == first.split()
    tokens = same(
        session,
        watched,
        lambda: reference(asked, prompt, [picture(1)], instruction_mask=mask),
        question=QUESTIONS[1],
        follow_up=True,
    )
    assert tokens < ids.shape[1] + LENGTH - start
    alone = prompt_of(processor, [user_message(QUESTIONS[1], ["image"])])
    same(session, watched, lambda: reference(asked, alone, [picture(1)]), question=QUESTIONS[1])


@torch.no_grad()
def test_what_is_looked_at_later_belongs_to_the_next_question(asked: Any) -> None:
    session = Session(*asked)
    session.add_media(picture(1))
    session.ask(QUESTIONS[0], max_new_tokens=2)
    session.add_media(picture(2))
    session.ask(QUESTIONS[1], follow_up=True, max_new_tokens=2)
    assert [turn.media for turn in session._turns] == [1, 1]
    session.forget()
    alone = prompt_of(asked[1], [user_message(QUESTIONS[2], ["image", "image"])])
    answer = session.ask(QUESTIONS[2], follow_up=True, max_new_tokens=LENGTH)
    assert answer == reference(asked, alone, [picture(1), picture(2)])


@torch.no_grad()
def test_a_question_without_anything_to_look_at(asked: Any) -> None:
    alone = prompt_of(asked[1], [user_message(QUESTIONS[0])])
    assert Session(*asked).ask(QUESTIONS[0], max_new_tokens=LENGTH) == reference(asked, alone)


@torch.no_grad()
def test_live_frames_with_questions_in_between(asked: Any) -> None:
    session, watched = Session(*asked, frame_batch=3), Watched(asked[0])
    frames = clip(4, 5)
    alone = prompt_of(asked[1], [user_message(QUESTIONS[0], ["video"])])
    for number, frame in enumerate(frames, start=1):
        assert session.push(frame).frames == number
        if number % 2:
            so_far = partial(reference, asked, alone, None, [frames[:number]])
            same(session, watched, so_far, question=QUESTIONS[0])
    assert len(session.media) == 1
    session.add_media(picture(1))
    assert session.push(frames[0]).frames == 1 and len(session.media) == 3


@torch.no_grad()
def test_streaming_gives_the_answer_in_pieces_and_can_be_left(asked: Any) -> None:
    session = Session(*asked)
    session.add_media(picture(1))
    whole = session.ask(QUESTIONS[0], max_new_tokens=LENGTH)
    pieces = list(session.stream(QUESTIONS[0], max_new_tokens=LENGTH))
    assert "".join(pieces).strip() == whole and len(pieces) > 1
    begun = session.stream(QUESTIONS[0], max_new_tokens=200)
    next(begun)
    begun.close()
    assert session.ask(QUESTIONS[0], max_new_tokens=LENGTH) == whole


@torch.no_grad()
def test_a_reader_that_cannot_wait_leaves_the_session_busy_until_nothing_is_made(
    asked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second Ctrl-C ends the wait for the thread, which goes on for as long as its step takes."""
    session = Session(*asked)
    session.add_media(picture(1))
    expected = [session.ask(question, max_new_tokens=LENGTH) for question in QUESTIONS]
    reader, slow, passes = threading.current_thread(), threading.Event(), count()

    def wait(*_: Any) -> None:
        if threading.current_thread() is not reader and next(passes) > 30:
            slow.wait()

    def interrupted(_: threading.Thread) -> None:
        raise KeyboardInterrupt

    hook = asked[0].get_decoder().layers[0].register_forward_pre_hook(wait)
    begun = session.stream(QUESTIONS[0], max_new_tokens=200)
    next(begun)
    monkeypatch.setattr(threading.Thread, "join", interrupted)
    with pytest.raises(KeyboardInterrupt):
        begun.close()
    monkeypatch.undo()
    for another in (partial(session.ask, QUESTIONS[1]), session.forget, partial(session.add_media, picture(2))):
        with pytest.raises(UserError, match="busy"):
            another()
    slow.set()
    assert when(session.forget)
    hook.remove()
    assert [session.ask(question, max_new_tokens=LENGTH) for question in QUESTIONS] == expected


@torch.no_grad()
def test_a_mistake_while_streaming_reaches_the_caller(asked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(*asked)
    session.add_media(picture(1))
    with pytest.raises(ValueError, match="nonsense"):
        list(session.stream(QUESTIONS[0], max_new_tokens=3, nonsense=1))
    assert session.ask(QUESTIONS[0], max_new_tokens=3) == Session.ask(session, QUESTIONS[0], max_new_tokens=3)


@torch.no_grad()
def test_sampling_with_a_seed(asked: Any) -> None:
    session = Session(*asked)
    session.add_media(picture(1))
    said = []
    for _ in range(2):
        torch.manual_seed(3)
        said.append(session.ask(QUESTIONS[0], max_new_tokens=LENGTH, do_sample=True, temperature=2.0, top_k=0))
    assert said[0] == said[1]


@pytest.mark.parametrize("kind", ["float16", "int8"])
@torch.no_grad()
def test_fewer_bytes_for_frames_answer_nearly_alike(asked: Any, kind: Any) -> None:
    watched = Watched(asked[0])
    exact, small = Session(*asked), Session(*asked, keep=FrameCacheConfig(kv=kind, features=kind))
    found = []
    for session in (exact, small):
        session.add_media(clip(2, 3))
        session.ask(QUESTIONS[0], max_new_tokens=1)
        found.append(watched.take()[1])
    torch.testing.assert_close(found[1], found[0], atol=0.05, rtol=0.05)
    assert (found[1] != found[0]).any()
    before, after = exact.store.held_bytes(), small.store.held_bytes()
    assert after["kv"] < 0.6 * before["kv"] and after["features"] < 0.6 * before["features"]


@pytest.mark.parametrize("name", KEEPS)
@torch.no_grad()
def test_a_saved_session_answers_as_before(asked: Any, tmp_path: Path, name: str) -> None:
    session = Session(*asked, keep=KEEPS[name], frame_batch=2)
    session.add_media(picture(1))
    session.add_media(clip(2, 3))
    answers = [session.ask(question, max_new_tokens=LENGTH) for question in QUESTIONS]
    session.save(tmp_path / "seen.safetensors")
    with torch.enable_grad():
        loaded = Session.load(tmp_path / "seen.safetensors", *asked, keep=KEEPS[name])
    pairs = [pair for chunk in loaded.store.chunks for pair in chunk.kv or ()]
    kept = [part for pair in pairs for held in pair for part in held.parts.values()]
    assert not any(each.requires_grad for each in kept), "a graph would hold what made them"
    assert loaded.media == session.media
    assert [loaded.ask(question, max_new_tokens=LENGTH) for question in QUESTIONS] == answers
    loaded.add_media(picture(3))
    session.add_media(picture(3))
    assert loaded.ask(QUESTIONS[0], max_new_tokens=3) == session.ask(QUESTIONS[0], max_new_tokens=3)


def test_files_that_are_no_session_of_this_model(asked: Any, make_model: Any, tmp_path: Path) -> None:
    model, processor = asked
    session = Session(*asked)
    path = tmp_path / "seen.safetensors"
    with pytest.raises(UserError, match="nothing was added"):
        session.save(path)
    session.add_media(picture(1))
    session.save(path)
    other = make_model(seed=5, text_config=model.config.text_config, image_token_id=model.config.image_token_id)
    with pytest.raises(UserError, match="a session of another model: vision_tower, projector, compressor, prefusion"):
        Session.load(path, other, processor)
    whole = path.read_bytes()
    for damaged, message in ((whole[:200], "no session can be read"), (b"", "is empty"), (b"text", "no session can")):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=message):
            Session.load(path, *asked)
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match="no session of this program"):
        Session.load(tmp_path / "model/model.safetensors", *asked)
    with pytest.raises(UserError, match="No such file"):
        Session.load(tmp_path / "none", *asked)
    with pytest.raises(UserError, match="cannot be written"):
        session.save(tmp_path / "no" / "folder")


@torch.no_grad()
def test_only_a_session_is_overwritten(asked: Any, tmp_path: Path) -> None:
    session = Session(*asked)
    session.add_media(picture(1))
    session.save(tmp_path / "seen")
    session.add_media(picture(2))
    session.save(tmp_path / "seen")
    assert Session.load(tmp_path / "seen", *asked).media == session.media
    (tmp_path / "note").write_text("keep me")
    save_file({"weight": torch.ones(2)}, tmp_path / "weights")
    for name in ("note", "weights"):
        before = (tmp_path / name).read_bytes()
        with pytest.raises(UserError, match=f"{name}: there is such a file, and it is no session"):
            session.save(tmp_path / name)
        assert (tmp_path / name).read_bytes() == before


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("vision_feature_layer", -1),
        ("num_fusion_layers", 1),
        ("compress_before_projection", False),
        ("fuse_compressed_tokens", False),
        ("compressor", {"_target_": "elsewhere.Compressor"}),
    ],
)
@torch.no_grad()
def test_another_path_of_frames_is_another_model(asked: Any, tmp_path: Path, field: str, value: Any) -> None:
    model, processor = copy.deepcopy(asked)
    assert getattr(model.config, field) != value
    session = Session(model, processor)
    session.add_media(picture(1))
    session.save(tmp_path / "seen")
    setattr(model.config, field, value)
    with pytest.raises(UserError, match=f"another model: its {field} is .*, of this one "):
        Session.load(tmp_path / "seen", model, processor)


@torch.no_grad()
def test_a_session_of_another_type_is_refused_as_that(asked: Any, tmp_path: Path) -> None:
    session = Session(*asked)
    session.add_media(picture(1))
    session.save(tmp_path / "seen")
    with pytest.raises(UserError, match="saved by a model in float32, this one is in bfloat16"):
        Session.load(tmp_path / "seen", copy.deepcopy(asked[0]).to(torch.bfloat16), asked[1])


def _change(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., None]:
    def make(tensors: dict[str, torch.Tensor], facts: dict[str, Any]) -> None:
        tensors[name] = change(tensors[name]).contiguous()

    return make


def _with_last(values: torch.Tensor, last: float) -> torch.Tensor:
    changed = values.clone()
    changed.view(-1)[-1] = last
    return changed


DAMAGES: dict[str, Callable[..., None]] = {
    "items behind the last": lambda tensors, facts: facts.update(items=[5, 6]),
    "an item before the first": lambda tensors, facts: facts.update(items=[-1, 1]),
    "a gap": lambda tensors, facts: facts.update(items=[0, 0]),
    "another order": lambda tensors, facts: facts.update(items=[1, 0]),
    "a chunk too few": lambda tensors, facts: facts.update(items=[0]),
    "a look too few": lambda tensors, facts: facts.update(looks=facts["looks"][:1]),
    "nothing": lambda tensors, facts: facts.update(looks=[], items=[]),
    "no list": lambda tensors, facts: facts.update(items=7),
    "frames that were not seen": lambda tensors, facts: facts["looks"][1].update(frames=9),
    "no features": lambda tensors, facts: tensors.pop("0.codes"),
    "other features": lambda tensors, facts: tensors.update({"0.other": tensors["0.codes"].clone()}),
    "too many tokens": _change("0.tokens", lambda tokens: tokens.repeat(1, 2, 1)),
    "too many views": _change("0.codes", lambda codes: codes.repeat(1, 2, 1, 1)),
    "scales of fewer patches": _change("0.scale", lambda scale: scale[:, :, :2]),
    "a token that is no number": _change("1.tokens", lambda tokens: _with_last(tokens, float("nan"))),
    "an infinite token": _change("0.tokens", lambda tokens: _with_last(tokens, float("-inf"))),
    "an infinite scale": _change("1.scale", lambda scale: _with_last(scale, float("inf"))),
    "a tensor of a frame that is not there": lambda tensors, facts: tensors.update({"2.tokens": torch.ones(1)}),
    "a tensor of no frame": lambda tensors, facts: tensors.update({"weight": torch.ones(1)}),
}


@pytest.mark.parametrize("name", DAMAGES)
@torch.no_grad()
def test_a_damaged_session_is_refused(asked: Any, tmp_path: Path, name: str) -> None:
    path, keep = tmp_path / "seen", FrameCacheConfig(features="int8", kv_budget=0)
    session = Session(*asked, keep=keep)
    session.add_media(picture(1))
    session.add_media(clip(2, 3))
    session.save(path)
    Session.load(path, *asked, keep=keep)
    with safe_open(path, framework="pt") as file:
        facts = json.loads(file.metadata()["facts"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no dict)
        metadata = file.metadata()
    DAMAGES[name](tensors, facts)
    told = json.dumps(facts)
    save_file(tensors, path, metadata={**metadata, "facts": told, "crc32": checksum(told, tensors)})
    with pytest.raises(UserError, match="the session is damaged: (?!what is in it)"):
        Session.load(path, *asked, keep=keep)


@torch.no_grad()
def test_a_flipped_bit_anywhere_is_noticed(asked: Any, tmp_path: Path) -> None:
    path = tmp_path / "seen"
    session = Session(*asked, keep=FrameCacheConfig(kv_budget=0))
    session.add_media(clip(2, 3))
    session.save(path)
    whole = path.read_bytes()
    for place in [*range(0, len(whole), len(whole) // 60), len(whole) - 1]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        with pytest.raises(UserError) as error:
            Session.load(path, *asked)
        assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value), place
    assert "the session is damaged: what is in it is not what was saved" in str(error.value)
    path.write_bytes(whole)
    Session.load(path, *asked)


@torch.no_grad()
def test_what_cannot_be_looked_at_leaves_nothing(asked: Any, tmp_path: Path) -> None:
    session = Session(*asked, frame_batch=1)
    session.add_media(picture(1))
    expected = session.ask(QUESTIONS[0], max_new_tokens=3)
    (tmp_path / "text.png").write_text("no picture")

    def broken() -> Any:
        yield clip(1, 1)[0]
        raise RuntimeError("camera gone")

    for source, error in (
        (tmp_path / "none.png", UserError),
        (tmp_path / "text.png", UserError),
        ([], UserError),
        (["frame"], UserError),
        (7, UserError),
        (broken(), RuntimeError),
    ):
        with pytest.raises(error):
            session.add_media(source)
        assert len(session.media) == 1 and len(session.store) == 1
    assert session.ask(QUESTIONS[0], max_new_tokens=3) == expected


def test_questions_and_values_that_are_refused(asked: Any) -> None:
    session = Session(*asked)
    for question in ("", "  \n", "what is <image>"):
        with refuses("question"):
            session.ask(question)
    for ask in (session.ask, session.stream):
        with refuses("question", None, "text"):
            ask(None)
    with refuses("max_new_tokens", 0, "1 and above"):
        session.ask(QUESTIONS[0], max_new_tokens=0)
    with pytest.raises(UserError, match="the language model reads"):
        session.ask(QUESTIONS[0], max_new_tokens=1_000_000)
    for key, value, allowed in (("kv_bits", 3, "8, 4 and none"), ("frame_batch", 0, "1 and above, and None")):
        with refuses(key, value, allowed):
            Session(*asked, **{key: value})
    with refuses("keep.kv", "int4", "model, float16, int8"):
        FrameCacheConfig(kv="int4")
    with refuses("keep.kv_budget", -1, "0 bytes and more"):
        FrameCacheConfig(kv_budget=-1)
    asked[1].chat_template = None
    with refuses("processor"):
        Session(*asked)


def test_too_many_frames_are_refused_before_one_is_read(asked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(*asked)
    monkeypatch.setattr("llava_mini.inference.long_context.free_bytes", lambda _: 2**20)
    extend_context(session.model, 800_000)

    class Many:
        def __len__(self) -> int:
            return 100_000

        def __iter__(self) -> Any:
            yield pytest.fail("a frame was read")

    with pytest.raises(UserError, match=r"100000 frames need .* at most \d+ frames fit"):
        session.add_media(Many())
    assert not session.media


def test_progress_tells_frames_and_rates(asked: Any) -> None:
    told: list[Progress] = []
    Session(*asked, frame_batch=2).add_media(clip(1, 5), progress=told.append)
    assert [each.frames for each in told] == [2, 4, 5] and {each.expected for each in told} == {5}
    assert all(each.frames_per_second > 0 for each in told)


def test_an_hd_image_and_a_video_in_one_session(make_asked: Any) -> None:
    asked = make_asked(views="hd")
    session = Session(*asked)
    session.add_media(picture(1))
    session.add_media(clip(2, 2))
    alone = prompt_of(asked[1], [user_message(QUESTIONS[0], ["image", "video"])])
    expected = reference(asked, alone, [picture(1)], [clip(2, 2)])
    assert session.ask(QUESTIONS[0], max_new_tokens=LENGTH) == expected
    tokens = session.store.tokens_by_item()
    assert tokens == {0: asked[0].layout.frame(5), 1: 2 * asked[0].layout.frame(1)}
    assert tokens.total() == len(session.store.tokens())


@pytest.mark.parametrize("changes", [{"num_fusion_layers": 0}, {"fuse_compressed_tokens": False}])
def test_models_without_prefusion_and_in_the_papers_order(make_asked: Any, make_model: Any, changes: Any) -> None:
    model, processor = make_asked()
    same_words = {"text_config": model.config.text_config, "image_token_id": model.config.image_token_id}
    asked = make_model(**same_words, **changes), processor
    session, watched = Session(*asked), Watched(asked[0])
    for number in (1, 2):
        session.add_media(picture(number))
        alone = prompt_of(processor, [user_message(QUESTIONS[0], ["image"] * number)])
        expected = partial(reference, asked, alone, [picture(i) for i in range(1, number + 1)])
        same(session, watched, expected, question=QUESTIONS[0])


@torch.no_grad()
def test_half_precision_holds_the_mean_over_thousands_of_frames(asked: Any) -> None:
    """The same frame again and again: its mean is itself."""
    model, _ = asked
    session = Session(*asked)
    session.add_media(clip(1, 1))
    store, text = session.store, torch.randn(3, model.config.text_config.hidden_size)
    expected = store.read(text)
    model.to(torch.bfloat16)
    try:
        store.chunks = store.chunks * 3000
        many = store.read(text.bfloat16())
        pixels = torch.randn(1, 1, 3, 24, 24).bfloat16().expand(600, -1, -1, -1, -1)
        fused = []
        for count in (1, 600):
            given = model.frames(pixels[:count], None, None)
            said = torch.ones(1, 3, dtype=torch.bool)
            fused.append(model.fuse_frames(given, text[None].bfloat16(), said, None, torch.tensor([count]))[1])
    finally:
        model.float()
    assert ((many.float() - expected).abs().max() / expected.abs().max()) < 0.05
    torch.testing.assert_close(fused[1], fused[0], atol=0.02, rtol=0.02)


@torch.no_grad()
def test_an_interrupted_answer_leaves_the_session_whole(asked: Any) -> None:
    session = Session(*asked)
    session.add_media(picture(1))
    expected = [session.ask(question, max_new_tokens=LENGTH) for question in QUESTIONS[:2]]

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    handle = asked[0].get_decoder().layers[1].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        session.ask(QUESTIONS[1], max_new_tokens=LENGTH)
    handle.remove()
    assert [session.ask(question, max_new_tokens=LENGTH) for question in QUESTIONS[:2]] == expected


@torch.no_grad()
def test_one_answer_at_a_time(asked: Any) -> None:
    session = Session(*asked)
    session.add_media(picture(1))
    expected = session.ask(QUESTIONS[0], max_new_tokens=LENGTH)
    begun = session.stream(QUESTIONS[0], max_new_tokens=200)
    next(begun)
    for act in (
        lambda: session.ask(QUESTIONS[1]),
        lambda: session.add_media(picture(2)),
        lambda: session.push(picture(2)),
    ):
        with pytest.raises(UserError, match="the session is busy with an answer"):
            act()
    begun.close()
    waiting = session.stream(QUESTIONS[0], max_new_tokens=LENGTH)
    session.add_media(picture(2))
    assert "".join(waiting).strip() == session.ask(QUESTIONS[0], max_new_tokens=LENGTH)
    assert len(session.media) == 2 and expected is not None
    with refuses("num_beams", 2, "1"):
        session.ask(QUESTIONS[0], max_new_tokens=LENGTH, num_beams=2)


@torch.no_grad()
def test_more_frames_than_the_language_model_reads(asked: Any) -> None:
    session = Session(*asked)
    most = asked[0].config.text_config.max_position_embeddings // asked[0].layout.frame()
    with pytest.raises(UserError, match=rf"{most + 1} frames are .* at most {most} frames fit, or scale it"):
        session.add_media(clip(1, 1) * (most + 1))
    with pytest.raises(UserError, match="at most"):
        session.add_media(iter(clip(1, 1) * (most + 2)))
    assert not session.media and not len(session.store)


@pytest.mark.parametrize(
    "frame",
    [
        np.full((24, 24, 3), -1.0), np.zeros((24, 24, 5), np.uint8), np.zeros((0, 24, 3), np.uint8),
        torch.zeros(3, 24, 3), Image.new("RGB", (0, 4)),
    ],
)  # fmt: skip
def test_frames_that_are_no_pictures(asked: Any, frame: Any) -> None:
    session = Session(*asked)
    for act, name in ((session.add_media, "image"), (session.push, "push")):
        with pytest.raises(UserError, match=f"^{name}: (array of|image of)"):
            act(frame)
    with pytest.raises(UserError, match="push: int 3 is no image"):
        session.push(3)
    assert not session.media


@torch.no_grad()
def test_an_image_in_any_form_is_the_same_image(asked: Any) -> None:
    pixels = clip(1, 1)[0]
    answers = set()
    for image in (pixels, Image.fromarray(pixels), torch.from_numpy(pixels).permute(2, 0, 1), pixels / 255.0):
        session = Session(*asked)
        assert session.add_media(image).kind == "image"
        answers.add(session.ask(QUESTIONS[0], max_new_tokens=LENGTH))
    assert len(answers) == 1
