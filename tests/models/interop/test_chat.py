"""A converted folder keeps its source's chat template where that is one for pictures, else it gets the one given."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoProcessor

from llava_mini.errors import UserError
from llava_mini.models.interop.convert import convert_llava

QUERY = {"_target_": "llava_mini.models.compressors.query.QueryCompressor", "C": 1, "num_heads": 8}
ASKED = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
GIVEN = "{{ 'given: <image> What is it?' }}"
# As llava-1.5 has it, and as a language model has it.
LLAVA = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' ' }}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
TEXTS = "{% for message in messages %}{{ message['content'] | trim + '</s>' }}{% endfor %}"
AS_OBJECT = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


@pytest.mark.parametrize(
    ("name", "template", "prompt"),
    [
        ("chat_template.jinja", LLAVA, "USER: <image>\nWhat is it? ASSISTANT:"),
        ("chat_template.json", LLAVA, "USER: <image>\nWhat is it? ASSISTANT:"),
        ("chat_template.jinja", TEXTS, "given: <image> What is it?"),
        ("chat_template.jinja", AS_OBJECT, "given: <image> What is it?"),
        ("chat_template.jinja", "{% for", "given: <image> What is it?"),
        (None, None, "given: <image> What is it?"),
    ],
)
def test_the_sources_own_template_or_the_one_given(
    make_llava: Callable[..., Any], tmp_path: Path, name: str | None, template: str | None, prompt: str
) -> None:
    _, source = make_llava()
    if name:
        content = json.dumps({"chat_template": template}) if name.endswith("json") else template
        (source / name).write_text(content)
    convert_llava(source, tmp_path / "ours", compressor=QUERY, num_fusion_layers=1, init="copy", chat_template=GIVEN)
    processor = AutoProcessor.from_pretrained(tmp_path / "ours")
    assert processor.apply_chat_template(ASKED, add_generation_prompt=True, tokenize=False) == prompt


def test_a_template_file_that_is_no_json_is_named(make_llava: Callable[..., Any], tmp_path: Path) -> None:
    _, source = make_llava()
    (source / "chat_template.json").write_text("{")
    with pytest.raises(UserError, match=r"chat_template\.json is not valid JSON"):
        convert_llava(source, tmp_path / "ours", compressor=QUERY, num_fusion_layers=1, init="copy")
    assert not (tmp_path / "ours").exists()
