"""Build the template that conversations are written out with from a config."""

from __future__ import annotations

from typing import Any

from llava_mini.config import instantiate
from llava_mini.data.templates import ConversationTemplate, template_named


def build_template(config: dict[str, Any]) -> ConversationTemplate:
    """Return the template that conversations are written out with: one of this package by its name, or a user's own.

    Raises:
        UserError: a name or field is unknown.
    """
    spec = config["data"]["template"]
    if isinstance(spec, str):
        return template_named(spec)
    path = f"{ConversationTemplate.__module__}.{ConversationTemplate.__qualname__}"
    template: ConversationTemplate = instantiate({"_target_": path, **spec}, "data.template")
    return template
