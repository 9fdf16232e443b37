"""The processor is called as transformers' own are: the same order and keywords, and by transformers' pipeline."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.media.test_video import clip
from tests.refusals import refuses
from transformers import LlavaProcessor, pipeline

from llava_mini.errors import UserError
from llava_mini.models import LlavaMiniProcessor

__all__ = ["clip"]  # a fixture
Factory = Callable[..., Any]
IMAGE, SIZE = 4, 24  # the placeholder's id and the pixels along a side, of `make_processor`
RED = Image.new("RGB", (SIZE, SIZE), (100, 0, 0))
CHAT = (
    "{% for message in messages %}{{ message['role'] | upper }} {% for part in message['content'] %}"
    "{{ part['text'] if part['type'] == 'text' else '<' ~ part['type'] ~ '>' }} {% endfor %}{% endfor %}ASSISTANT"
)


def test_arguments_come_in_transformers_order(make_processor: Factory) -> None:
    ours, theirs = (list(inspect.signature(each.__call__).parameters) for each in (LlavaMiniProcessor, LlavaProcessor))
    assert ours[:5] == theirs[:5] == ["self", "images", "text", "videos", "audio"]
    processor = make_processor()
    placed, named = processor(RED, "<image> what"), processor(text="<image> what", images=RED)
    assert placed["input_ids"].tolist() == named["input_ids"].tolist() == [[IMAGE, 5]]
    assert torch.equal(placed["pixel_values"], named["pixel_values"])


@pytest.mark.parametrize("nested", [False, True])
def test_keywords_of_the_tokenizer_alone_or_in_text_kwargs(make_processor: Factory, nested: bool) -> None:
    def ids(texts: list[str], **keywords: Any) -> list[list[int]]:
        given = {"text_kwargs": keywords} if nested else keywords
        return make_processor(num_image_tokens=2)(text=texts, images=RED, **given)["input_ids"].tolist()

    texts = ["<image> what", "what"]
    assert ids(texts) == [[IMAGE, IMAGE, 5], [0, 0, 5]]
    assert ids(texts, padding_side="right") == [[IMAGE, IMAGE, 5], [5, 0, 0]]
    assert ids(texts, padding="max_length", max_length=4) == [[0, IMAGE, IMAGE, 5], [0, 0, 0, 5]]
    assert ids(["<image> what is here"], truncation=True, max_length=3) == [[IMAGE, IMAGE, 5]]
    assert ids(texts, pad_to_multiple_of=4) == [[0, IMAGE, IMAGE, 5], [0, 0, 0, 5]]
    assert ids(["<image> what"], padding=False) == [[IMAGE, IMAGE, 5]]


def test_only_what_the_model_reads_comes_back_unless_asked(make_processor: Factory) -> None:
    assert set(make_processor()(text="what")) == {"input_ids", "attention_mask"}
    assert make_processor()(text="what is", return_length=True)["length"].tolist() == [2]


@pytest.mark.parametrize("given", [{"images_kwargs": {"do_rescale": False}}, {"do_rescale": False}])
def test_keywords_of_the_image_processor(make_processor: Factory, given: dict[str, Any]) -> None:
    processor = make_processor()
    inputs = processor(text="<image> <video>", images=RED, videos=[[RED]], **given)
    assert inputs["pixel_values"].amax(dim=(1, 2, 3, 4)).tolist() == [100, 100]
    plain = processor(text="<image>", images=RED)
    assert plain["pixel_values"].max() < 1  # the keyword was for that call only


def test_floats_from_0_to_1_stay_so_without_rescaling(make_processor: Factory) -> None:
    """As in transformers, where `do_rescale=False` says that they are scaled already."""
    unit = np.full((SIZE, SIZE, 3), 100 / 255)
    for image in (unit, torch.from_numpy(unit)):
        for given in ({}, {"do_rescale": False}):
            seen = make_processor()(text="<image>", images=image, **given)["pixel_values"]
            torch.testing.assert_close(seen, torch.full_like(seen, 100 / 255))


def test_unknown_keywords_are_ignored_as_transformers_ignores_them(make_processor: Factory) -> None:
    assert make_processor()(text="what is", sharpness=2)["input_ids"].tolist() == [[5, 6]]


def test_placeholders_are_never_cut_off(make_processor: Factory) -> None:
    processor = make_processor(num_image_tokens=4)
    with refuses("max_length", 3):
        processor(text=["what", "<image> what"], images=RED, truncation=True, max_length=3)


def test_what_it_does_not_make(make_processor: Factory) -> None:
    for keywords in (
        {"return_tensors": "np"},
        *({each: {"return_tensors": "np"}} for each in ("text_kwargs", "common_kwargs")),
    ):
        with refuses("return_tensors", "np", "pt"):
            make_processor()(text="what", **keywords)
    with refuses("audio", [0.0], "None"):
        make_processor()(text="what", audio=[0.0])


@pytest.mark.parametrize("given", [{}, {"images": RED}, {"text": RED}, {"text": ["what", 3]}, {"images": "what"}])
def test_text_is_needed(make_processor: Factory, given: dict[str, Any]) -> None:
    with refuses("text", allowed="a string and a list of strings"):
        make_processor()(**given)


@pytest.mark.parametrize("chat", [False, True])
def test_transformers_pipeline(make_processor: Factory, make_model: Factory, chat: bool) -> None:
    model = make_model(image_token_id=IMAGE)
    processor = make_processor(num_image_tokens=model.layout.frame(), chat_template=CHAT if chat else None)
    words_only = {"do_sample": False, "suppress_tokens": list(range(12, 99)), "max_new_tokens": 3}  # of the tokenizer
    ask = pipeline("image-text-to-text", model=model, processor=processor)
    asked: dict[str, Any]
    if chat:
        content = [{"type": "image", "image": RED}, {"type": "text", "text": "what is here"}]
        prompt, asked = "USER <image> what is here ASSISTANT", {"text": [{"role": "user", "content": content}]}
    else:
        prompt, asked = "<image> what is here", {"text": "<image> what is here", "images": RED}
    said = ask(**asked, generate_kwargs=words_only, return_full_text=False)[0]["generated_text"]
    inputs = processor(text=prompt, images=RED)
    ids = model.generate(**inputs, **words_only)[:, inputs["input_ids"].shape[1] :]
    assert said.split() == processor.batch_decode(ids, skip_special_tokens=True)[0].split() != []


@pytest.fixture
def asked(clip: Factory, tmp_path: Path) -> tuple[list[Any], list[str]]:
    """Conversations about an image and a video by name, and their prompts; of different lengths."""
    RED.save(tmp_path / "red.png")
    contents = [
        [{"type": "image", "path": str(tmp_path / "red.png")}, {"type": "text", "text": "what is here"}],
        [{"type": "video", "path": str(clip(30))}, {"type": "text", "text": "what is here and there"}],
        [{"type": "image", "url": str(tmp_path / "red.png")}, {"type": "text", "text": "what"}],
    ]
    prompts = ["<image> what is here", "<video> what is here and there", "<image> what"]
    return [[{"role": "user", "content": content}] for content in contents], [f"USER {p} ASSISTANT" for p in prompts]


def test_chats_that_name_files(make_processor: Factory, asked: tuple[list[Any], list[str]], clip: Factory) -> None:
    processor = make_processor(num_image_tokens=2, chat_template=CHAT)
    chats, prompts = asked
    inputs = processor.apply_chat_template(chats, tokenize=True, return_dict=True, return_tensors="pt")
    expected = processor(images=[RED, RED], videos=str(clip(30)), text=prompts)
    assert expected["num_frames"].tolist() == [1, 3, 1]
    assert inputs.keys() == expected.keys() and all(torch.equal(inputs[name], expected[name]) for name in inputs)
    alone = processor.apply_chat_template(chats[1], tokenize=True, return_dict=True, return_tensors="pt")
    assert torch.equal(alone["pixel_values"], expected["pixel_values"][1:4])
    fewer = {"processor_kwargs": {"num_frames": 2}}
    assert processor.apply_chat_template(chats[1], tokenize=True, return_dict=True, **fewer)["num_frames"].tolist() == [
        2
    ]


def test_a_chat_that_names_no_file(make_processor: Factory) -> None:
    chat = [{"role": "user", "content": [{"type": "image", "path": "lost.png"}]}]
    with pytest.raises(UserError, match="^lost.png: No such file or directory$"):
        make_processor(chat_template=CHAT).apply_chat_template(chat, tokenize=True, return_dict=True)


def test_transformers_pipeline_in_batches(
    make_processor: Factory, make_model: Factory, asked: tuple[list[Any], list[str]]
) -> None:
    """An answer is the one that it is alone: what is shorter is padded before, not after, its text."""
    model = make_model(image_token_id=IMAGE)
    processor = make_processor(num_image_tokens=model.layout.frame(), chat_template=CHAT)
    words_only = {"do_sample": False, "suppress_tokens": [0, 1, 2, 3, 4, *range(12, 99)], "max_new_tokens": 3}
    chats, _ = asked
    ask = pipeline("image-text-to-text", model=model, processor=processor)
    said = ask(text=chats, generate_kwargs=words_only, return_full_text=False, batch_size=2)
    for chat, ((answer,)) in zip(chats, said, strict=True):
        inputs = processor.apply_chat_template(chat, tokenize=True, return_dict=True, return_tensors="pt")
        ids = model.generate(**inputs, **words_only)[:, inputs["input_ids"].shape[1] :]
        assert answer["generated_text"].split() == processor.batch_decode(ids)[0].split() != []


def test_the_mask_of_answers_is_theirs_after_images_too(make_processor: Factory) -> None:
    """As TRL's `assistant_only_loss` asks for it: placeholders move what stands behind them."""
    template = (
        "{% for message in messages %}{% for part in message['content'] %}{% if part['type'] == 'text' %}"
        "{% if message['role'] == 'assistant' %}{% generation %}{{ part['text'] }} {% endgeneration %}"
        "{% else %}{{ part['text'] }} {% endif %}{% else %}<{{ part['type'] }}> {% endif %}{% endfor %}{% endfor %}"
    )
    processor = make_processor(num_image_tokens=3, chat_template=template)
    asks = [{"type": "image", "image": RED}, {"type": "text", "text": "what is"}, {"type": "image", "image": RED}]
    says = [{"type": "text", "text": "here and"}]
    chat = [{"role": "user", "content": asks}, {"role": "assistant", "content": says}]
    longer = [*chat, {"role": "user", "content": [{"type": "text", "text": "there"}]}]
    options = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True}
    found = processor.apply_chat_template([chat, longer], **options)
    for ids, mask in zip(found["input_ids"].tolist(), found["assistant_masks"], strict=True):
        assert [token for token, own in zip(ids, mask, strict=True) if own] == [7, 8]


def test_a_folder_is_all_that_others_need(make_processor: Factory, make_model: Factory, tmp_path: Path) -> None:
    """What `push_to_hub` uploads: by its name alone transformers makes model, processor and pipeline of it."""
    model = make_model(image_token_id=IMAGE)
    processor = make_processor(num_image_tokens=model.layout.frame(), chat_template=CHAT)
    for each in (model, processor):
        each.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= {
        "config.json", "generation_config.json", "model.safetensors", "processor_config.json", "tokenizer.json",
        "tokenizer_config.json", "chat_template.jinja",
    }  # fmt: skip
    content = [{"type": "image", "image": RED}, {"type": "text", "text": "what is here"}]
    words_only = {"do_sample": False, "suppress_tokens": list(range(12, 99)), "max_new_tokens": 3}
    asked = {"text": [{"role": "user", "content": content}], "generate_kwargs": words_only, "return_full_text": False}
    by_name = pipeline("image-text-to-text", model=str(tmp_path))
    by_hand = pipeline("image-text-to-text", model=model, processor=processor)
    assert by_name(**asked)[0]["generated_text"] == by_hand(**asked)[0]["generated_text"] != ""
