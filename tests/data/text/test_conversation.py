"""Every public form of a record gives the same conversation; one that cannot be used says why."""

import json
from typing import Any

import pytest

from llava_mini.data.text.conversation import (
    Conversation,
    Turn,
    conversation_of,
    independent_conversations,
    parse_record,
)
from llava_mini.data.text.forms import media_names
from llava_mini.errors import SampleError


def parse(*messages: tuple[str, Any], **fields: Any) -> Conversation:
    """What a record with messages (role, text) and other fields gives."""
    conversations = [{"from": role, "value": text} for role, text in messages]
    return parse_record(json.dumps({"conversations": conversations, **fields}).encode())


def test_a_record_gives_its_turns_and_kinds() -> None:
    messages = [("human", "<image>\na"), ("gpt", "b")]
    conversation = parse(*messages, kinds=["color"])
    assert conversation == Conversation((Turn("<image>\na", "b", "color"),))
    assert conversation.kinds == ["color"]
    assert parse(*messages).kinds == []
    record = {"conversations": [{"from": role, "value": text} for role, text in messages], "kinds": ["color"]}
    assert conversation_of(record) == conversation


@pytest.mark.parametrize("human", ["human", "user"])
@pytest.mark.parametrize("assistant", ["gpt", "assistant"])
@pytest.mark.parametrize("keys", [("from", "value"), ("role", "content")])
def test_all_role_names_and_both_pairs_of_keys_mean_the_same(human: str, assistant: str, keys: tuple[str, str]) -> None:
    said = [("system", "Be brief."), (human, "a"), (assistant, "b"), (human, "c"), (assistant, "d")]
    record = {"conversations": [dict(zip(keys, message, strict=True)) for message in said]}
    expected = Conversation((Turn("a", "b"), Turn("c", "d")), system="Be brief.")
    assert parse_record(json.dumps(record).encode()) == expected


def test_an_empty_system_message_leaves_it_to_the_template() -> None:
    assert parse(("system", ""), ("human", "a"), ("gpt", "b")).system is None


@pytest.mark.parametrize(
    ("human", "fields"),
    [
        ("<image>\nwhat is it", {"image": "a.jpg"}),
        ("what is it\n<image>", {"image": "a.jpg"}),
        ("what <image> is it", {"image": ["a.jpg"]}),
        ("what is it", {"image": "a.jpg"}),
        ("<video>\nwhat is it", {"video": "a.mp4"}),
        ("<image>\nwhat is it", {"video": ["a.mp4"]}),
        ("what is it <video>", {"video": "a.mp4", "image": None}),
        ("what is it", {"video": "a.mp4", "image": ""}),
    ],
)
def test_one_image_or_video_comes_first_wherever_it_stood(human: str, fields: dict[str, Any]) -> None:
    conversation = parse(("human", human), ("gpt", "b"), ("human", "c"), ("gpt", "d"), **fields)
    assert conversation.turns[0].human.replace("  ", " ") == "<image>\nwhat is it"
    assert (conversation.num_images, conversation.images) == (1, 1)
    assert conversation.is_video == ("video" in fields)


def test_a_caption_may_be_asked_for_by_the_image_alone() -> None:
    assert parse(("human", "<image>\n"), ("gpt", "b"), image="a.jpg").turns == (Turn("<image>", "b"),)
    assert parse(("human", ""), ("gpt", "b"), image="a.jpg").turns == (Turn("<image>", "b"),)


def test_an_image_of_a_later_turn_stays_in_that_turn() -> None:
    turns = parse(("human", "a"), ("gpt", "b"), ("human", "c <image>"), ("gpt", "d"), image="x.jpg").turns
    assert [turn.human for turn in turns] == ["a", "<image>\nc"]


def test_several_images_stay_where_they_are_or_go_to_the_very_front() -> None:
    images, text = {"image": ["a.jpg", "b.jpg"]}, "is <image> like <image>"
    assert parse(("human", text), ("gpt", "b"), **images).turns == (Turn(text, "b"),)
    conversation = parse(("human", "are they alike"), ("gpt", "b"), **images)
    assert conversation.turns[0].human == "<image>\n<image>\nare they alike"
    assert (conversation.num_images, conversation.images, conversation.is_video) == (2, 2, False)


def test_text_without_media_has_no_placeholder_and_may_speak_of_video() -> None:
    absent: list[dict[str, Any]] = [{}, {"image": None}, {"image": []}, {"video": ""}]
    for fields in absent:
        conversation = parse(("human", "what does <video> do in HTML"), ("gpt", "<video> shows a clip"), **fields)
        assert (conversation.num_images, conversation.images, conversation.is_video) == (0, 0, False)
        assert conversation.turns == (Turn("what does <video> do in HTML", "<video> shows a clip"),)


@pytest.mark.parametrize("fields", [{}, {"image": "page.png"}])
def test_html_of_a_video_is_no_placeholder(fields: dict[str, Any]) -> None:
    (turn,) = parse(("human", "<video>\n<source>\n</video>"), ("gpt", "<video></video>"), **fields).turns
    assert turn.human.endswith("<video>\n<source>\n</video>") and turn.answer == "<video></video>"


def test_messages_without_a_counterpart_are_left_out_with_their_kinds() -> None:
    said = [("gpt", "hello"), ("human", "<image> a"), ("gpt", "b"), ("human", "<image> bye")]
    conversation = parse(*said, kinds=["greeting", "color"], image="a.jpg")
    assert conversation.turns == (Turn("<image>\na", "b", "color"),)
    assert parse(("gpt", "one"), ("gpt", "two"), ("human", "a"), ("gpt", "b")).turns == (Turn("a", "b"),)


def test_white_space_of_answers_is_kept() -> None:
    assert parse(("human", " a "), ("gpt", "\n b \n")).turns == (Turn(" a ", "\n b \n"),)


@pytest.mark.parametrize(
    ("messages", "fields", "reason"),
    [
        ([], {}, "no conversation"),
        ([("human", "a")], {}, "no answer"),
        ([("gpt", "a")], {}, "no answer"),
        ([("gpt", "a"), ("human", "b")], {}, "no answer"),
        ([("system", "a")], {}, "no answer"),
        ([("human", "a"), ("human", "b"), ("gpt", "c")], {}, "do not alternate"),
        ([("human", "a"), ("gpt", "b"), ("gpt", "c")], {}, "do not alternate"),
        ([("human", "a"), ("system", "b"), ("gpt", "c")], {}, "system message that is not the first"),
        (
            [("human", "a"), ("tool", "b")],
            {},
            "from 'tool'; allowed: human, user, observation, gpt, assistant, function_call, system",
        ),
        ([("human", "a"), (["gpt"], "b")], {}, "allowed: human"),
        ([("human", "a"), ("gpt", 3)], {}, "`value` of a message is no text"),
        ([("human", "a"), ("gpt", "")], {}, "an empty answer"),
        ([("human", "a"), ("gpt", "b"), ("human", "c"), ("gpt", " \n")], {}, "an empty answer"),
        ([("human", "a"), ("gpt", "see <image>")], {}, "an answer contains <image>"),
        ([("human", "a"), ("gpt", "\ud800")], {}, "no valid Unicode"),
        ([("human", "a"), ("gpt", "b")], {"kinds": ["x", "y"]}, "no list of 1 texts"),
        ([("human", "a"), ("gpt", "b")], {"kinds": [1]}, "no list of 1 texts"),
        ([("human", "a"), ("gpt", "b")], {"kinds": "x"}, "no list of 1 texts"),
        ([("human", "<image><image>"), ("gpt", "b")], {"image": "a.jpg"}, "2 placeholders for 1 images"),
        ([("human", "<image>"), ("gpt", "b")], {"image": ["a.jpg", "b.jpg"]}, "1 placeholders for 2 images"),
        ([("human", "<image><video>"), ("gpt", "b")], {"video": "a.mp4"}, "2 placeholders for 1 video"),
        ([("human", "<video>\na"), ("gpt", "b")], {"image": "a.jpg"}, "<video> in a record of images"),
        ([("human", "<image> in <video> or"), ("gpt", "b")], {"image": "a.jpg"}, "<video> in a record of images"),
        ([("human", "<video>\na"), ("gpt", "b")], {}, "<video> in a record of text only"),
        ([("human", "a"), ("gpt", "b"), ("human", "a\n<video> "), ("gpt", "b")], {}, "<video> in a record of text"),
        ([("human", "a"), ("gpt", "b")], {"image": 3}, "image is neither a file name nor a list"),
        ([("human", "a"), ("gpt", "b")], {"image": ["a.jpg", ""]}, "image is neither a file name nor a list"),
        ([("human", "a"), ("gpt", "b")], {"video": {"path": "a.mp4"}}, "video is neither a file name nor a list"),
        ([("human", "a"), ("gpt", "b")], {"video": ["a.mp4", "b.mp4"]}, "2 videos, 1 allowed"),
        ([("human", "a"), ("gpt", "b")], {"video": "a.mp4", "image": "a.jpg"}, "both an image and a video"),
    ],
)
def test_unusable_conversations_say_why(messages: list[tuple[str, Any]], fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(SampleError, match=reason):
        parse(*messages, **fields)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"\xff\x00", "not JSON"),
        (b'{"conversations": [', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"", "not JSON"),
        (b"[]", "not a JSON object"),
        (b"{}", "no conversation"),
        (b'{"conversations": "text"}', "not a list of messages"),
        (b'{"conversations": ["a", "b"]}', "neither `from` nor `role`"),
        (b'{"conversations": [{"value": "a"}]}', "neither `from` nor `role`"),
        (b'{"conversations": [{"from": "human"}]}', "`value` of a message is no text"),
    ],
)
def test_broken_records_say_why(raw: bytes, reason: str) -> None:
    with pytest.raises(SampleError, match=reason):
        parse_record(raw)


def test_media_names_are_listed_as_the_record_has_them() -> None:
    assert media_names({"image": "a.jpg"}) == (["a.jpg"], False)
    assert media_names({"image": ["a.jpg", "b.jpg"], "video": None}) == (["a.jpg", "b.jpg"], False)
    assert media_names({"video": "a.mp4"}) == (["a.mp4"], True)
    assert media_names({}) == ([], False)


def test_independent_turns_all_begin_with_the_images_and_keep_the_system_message() -> None:
    talk = Conversation((Turn("is <image> like <image>", "b", "x"), Turn(" c ", "d", "y")), system="s", images=2)
    first, second = independent_conversations(talk)
    assert first == Conversation((Turn("<image>\n<image>\nis  like", "b", "x"),), system="s", images=2)
    assert second == Conversation((Turn("<image>\n<image>\nc", "d", "y"),), system="s", images=2)
