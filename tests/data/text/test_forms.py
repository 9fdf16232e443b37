"""Every public form of a record means the same, and no file that a record names gets lost in silence."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from llava_mini.data.text.conversation import Conversation, Turn, parse_record
from llava_mini.data.text.forms import media_names, texts_of
from llava_mini.errors import SampleError

TALK = [{"from": "human", "value": "what is it"}, {"from": "gpt", "value": "a ring"}]
ANSWER = {"role": "assistant", "content": "a ring"}


def parse(record: dict[str, Any]) -> Conversation:
    """What `data build` makes of a record."""
    conversation = parse_record(json.dumps(record).encode())
    conversation.check_files(stored=0)
    return conversation


def said(*contents: Any) -> list[dict[str, Any]]:
    """Messages of user and assistant in turn."""
    return [{"role": ("user", "assistant")[place % 2], "content": content} for place, content in enumerate(contents)]


def with_key(messages: list[dict[str, Any]], **more: Any) -> list[dict[str, Any]]:
    """The messages, the last with further keys."""
    return [*messages[:-1], {**messages[-1], **more}]


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


ONE = Conversation((Turn("<image>\nwhat is it", "a ring"),), images=1)
CLIP = Conversation((Turn("<image>\nwhat is it", "a ring"),), images=1, is_video=True)
IMAGE, CLIP_PART = {"type": "image"}, {"type": "video"}


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"image": "a.jpg", "conversations": TALK}, ONE),
        ({"images": ["a.jpg"], "conversations": TALK}, ONE),
        ({"images": "a.jpg", "image": None, "conversations": TALK}, ONE),
        ({"videos": ["a.mp4"], "images": [], "conversations": TALK}, CLIP),
        ({"images": ["a.jpg"], "messages": said("<image>what is it", "a ring")}, ONE),
        ({"videos": ["a.mp4"], "messages": said("<video>what is it", "a ring")}, CLIP),
        ({"images": ["a.jpg"], "query": "what is it", "response": "a ring"}, ONE),
        ({"images": ["a.jpg"], "query": "<image>what is it", "response": "a ring", "history": []}, ONE),
        ({"images": ["a.jpg"], "instruction": "<image>what is it", "input": "", "output": "a ring"}, ONE),
        ({"videos": ["a.mp4"], "instruction": "", "input": "<video>what is it", "output": "a ring"}, CLIP),
        ({"images": ["a.jpg"], "messages": said([IMAGE, text("what is it")], "a ring")}, ONE),
        ({"images": ["a.jpg"], "messages": said([text("what is it"), IMAGE], [text("a "), text("ring")])}, ONE),
        ({"messages": said([{"type": "image", "image": "a.jpg"}, text("what is it")], "a ring")}, ONE),
        ({"messages": said([{"type": "image", "url": "a.jpg"}, text("what is it")], "a ring")}, ONE),
        ({"messages": said([{"type": "image_url", "image_url": {"url": "a.jpg"}}, text("what is it")], "a ring")}, ONE),
        ({"messages": said([{"type": "video", "path": "a.mp4"}, text("what is it")], "a ring")}, CLIP),
        ({"videos": ["a.mp4"], "conversations": said([CLIP_PART, text("what is it")], "a ring")}, CLIP),
    ],
)
def test_every_form_gives_the_same_conversation_and_files(record: dict[str, Any], expected: Conversation) -> None:
    assert parse(record) == expected
    assert media_names(record) == ((["a.mp4"], True) if expected.is_video else (["a.jpg"], False))


@pytest.mark.parametrize(
    "record",
    [
        {"system": "Be brief.", "conversations": said("a", "b", "c", "d")},
        {"system": "Be brief.", "messages": said("a", "b", "c", "d")},
        {"messages": [{"role": "system", "content": "Be brief."}, *said("a", "b", "c", "d")]},
        {"system": "Be brief.", "messages": [{"role": "system", "content": "Be brief."}, *said("a", "b", "c", "d")]},
        {"messages": [{"role": "system", "content": [text("Be brief.")]}, *said("a", "b", "c", "d")]},
        {"system": "Be brief.", "query": "c", "response": "d", "history": [["a", "b"]]},
        {"system": "Be brief.", "instruction": "c", "input": None, "output": "d", "history": [["a", "b"]]},
    ],
)  # fmt: skip
def test_system_text_and_history_are_read_in_every_form(record: dict[str, Any]) -> None:
    assert parse(record) == Conversation((Turn("a", "b"), Turn("c", "d")), system="Be brief.")
    assert set(texts_of(record)) == {*"abcd", "Be brief."}


def test_the_examples_of_the_manual_are_read() -> None:
    manual = (Path(__file__).parents[3] / "docs" / "data.md").read_text(encoding="utf-8")
    block = manual.partition("(`src/llava_mini/data/text/forms.py`)")[2].partition("| | |")[0]
    examples = [json.loads(line) for line in block.splitlines() if line.startswith("    ")]
    assert [media_names(example) for example in examples] == [
        (["a.jpg"], False), (["a.jpg", "b.jpg"], False), (["a.mp4"], True), *[(["a.jpg"], False)] * 4,
    ]  # fmt: skip
    assert [parse(example).ignored for example in examples] == [()] * 7
    assert [len(parse(example).turns) for example in examples] == [1, 1, 1, 1, 1, 2, 1]


def test_what_an_instruction_is_about_comes_on_a_line_of_its_own() -> None:
    record = {"instruction": "Translate.", "input": "bonjour", "output": "hello"}
    assert parse(record).turns == (Turn("Translate.\nbonjour", "hello"),)


def test_observations_are_read_as_what_a_human_says() -> None:
    talk = [("human", "look it up"), ("function_call", "find(x)"), ("observation", "x is 3"), ("gpt", "3")]
    record = {"conversations": [{"from": role, "value": words} for role, words in talk]}
    assert parse(record).turns == (Turn("look it up", "find(x)"), Turn("x is 3", "3"))


def test_several_images_in_one_turn_keep_their_places_as_the_chat_template_writes_them() -> None:
    names = ["a.jpg", "b.jpg"]
    both = parse({"images": names, "messages": said([IMAGE, IMAGE, text("alike?")], "yes")})
    assert both == Conversation((Turn("<image>\n<image>\nalike?", "yes"),), images=2)
    parts = [text("is "), {"type": "image", "image": "a.jpg"}, text(" like "), {"type": "image", "image": "b.jpg"}]
    within = {"messages": said(parts, "yes", "sure?", "yes")}
    assert parse(within).turns[0] == Turn("is <image> like <image>", "yes") and media_names(within) == (names, False)
    front = parse({"images": names, "query": "alike?", "response": "yes"})
    assert front.turns == (Turn("<image>\n<image>\nalike?", "yes"),)
    later = parse({"images": names, "messages": said("<image>\nthis", "a", "<image>\nand this", "b")})
    assert [turn.human for turn in later.turns] == ["<image>\nthis", "<image>\nand this"]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"image": "a.jpg", "images": ["b.jpg"]}, "both `image` and `images`"),
        ({"images": [{"path": "a.jpg"}]}, "images is neither a file name nor a list of them"),
        ({"videos": ["a.mp4", "b.mp4"]}, "2 videos, 1 allowed"),
        ({"images": ["a.jpg"], "videos": ["a.mp4"]}, "both an image and a video"),
        ({"images": ["a.jpg", "b.jpg"], "messages": said("<image>", "b")}, "1 placeholders for 2 images"),
        ({"messages": said([{"type": "image", "image": 3}], "b")}, "image of a part is no file name"),
        ({"images": ["a.jpg"], "messages": said([{"type": "image", "image": "b.jpg"}], "b")}, "both by the record and"),
        ({"images": ["a.jpg"], "messages": said([IMAGE, IMAGE], "b")}, "2 placeholders for 1 images"),
        ({"messages": said([{"type": "input_audio"}], "b")}, "a part of type 'input_audio'; allowed: text, image"),
        ({"messages": said([7], "b")}, "a part of type 'None'"),
        ({"messages": said([{"type": "text"}], "b")}, "`text` of a part is no text"),
        ({"images": ["a.jpg"], "messages": said("a", [IMAGE])}, "an image in a message from 'assistant'"),
        ({"messages": said("a", None)}, "`content` of a message is no text"),
        ({"conversations": TALK, "messages": said("a", "b")}, "both `conversations` and `messages`"),
        ({"system": 3}, "`system` is no text"),
        ({"system": "a", "messages": [{"role": "system", "content": "b"}, *said("a", "b")]}, "differs from `system`"),
        ({"instruction": "a", "output": ["b", "c"]}, "`output` is no text"),
        ({"instruction": "a", "output": ""}, "an empty answer"),
        ({"query": ["a"], "response": "b"}, "`query` is no text"),
        ({"query": "a", "response": "b", "history": [["a"]]}, "`history` is no list of pairs"),
        ({"query": "a", "response": "b", "history": [["a", 3]]}, "`content` of a message is no text"),
        ({"tools": "[{}]", "messages": said("a", "b")}, "`tools` is not read: no template writes functions"),
        ({"messages": [said("a")[0], {**ANSWER, "tool_calls": [{}]}]}, r"`messages\[\]\.tool_calls` is not read"),
        ({"text": "only"}, "no conversation"),
    ],
)  # fmt: skip
def test_records_that_could_mean_something_else_say_why(fields: dict[str, Any], reason: str) -> None:
    alone = {"conversations", "messages", "instruction", "query", "text"} & fields.keys()
    with pytest.raises(SampleError, match=reason):
        parse(fields if alone else {"conversations": TALK, **fields})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("Image", "a.jpg"),
        ("image_path", "a.jpg"),
        ("imagePath", "a"),
        ("img", "000001"),
        ("IMG", ["a"]),
        ("image2", "a.png"),
        ("audio", "a.wav"),
        ("audios", ["a"]),
        ("video_file", "a.mp4"),
        ("picture", {"path": "a"}),
        ("frames", ["0.jpg", "1.jpg"]),
        ("image_url", "https://host/a.jpg"),
        ("file", "coco/000001.JPG"),
        ("url", "https://host/a.webp"),
        ("meta", {"about": [{"name": "a b.mkv"}]}),
    ],
)
def test_a_file_under_a_key_that_is_not_read_makes_no_sample_of_text(key: str, value: Any) -> None:
    reason = rf"^`{key}` is not read \(files are named by image, images, video, videos\)$"
    with pytest.raises(SampleError, match=reason):
        parse({key: value, "conversations": TALK})
    with pytest.raises(SampleError, match=rf"^`messages\[\]\.{key}` is not read"):
        parse({"messages": [{**said("a")[0], key: value}, ANSWER]})


@pytest.mark.parametrize(("key", "value"), [("image2", "b.jpg"), ("audio", ["b.wav"]), ("video_path", "b.mp4")])
def test_a_second_file_under_a_key_that_is_not_read_is_no_small_matter(key: str, value: Any) -> None:
    with pytest.raises(SampleError, match=f"^`{key}` is not read"):
        parse({"image": "a.jpg", key: value, "conversations": TALK})


@pytest.mark.parametrize(
    ("text", "mark"),
    [
        ("<|vision_start|><|image_pad|><|vision_end|>what", "<|vision_start|>"),
        ("<|image_1|>\nwhat", "<|image_1|>"),
        ("<image_1>what", "<image_1>"),
        ("<ImageHere>what", "<ImageHere>"),
        ("<Image>what", "<Image>"),
        ("find <ref-object>", "<ref-object>"),
        ("what is in <bbox>", "<bbox>"),
    ],
)
def test_placeholders_of_other_projects_are_refused(text: str, mark: str) -> None:
    for files in ({}, {"image": "a.jpg"}):
        with pytest.raises(SampleError, match=rf"^{re.escape(mark)} marks nothing here"):
            parse({**files, "messages": [*said(text), ANSWER]})


@pytest.mark.parametrize(
    "text", ["use <Image> or <img> here", "a <bbox> b", "<|endoftext|>", "![x](a.png) in Markdown"]
)
def test_what_people_also_write_about_is_a_text(text: str) -> None:
    assert parse({"messages": [*said(text), ANSWER]}).turns[0].human == text


def test_a_placeholder_in_a_system_message_is_refused() -> None:
    with pytest.raises(SampleError, match="a system message contains <image>"):
        parse({"system": "look at <image>", "image": "a.jpg", "conversations": TALK})


def test_pictures_that_are_stored_need_no_name_in_a_key_that_is_read() -> None:
    names = ["a.jpg", "b.jpg"]
    stored = parse_record(json.dumps({"image_names": names, "conversations": TALK}).encode())
    stored.check_files(stored=2)
    with pytest.raises(SampleError, match="^`image_names` is not read"):
        stored.check_files(stored=0)
    with pytest.raises(SampleError, match="^`image2` is not read"):
        parse_record(json.dumps({"image": "a.jpg", "image2": "b.jpg", "conversations": TALK}).encode()).check_files(2)


@pytest.mark.parametrize(
    "fields",
    [
        {"image": "coco/a.jpg", "image_path": "/data/coco/a.jpg"},
        {"image": "a.jpg", "image_url": "https://host/full.jpg"},
        {"image": "a.jpg", "image_id": "000001", "caption_file": "b.jpg"},
        {"score": 0.5, "image_size": [640, 480], "num_frames": 3, "has_audio": False},
        {"model": "x", "note": "a photo.jpg is\nmeant", "domain": "web"},
    ],
)  # fmt: skip
def test_other_keys_are_ignored_and_named(fields: dict[str, Any]) -> None:
    expected = tuple(key for key in fields if key != "image")
    assert parse({"id": 1, "source": "s", **fields, "conversations": TALK}).ignored == expected


def test_keys_of_messages_and_parts_are_named_too_and_what_is_empty_tells_nothing() -> None:
    part = {"type": "image_url", "image_url": "a.jpg", "detail": "low"}
    record = {
        "messages": [{**said([part])[0], "name": "x", "loss": None}, {**ANSWER, "loss": True}],
        "audio": "",
        "a": [],
    }
    assert parse(record).ignored == ("messages[].name", "content[].detail", "messages[].loss")
    assert parse({"conversations": TALK, "instruction": "more", "history": [["a", "b"]]}).ignored == (
        "instruction", "history",
    )  # fmt: skip
    assert parse({"query": "a", "response": "b", "history": [], "input": "more"}).ignored == ("input",)


def test_texts_of_what_cannot_be_read_are_those_that_can() -> None:
    assert texts_of({"conversations": [{"from": "human", "value": 7}, "x", {"from": "gpt", "value": "a"}]}) == ["a"]
    assert texts_of({"messages": said([text("a"), IMAGE, {"type": "text"}], "b")}) == ["a", "b"]
    assert texts_of({"conversations": TALK, "messages": said("a")}) == []
    assert texts_of({"instruction": "a", "input": "b", "output": "c", "system": "d"}) == ["d", "a\nb", "c"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("Picture 1: <img>a.jpg</img>\nwhat is it", "<img>a.jpg</img>"),
        ("<img>https://host/a</img>what is it", "<img>https://host/a</img>"),
        ("<video> clips/a.mp4 </video>what is it", "<video> clips/a.mp4 </video>"),
        ("<audio>a.flac</audio>what is it", "<audio>a.flac</audio>"),
    ],
)
@pytest.mark.parametrize("fields", [{}, {"image": "other.png"}])
def test_a_file_that_a_question_names_in_its_text_is_not_lost_in_silence(
    words: str, told: str, fields: dict[str, str]
) -> None:
    with pytest.raises(SampleError, match=re.escape(f"`{told}` is not read (files are named by image, images, video")):
        parse({"messages": said(words, "a ring"), **fields})


@pytest.mark.parametrize(
    "record",
    [
        {"image": "a.jpg", "messages": said("Picture 1: <img>a.jpg</img> what is it", "a ring")},
        {"messages": said("what does <img></img> mean, and <img>text</img>", "a ring")},
        {"messages": said("how do I show a.jpg", "write <img>a.jpg</img>")},
    ],
)
def test_other_tags_are_text(record: dict[str, Any]) -> None:
    assert len(parse(record).turns) == 1


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"query": "a", "response": "b", "label": False}, "`label` says that the answer is not wanted"),
        ({"messages": with_key(said("a", "b"), loss=False)}, "a message with `loss` False"),
        ({"messages": with_key(said("a", "b"), weight=0)}, "a message with `weight` 0"),
        ({"messages": "[]"}, "`messages` is str, not a list of messages"),
        (
            {"messages": said([{"type": "image", "source": {"data": "x"}}, text("a")], "b")},
            "image of a part under `source`",
        ),
    ],
)
def test_what_must_not_be_learned_or_is_not_read_is_rejected(record: dict[str, Any], reason: str) -> None:
    with pytest.raises(SampleError, match=reason):
        parse(record)


def test_texts_among_the_parts_of_a_message_are_read() -> None:
    assert parse({"messages": said(["is ", "it"], "b")}).turns == (Turn("is it", "b"),)
    assert parse({"query": "a", "response": "b", "label": True}).turns == (Turn("a", "b"),)
    assert parse({"messages": with_key(said("a", "b"), loss=True, weight=1)}).turns == (Turn("a", "b"),)
