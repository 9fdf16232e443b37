"""A model of the toy world's words that answers at random but always the same, as users have it, and pictures."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import CLIPImageProcessorPil

from llava_mini.data.text.templates import TINY
from llava_mini.data.toyworld.tokenizer import build_tokenizer
from llava_mini.models import LlavaMiniForConditionalGeneration, LlavaMiniProcessor


@pytest.fixture(scope="session")
def make_asked(
    make_model: Callable[..., LlavaMiniForConditionalGeneration], make_text_config: Callable[..., Any]
) -> Callable[..., tuple[LlavaMiniForConditionalGeneration, LlavaMiniProcessor]]:
    """make_asked(**changes of the processor): a model of 24 x 24 pixels and its processor with a chat template."""

    def make(**changes: Any) -> tuple[LlavaMiniForConditionalGeneration, LlavaMiniProcessor]:
        tokenizer = build_tokenizer()
        image_token_id = tokenizer.convert_tokens_to_ids("<image>")
        text_config = make_text_config(vocab_size=len(tokenizer), eos_token_id=2)
        model = make_model(text_config=text_config, image_token_id=image_token_id)
        images = CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size=24)
        given: dict[str, Any] = {
            "num_image_tokens": model.layout.frame(),
            "num_hd_image_tokens": model.layout.frame(5),
        }
        given["chat_template"] = TINY.chat_template()
        return model, LlavaMiniProcessor(images, tokenizer, **{**given, **changes})

    return make


@pytest.fixture(scope="session")
def model_folder(make_asked: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model, as `train` leaves it."""
    folder = tmp_path_factory.mktemp("asked") / "model"
    model, processor = make_asked()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 0.png to 5.png, noise of several shapes."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(6):
        noise = np.random.default_rng(number).integers(0, 256, (30 + 5 * number, 40, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
    return folder
