"""Templates write what the models were trained on: the same text as their public chat templates and as LLaVA itself."""

from typing import Any

import pytest
from tests.refusals import refuses
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from llava_mini.data.text.conversation import Conversation, Turn
from llava_mini.data.text.templates import (
    CHATML,
    LLAMA3,
    MISTRAL,
    PLAIN,
    TINY,
    VICUNA,
    ConversationTemplate,
    Rendered,
    Span,
    template_named,
)

TURNS = (Turn("<image>\nWhat is it? ", "\n A parrot. "), Turn("Where?", "On a tree."), Turn("  ", "早 🦜"))

# The chat templates of the models' public cards, for conversations of users and assistants with a system message.
LLAMA3_CARD = (
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}"
    "{% endif %}{{ content }}{% endfor %}"
)
QWEN2_CARD = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
)
MISTRAL_CARD = (
    "{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content'] %}"
    "{%- set loop_messages = messages[1:] %}{%- else %}{%- set loop_messages = messages %}{%- endif %}{{- bos_token }}"
    "{%- for message in loop_messages %}{%- if message['role'] == 'user' %}"
    "{%- if loop.first and system_message is defined %}"
    "{{- ' [INST] ' + system_message + '\n\n' + message['content'] + ' [/INST]' }}"
    "{%- else %}{{- ' [INST] ' + message['content'] + ' [/INST]' }}{%- endif %}"
    "{%- else %}{{- ' ' + message['content'] + eos_token}}{%- endif %}{%- endfor %}"
)


@pytest.mark.parametrize("system", [None, " Be brief. "])
@pytest.mark.parametrize(
    ("template", "card", "bos", "eos"),
    [
        (LLAMA3, LLAMA3_CARD, "<|begin_of_text|>", "<|eot_id|>"),
        (CHATML, QWEN2_CARD, "", "<|im_end|>"),
        (MISTRAL, MISTRAL_CARD, "<s>", "</s>"),
    ],
    ids=["llama3", "chatml", "mistral"],
)
def test_the_text_is_that_of_the_models_own_chat_template(
    template: ConversationTemplate, card: str, bos: str, eos: str, system: str | None
) -> None:
    messages: list[dict[str, Any]] = [] if system is None else [{"role": "system", "content": system}]
    for turn in TURNS:
        messages += [{"role": "user", "content": turn.human}, {"role": "assistant", "content": turn.answer}]
    reference = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel()), bos_token=bos, eos_token=eos)
    reference.chat_template = card
    expected = reference.apply_chat_template(messages, tokenize=False)
    assert bos + template.render(Conversation(TURNS, system)).text == expected


def test_vicuna_is_written_as_llava_writes_it() -> None:
    """Both words of the prompt carry one space before what follows, and `</s>` none."""
    system = (
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions."
    )
    talk = "USER: <image>\nWhat? ASSISTANT: A bird.</s>USER: Where? ASSISTANT: There.</s>"
    turns = (Turn("<image>\nWhat?", "A bird."), Turn("Where?", "There."))
    assert VICUNA.render(Conversation(turns)).text == f"{system} {talk}"
    assert VICUNA.render(Conversation(turns, "Be brief.")).text == f"Be brief. {talk}"


def test_plain_is_the_image_and_its_caption_alone() -> None:
    conversation = Conversation((Turn("<image>\nDescribe it.", "A parrot."),), "Be brief.")
    assert PLAIN.render(conversation) == Rendered("<image>A parrot.\n", (Span(7, 16, 17),), 0)


def test_tiny_marks_where_the_answer_begins() -> None:
    rendered = TINY.render(Conversation((Turn("<image>\nwhat color", "red"), Turn("where", "no")), "be brief"))
    assert rendered.text == "be brief <image>\nwhat color <answer> red</s>where <answer> no</s>"


@pytest.mark.parametrize("template", [VICUNA, LLAMA3, MISTRAL, CHATML, PLAIN, TINY])
@pytest.mark.parametrize("system", [None, "Be brief."])
def test_answers_are_found_and_the_head_ends_before_the_first_question(
    template: ConversationTemplate, system: str | None
) -> None:
    text, answers, head = (
        (rendered := template.render(Conversation(TURNS, system))).text,
        rendered.answers,
        rendered.head,
    )
    for turn, span in zip(TURNS, answers, strict=True):
        assert text[span.start : span.text_end] == (turn.answer.strip() if template.strip else turn.answer)
        assert text[span.text_end : span.end] == template.assistant_suffix
    one, other = (template.render(Conversation((Turn(human, "."),), system)) for human in ("a", "b"))
    assert one.head == other.head == head
    assert one.text[:head] == other.text[:head] == text[:head]
    assert ("Be brief." in text[:head]) == (system is not None and not template.captions_only)


def test_images_get_the_tokenizers_own_name() -> None:
    template = ConversationTemplate(image_token="<|img|>")
    assert template.render(Conversation((Turn("<image> <image>", "a"),))).text == "<|img|> <|img|>a</s>"


def test_names_of_templates() -> None:
    assert template_named("llama3") is LLAMA3
    with refuses(
        "template",
        "vicuna",
        "vicuna_v1, llama3, mistral, chatml, plain, tiny, or a template's own fields",
    ):
        template_named("vicuna")
