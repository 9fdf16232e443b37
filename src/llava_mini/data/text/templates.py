"""Chat templates, which write conversations as text: one `ConversationTemplate` for every public chat format.

A template is data. It gives the text and the characters of every answer, so labels need no piecewise tokenizing. For
inference, it gives the same text as a Jinja template that is saved with the processor. What a tokenizer adds before a
text by itself (`<s>`, `<|begin_of_text|>`) is part of neither: the processor is called with its default
`add_special_tokens=True`, as for labels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from llava_mini.data.text.conversation import Conversation, Turn
from llava_mini.data.text.forms import IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER
from llava_mini.errors import refused


@dataclass(frozen=True)
class Span:
    """Span of an answer: its text is [start, text_end), with its end mark [start, end), in characters of the whole."""

    start: int
    text_end: int
    end: int


@dataclass(frozen=True)
class Rendered:
    """A conversation as text, its answers, and the number of characters before anything of its first turn."""

    text: str
    answers: tuple[Span, ...]
    head: int


# A message's content becomes one text; then messages are joined as `ConversationTemplate.render` joins turns.
_CHAT_TEMPLATE = """
{%- macro written(content, shown) -%}
    {%- set ns = namespace(text='', front=true) -%}
    {%- if content is string -%}
        {%- set ns.text = content -%}
    {%- else -%}
        {%- for part in content -%}
            {%- if part.type == 'text' -%}
                {%- set ns.text = ns.text + part.text -%}
                {%- set ns.front = false -%}
            {%- elif part.type in ('image', 'video') -%}
                {%- set mark = image if part.type == 'image' else video -%}
                {%- set ns.text = ns.text + mark + ('\\n' if ns.front and not loop.last else '') -%}
            {%- else -%}
                {{- raise_exception('a part of type ' ~ part.type ~ '; allowed are image, video and text') -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {%- if shown and captions_only -%}
        {%- set ns.text = image * ns.text.count(image) + video * ns.text.count(video) -%}
    {%- endif -%}
    {%- set ns.text = ns.text | trim if strip else ns.text -%}
    {{- ns.text.replace(image, image_token) if shown else ns.text -}}
{%- endmacro -%}
{%- if messages and messages[0].role == 'system' -%}
    {%- set system = messages[0].content -%}
    {%- set messages = messages[1:] -%}
{%- endif -%}
{%- set system = written(system, false) -%}
{%- set system = system_prefix + system + system_suffix if system and not captions_only else '' -%}
{{- '' if system_in_turn else system -}}
{%- for message in messages -%}
    {%- if message.role == 'user' -%}
        {{- user_prefix + (system if system_in_turn and loop.first else '') + written(message.content, true) -}}
        {{- opening if loop.last and add_generation_prompt else user_suffix -}}
    {%- elif message.role == 'assistant' -%}
        {{- assistant_prefix -}}
        {%- generation -%}{{- written(message.content, false) + assistant_suffix -}}{%- endgeneration -%}
        {{- turn_suffix -}}
    {%- else -%}
        {{- raise_exception('a message of ' ~ message.role ~ '; allowed: user, assistant, and system as the first') -}}
    {%- endif -%}
{%- endfor -%}"""


@dataclass(frozen=True)
class ConversationTemplate:
    """Template that writes a conversation as text.

    First system_prefix + system + system_suffix, if there is a system text; then for every turn user_prefix + text +
    user_suffix + assistant_prefix + answer + assistant_suffix + turn_suffix. The answer and assistant_suffix are
    supervised.

    Args:
        system: System text of conversations that have none.
        system_prefix: Text before a system text.
        system_suffix: Text after a system text.
        system_in_turn: Whether the system text is in the first turn, after its user_prefix.
        user_prefix: Text before a question.
        user_suffix: Text after a question.
        assistant_prefix: Text before an answer.
        assistant_suffix: Text after an answer; contains the end token.
        turn_suffix: Text after the end token.
        image_token: Token that represents an image for the tokenizer.
        strip: Whether white space around texts is removed.
        captions_only: Whether only the images remain of system text and questions.
    """

    system: str = ""
    system_prefix: str = ""
    system_suffix: str = ""
    system_in_turn: bool = False
    user_prefix: str = ""
    user_suffix: str = ""
    assistant_prefix: str = ""
    assistant_suffix: str = "</s>"
    turn_suffix: str = ""
    image_token: str = "<image>"
    strip: bool = False
    captions_only: bool = False

    def render(self, conversation: Conversation) -> Rendered:
        """Return the text of a conversation, and where its answers are."""
        system = self._system(conversation)
        text = "" if self.system_in_turn else system
        head, answers = len(text), []
        for number, turn in enumerate(conversation.turns):
            text += self.user_prefix
            if self.system_in_turn and system and not number:
                text += system
                head = len(text)
            text += self._human(turn.human) + self.user_suffix + self.assistant_prefix
            start = len(text)
            text += self._clean(turn.answer)
            text_end = len(text)
            text += self.assistant_suffix
            answers.append(Span(start, text_end, len(text)))
            text += self.turn_suffix
        return Rendered(text, tuple(answers), head)

    def chat_template(self) -> str:
        """Return the Jinja template with which `processor.apply_chat_template` writes the same text.

        Messages are those of transformers: role ("system", first; "user"; "assistant") and content, a string that may
        contain `<image>` and `<video>`, or a list of {"type": "image"}, {"type": "video"} and
        {"type": "text", "text": ...}. Placeholders before the first text are written one per line, as in the data;
        later ones within the text.

        Answers are marked (`{% generation %}`), so `return_assistant_tokens_mask` finds the supervised tokens.

        With `add_generation_prompt`, the text ends where the answer begins, without the spaces before the answer:
        tokenizers make them part of its first word.
        """
        opening = (self.user_suffix + self.assistant_prefix).rstrip(" ")
        given = self.__dict__ | {"opening": opening, "image": IMAGE_PLACEHOLDER, "video": VIDEO_PLACEHOLDER}
        return "\n".join(f"{{%- set {name} = {value!r} -%}}" for name, value in given.items()) + _CHAT_TEMPLATE

    @property
    def fixed_text(self) -> str:
        """Text that the template itself writes, all in one string."""
        system = self.system_prefix + self.system + self.system_suffix
        turn = (self.user_prefix, self.user_suffix, self.assistant_prefix, self.assistant_suffix, self.turn_suffix)
        return "".join((system, *turn))

    def _system(self, conversation: Conversation) -> str:
        system = self._clean(self.system if conversation.system is None else conversation.system)
        return self.system_prefix + system + self.system_suffix if system and not self.captions_only else ""

    def _human(self, text: str) -> str:
        if self.captions_only:
            return self.image_token * text.count(IMAGE_PLACEHOLDER)
        return self._clean(text).replace(IMAGE_PLACEHOLDER, self.image_token)

    def _clean(self, text: str) -> str:
        return text.strip() if self.strip else text


VICUNA = ConversationTemplate(
    system="A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions.",
    system_suffix=" ",
    user_prefix="USER: ",
    user_suffix=" ",
    assistant_prefix="ASSISTANT: ",
)
LLAMA3 = ConversationTemplate(
    system_prefix="<|start_header_id|>system<|end_header_id|>\n\n",
    system_suffix="<|eot_id|>",
    user_prefix="<|start_header_id|>user<|end_header_id|>\n\n",
    user_suffix="<|eot_id|>",
    assistant_prefix="<|start_header_id|>assistant<|end_header_id|>\n\n",
    assistant_suffix="<|eot_id|>",
    strip=True,
)
MISTRAL = ConversationTemplate(
    system_suffix="\n\n",
    system_in_turn=True,
    user_prefix=" [INST] ",  # with the space of the official chat template: sentencepiece reads one there in any case
    user_suffix=" [/INST]",
    assistant_prefix=" ",
)
CHATML = ConversationTemplate(  # with the system text of Qwen2
    system="You are a helpful assistant.",
    system_prefix="<|im_start|>system\n",
    system_suffix="<|im_end|>\n",
    user_prefix="<|im_start|>user\n",
    user_suffix="<|im_end|>\n",
    assistant_prefix="<|im_start|>assistant\n",
    assistant_suffix="<|im_end|>",
    turn_suffix="\n",
)
PLAIN = ConversationTemplate(assistant_suffix="\n", captions_only=True)  # LLaVA's stage 1: a newline ends an answer
TINY = ConversationTemplate(system_suffix=" ", user_suffix=" <answer> ")

_NAMED = {"vicuna_v1": VICUNA, "llama3": LLAMA3, "mistral": MISTRAL, "chatml": CHATML, "plain": PLAIN, "tiny": TINY}


_FOR_CHATS = (VICUNA, LLAMA3, MISTRAL, CHATML)


def template_of(write: Callable[[list[dict[str, str]]], str], begin: str) -> ConversationTemplate | None:
    """Return the template that writes conversations as a tokenizer's chat template does; None if none here does.

    Args:
        write: Writes messages (`{"role": ..., "content": ...}`) by the tokenizer's chat template.
        begin: Token that the tokenizer puts before a text by itself, which chat templates write out.
    """
    turns = (Turn("first?", "one."), Turn("second?", "two."))
    messages = [
        {"role": role, "content": text}
        for turn in turns
        for role, text in (("user", turn.human), ("assistant", turn.answer))
    ]
    text = write(messages).removeprefix(begin)
    for template in _FOR_CHATS:
        system = text.partition(template.user_prefix)[0]
        if system.startswith(template.system_prefix) and system.endswith(template.system_suffix):
            system = system[len(template.system_prefix) : len(system) - len(template.system_suffix)]
        like = replace(template, system="" if template.system_in_turn else system)
        if like.render(Conversation(turns=turns)).text == text:
            return like
    return None


def template_named(name: str) -> ConversationTemplate:
    """Return the template that a config names.

    Raises:
        UserError: There is no template of this name.
    """
    if name not in _NAMED:
        raise refused("template", name, allowed=f"{', '.join(_NAMED)}, or a template's own fields")
    return _NAMED[name]
