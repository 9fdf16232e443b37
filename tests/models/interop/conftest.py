"""Small checkpoints of LLaVA, as transformers saves them and as they were released, and their tokenizer."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.conftest import scramble
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    PreTrainedTokenizerFast,
)

VOCAB, ROWS, IMAGE_ID = 60, 64, 60  # the table has more rows than words, of which <image> takes one: llava-1.5-7b-hf
VISION: dict[str, Any] = dict(
    hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, image_size=24, patch_size=6
)


def words_tokenizer(count: int) -> PreTrainedTokenizerFast:
    """<s>, </s>, <unk> and word3, word4, ... in an order that says their ids."""
    words = ["<s>", "</s>", "<unk>", *(f"word{i}" for i in range(3, count))]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.fixture
def make_llava(tmp_path: Path) -> Callable[..., tuple[Any, Path]]:
    """make_llava("llava" or "llava_next", family="llama"): (the model, its folder with a tokenizer)."""

    def make(kind: str = "llava", family: str = "llama") -> tuple[Any, Path]:
        text = AutoConfig.for_model(
            family, vocab_size=ROWS, hidden_size=48, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=256, pad_token_id=None, bos_token_id=0, eos_token_id=1,
        )  # fmt: skip
        config_class = LlavaConfig if kind == "llava" else LlavaNextConfig
        model_class = LlavaForConditionalGeneration if kind == "llava" else LlavaNextForConditionalGeneration
        config = config_class(
            vision_config=CLIPVisionConfig(**VISION), text_config=text, image_token_index=IMAGE_ID,
            vision_feature_layer=-2,
        )  # fmt: skip
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = model_class(config).eval()
        scramble(model, 1)
        folder = tmp_path / f"{kind}-{family}"
        model.save_pretrained(folder)
        tokenizer = words_tokenizer(VOCAB)
        tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
        tokenizer.save_pretrained(str(folder))
        return model, folder

    return make


def rename(folder: Path, names: Callable[[str], str | None]) -> None:
    """Write a folder's tensors anew under other names; None drops one."""
    path = folder / "model.safetensors"
    renamed = {names(name): tensor for name, tensor in load_file(path).items()}
    save_file({name: tensor for name, tensor in renamed.items() if name}, path, metadata={"format": "pt"})


def to_new_layout(folder: Path) -> None:
    """The names that transformers' own modules have today."""

    def new(name: str) -> str:
        return "lm_head.weight" if name == "language_model.lm_head.weight" else "model." + name.replace(".model.", ".")

    rename(folder, new)


def to_old_layout(folder: Path) -> None:
    """The names of the published llava-1.5-7b-hf."""
    rename(folder, lambda name: name.replace("vision_tower.", "vision_tower.vision_model."))


def to_original_layout(folder: Path, *, vision_tower: bool = True) -> None:
    """A folder of transformers' LLaVA as liuhaotian/llava-v1.5-7b is, in two pickled shards with an index."""

    def original(name: str) -> str:
        for theirs, new in (
            ("language_model.lm_head", "lm_head"), ("language_model.model.", "model."),
            ("multi_modal_projector.linear_1", "model.mm_projector.0"),
            ("multi_modal_projector.linear_2", "model.mm_projector.2"), ("image_newline", "model.image_newline"),
            ("vision_tower.", "model.vision_tower.vision_tower.vision_model."),
        ):  # fmt: skip
            name = name.replace(theirs, new) if name.startswith(theirs) else name
        return name

    path = folder / "model.safetensors"
    tensors = {original(name): tensor for name, tensor in load_file(path).items()}
    path.unlink()
    tensors = {name: tensor for name, tensor in tensors.items() if vision_tower or ".vision_tower." not in name}
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(6)  # as old versions saved it
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"pytorch_model-{number:05d}-of-00002.bin"
        torch.save({name: tensors[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    config = json.loads((folder / "config.json").read_text())
    ours = {
        **config["text_config"], "model_type": f"llava_{config['text_config']['model_type'].removesuffix('2')}",
        "architectures": ["LlavaLlamaForCausalLM"], "mm_vision_tower": "openai/clip-vit-large-patch14-336",
        "mm_projector_type": "mlp2x_gelu", "mm_vision_select_layer": -2, "mm_vision_select_feature": "patch",
        "mm_hidden_size": 32, "image_aspect_ratio": "pad", "mm_use_im_start_end": False,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(ours))
