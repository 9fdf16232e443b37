"""How conversations are written out for a language model: one `ConversationTemplate` for every public chat format.

A template is data. It gives the text and the characters of every answer, so labels need no piecewise tokenising.
"""

from __future__ import annotations

from dataclasses import dataclass

from llava_mini.data.conversation import IMAGE_PLACEHOLDER, Conversation


@dataclass(frozen=True)
class ConversationTemplate:
    """How a conversation is written out.

    First `system`, then for every turn user_prefix + text + user_suffix + assistant_prefix + answer + assistant_suffix;
    the last holds the end token.
    """

    system: str = ""
    user_prefix: str = ""
    user_suffix: str = ""
    assistant_prefix: str = ""
    assistant_suffix: str = "</s>"
    image_token: str = "<image>"

    def render(self, conversation: Conversation) -> tuple[str, tuple[tuple[int, int], ...]]:
        """The text, and start and end of the characters of every answer with its suffix."""
        text, spans = self.system, []
        for turn in conversation.turns:
            human = turn.human.replace(IMAGE_PLACEHOLDER, self.image_token)
            text += self.user_prefix + human + self.user_suffix + self.assistant_prefix
            start = len(text)
            text += turn.answer + self.assistant_suffix
            spans.append((start, len(text)))
        return text, tuple(spans)


VICUNA = ConversationTemplate(
    system="A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. ",
    user_prefix="USER: ",
    user_suffix=" ",
    assistant_prefix="ASSISTANT: ",
)
PLAIN = ConversationTemplate()  # captions: the image, then the text
TINY = ConversationTemplate(user_suffix=" <answer> ")
