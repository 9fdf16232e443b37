"""What tests of several models share: a processor with a word-level tokenizer of twelve words."""

from collections.abc import Callable

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CLIPImageProcessorPil, PreTrainedTokenizerFast

from llava_mini.models import LlavaMiniProcessor

WORDS = ["<pad>", "<s>", "</s>", "<unk>", "<image>", "what", "is", "here", "and", "there", "USER", "ASSISTANT"]


@pytest.fixture
def make_processor() -> Callable[..., LlavaMiniProcessor]:
    """make_processor(**arguments of LlavaMiniProcessor): 24x24 pixels from 0 to 1, ids in the order of WORDS."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
    )
    images = CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size=24, image_mean=[0.0] * 3, image_std=[1.0] * 3)
    return lambda **arguments: LlavaMiniProcessor(images, tokenizer, **arguments)
