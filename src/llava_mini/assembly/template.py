"""Build the template that conversations are written out with from a config."""

from __future__ import annotations

from llava_mini.config import Component, Config, instantiate
from llava_mini.data.text.templates import ConversationTemplate, template_named


def build_template(config: Config) -> ConversationTemplate:
    """Return the template that conversations are written out with: one of this package by its name, or a user's own.

    Raises:
        UserError: a name or field is unknown.
    """
    spec = config.data.template
    if isinstance(spec, str):
        return template_named(spec)
    path = f"{ConversationTemplate.__module__}.{ConversationTemplate.__qualname__}"
    template: ConversationTemplate = instantiate(Component(path, spec), "data.template")
    return template
