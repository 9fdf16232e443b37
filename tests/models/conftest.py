"""What tests of several models share: a processor of twelve words, transformers' own LLaVA."""

from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CLIPImageProcessorPil, LlavaConfig, LlavaForConditionalGeneration, PreTrainedTokenizerFast

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


@pytest.fixture
def transformers_llava() -> Callable[..., LlavaForConditionalGeneration]:
    """transformers_llava(model): transformers' own LLaVA with the weights of `model`, which compresses nothing."""

    def make(model: Any) -> LlavaForConditionalGeneration:
        config = LlavaConfig(
            vision_config=model.config.vision_config,
            text_config=model.config.text_config,
            image_token_index=model.config.image_token_id,
            vision_feature_layer=-2,
            vision_feature_select_strategy="default",
        )
        llava = LlavaForConditionalGeneration(config).eval()
        llava.model.vision_tower.load_state_dict(model.vision_tower.state_dict())
        llava.model.multi_modal_projector.load_state_dict(model.projector.state_dict())
        llava.model.language_model.load_state_dict(model.language_model.get_decoder().state_dict())
        llava.lm_head.load_state_dict(model.get_output_embeddings().state_dict())
        return llava

    return make
