"""The chat template that is saved with a processor writes, character for character, what the model was trained on."""

from pathlib import Path
from typing import Any

import pytest
from jinja2 import TemplateError
from PIL import Image
from tests.data.text.test_labels import KINDS, build
from transformers import CLIPImageProcessorPil, PreTrainedTokenizerFast

from llava_mini.batch import IGNORE
from llava_mini.data.text.conversation import Conversation, Turn
from llava_mini.data.text.labels import ConversationTokenizer
from llava_mini.data.text.templates import LLAMA3, PLAIN, TINY, VICUNA, ConversationTemplate, template_named
from llava_mini.errors import UserError
from llava_mini.models import LlavaMiniProcessor
from llava_mini.token_layout import TokenLayout

NAMES = ["vicuna_v1", "llama3", "mistral", "chatml", "plain", "tiny"]
TURNS = (Turn("<image>\nWhat is 'it'? ", '\n A "parrot". '), Turn("Where?\n", "On a {{ tree }}."), Turn("  ", "早 🦜"))
OWN = ConversationTemplate(
    system="Be {% kind %} \"and\" 'brief' 🦜\\.", user_prefix="U: ", assistant_prefix=" A: ", image_token="<|img|>"
)

OF_EACH_KIND = pytest.mark.parametrize(
    ("kind", "template"),
    [(kind, template) for kind in KINDS for template in (VICUNA, LLAMA3, TINY)
     if template is not LLAMA3 or kind.startswith("byte_level")],
)  # fmt: skip


def processor_of(tokenizer: PreTrainedTokenizerFast, template: ConversationTemplate) -> LlavaMiniProcessor:
    images = CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size=24)
    token = template.image_token
    return LlavaMiniProcessor(images, tokenizer, image_token=token, chat_template=template.chat_template())


def messages(turns: tuple[Turn, ...], system: str | None = None) -> list[dict[str, Any]]:
    """The turns with texts as contents."""
    said: list[dict[str, Any]] = [] if system is None else [{"role": "system", "content": system}]
    for turn in turns:
        said += [{"role": "user", "content": turn.human}, {"role": "assistant", "content": turn.answer}]
    return said


def in_parts(said: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same messages with lists as contents; of a leading `<image>` a part is made."""
    parts = []
    for message in said:
        content: list[dict[str, str]] = [{"type": "text", "text": message["content"].removeprefix("<image>\n")}]
        if message["content"].startswith("<image>\n"):
            content.insert(0, {"type": "image"})
        parts.append({"role": message["role"], "content": content})
    return parts


@pytest.mark.parametrize("system", [None, "", " Be brief. "])
@pytest.mark.parametrize("template", [*map(template_named, NAMES), OWN], ids=[*NAMES, "own"])
def test_conversations_are_written_as_for_training(
    tokenizer: PreTrainedTokenizerFast, template: ConversationTemplate, system: str | None
) -> None:
    expected = template.render(Conversation(TURNS, system)).text
    processor = processor_of(tokenizer, template)
    assert processor.apply_chat_template(messages(TURNS, system), tokenize=False) == expected
    assert processor.apply_chat_template(in_parts(messages(TURNS, system)), tokenize=False) == expected


@pytest.mark.parametrize("template", [*map(template_named, NAMES), OWN], ids=[*NAMES, "own"])
def test_a_prompt_is_the_text_before_the_answer_without_the_spaces_before_it(
    tokenizer: PreTrainedTokenizerFast, template: ConversationTemplate
) -> None:
    rendered = template.render(Conversation(TURNS))
    for number, answer in enumerate(rendered.answers):
        asked = messages(TURNS)[: 2 * number + 1]
        prompt = processor_of(tokenizer, template).apply_chat_template(
            asked, add_generation_prompt=True, tokenize=False
        )
        before = rendered.text[: answer.start]
        assert prompt == (before.rstrip(" "))


@OF_EACH_KIND
def test_tokens_of_a_prompt_are_those_before_the_answer_in_training(kind: str, template: ConversationTemplate) -> None:
    """Also `<s>`, once, which the tokenizer puts there by itself. Tokens of words begin with the space before them."""
    conversation = Conversation((Turn("<image>\nWhat is it?", "A parrot."),), images=1)
    tokenizer = build(kind, [template.render(conversation).text, "A parrot. A parrot."] * 3)
    tokenizer.pad_token = "</s>"
    processor = processor_of(tokenizer, template)
    tokenize = ConversationTokenizer(tokenizer, template, turns="conversation", layout=TokenLayout(1, 1))
    sample = tokenize(conversation, [1])
    first = int((sample.labels != IGNORE).nonzero()[0])
    prompt = processor.apply_chat_template(messages(conversation.turns)[:1], add_generation_prompt=True, tokenize=False)
    ids = processor(text=prompt, images=[Image.new("RGB", (24, 24))])["input_ids"][0].tolist()
    assert ids == sample.input_ids[:first].tolist()
    assert ids.count(tokenizer.bos_token_id) == 1


@OF_EACH_KIND
def test_marked_answers_are_the_supervised_tokens(kind: str, template: ConversationTemplate) -> None:
    turns = (Turn("<image>\nWhat is it?", "A parrot."), Turn("Where?", "On a tree."))
    conversation = Conversation(turns, images=1)
    text = template.render(conversation).text
    tokenizer = build(kind, [text, "A parrot. On a tree."] * 3)
    tokenizer.pad_token = "</s>"
    sample = ConversationTokenizer(tokenizer, template, turns="conversation", layout=TokenLayout(1, 1))(
        conversation, [1]
    )
    said = in_parts(messages(turns))
    said[0]["content"][0]["image"] = Image.new("RGB", (24, 24))
    made = processor_of(tokenizer, template).apply_chat_template(
        [said], tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    assert made["input_ids"].tolist() == [sample.input_ids.tolist()]
    assert made["instruction_mask"].tolist() == [(sample.labels == IGNORE).int().tolist()]


def test_pictures_and_videos_before_the_text_stand_one_a_line(tokenizer: PreTrainedTokenizerFast) -> None:
    text = {"type": "text", "text": "what moved"}
    content = [{"type": "image"}, {"type": "video"}, text, {"type": "image"}, {"type": "text", "text": " here"}]
    said = [{"role": "user", "content": content}]
    prompt = processor_of(tokenizer, TINY).apply_chat_template(said, add_generation_prompt=True, tokenize=False)
    assert prompt == "<image>\n<video>\nwhat moved<image> here <answer>"
    only = [{"role": "user", "content": [{"type": "image"}]}]
    assert processor_of(tokenizer, TINY).apply_chat_template(only, tokenize=False) == "<image> <answer> "


def test_captions_show_the_pictures_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    content = [{"type": "video"}, {"type": "text", "text": "Describe it."}]
    said = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": content}]
    assert processor_of(tokenizer, PLAIN).apply_chat_template(said, tokenize=False) == "<video>"


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ([{"role": "tool", "content": "?"}], "a message of tool"),
        ([{"role": "user", "content": "?"}, {"role": "system", "content": "?"}], "a message of system"),
        ([{"role": "user", "content": [{"type": "audio"}]}], "a part of type 'audio'; allowed are text"),
    ],
)
def test_what_no_template_can_write_is_named(
    tokenizer: PreTrainedTokenizerFast, said: list[dict[str, Any]], reason: str
) -> None:
    with pytest.raises((TemplateError, UserError), match=reason):
        processor_of(tokenizer, VICUNA).apply_chat_template(said, tokenize=False)


def test_it_is_saved_with_the_processor_and_goes_before_the_tokenizers_own(tmp_path: Path) -> None:
    tokenizer = build(KINDS[0], ["a text"])
    tokenizer.chat_template = "that of the language model"
    processor_of(tokenizer, VICUNA).save_pretrained(tmp_path)
    loaded = LlavaMiniProcessor.from_pretrained(tmp_path)
    assert loaded.chat_template == VICUNA.chat_template()
