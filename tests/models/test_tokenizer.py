"""The placeholder behind the vocabulary, in tokenizers of the kinds that Llama and Qwen have."""

import importlib
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from llava_mini.errors import UserError
from llava_mini.models.tokenizer import add_placeholder, load_tokenizer, place_token


def byte_level() -> PreTrainedTokenizerFast:
    """As Qwen2's: bytes, one merge, two special tokens; ids up to 258."""
    vocabulary = {character: i for i, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab={**vocabulary, "wh": 256}, merges=[("w", "h")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in ("<|endoftext|>", "<|im_end|>")])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")


def sentence_pieces() -> PreTrainedTokenizerFast:
    """As Llama's and Vicuna's: pieces with a mark for spaces, and bytes; ids up to 264."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "w", "h", "a", "wh", "▁wh"]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    merges = [("w", "h"), ("▁", "wh")]
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


MAKERS = {"byte_level": byte_level, "sentence_pieces": sentence_pieces}


def ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("rows", [265, 300])
def test_placeholder_is_beyond_the_vocabulary(kind: str, rows: int, tmp_path: Path) -> None:
    """Also where the table has rows that the tokenizer has no tokens for, and after a round trip through files."""
    tokenizer = MAKERS[kind]()
    before = ids(tokenizer, "wha wh")
    assert add_placeholder(tokenizer, rows) == rows
    assert ids(tokenizer, "<image>") == [rows] and ids(tokenizer, "<image><image>wha").count(rows) == 2
    assert ids(tokenizer, "wha wh") == before
    assert add_placeholder(tokenizer, rows) == rows  # it stays where it is
    tokenizer.save_pretrained(str(tmp_path))
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert ids(again, "<image>\nwha") == ids(tokenizer, "<image>\nwha")
    assert "<image>" not in again.decode(ids(again, "<image>wha"), skip_special_tokens=True)


def test_a_tokenizer_that_knows_it_keeps_its_id() -> None:
    tokenizer = byte_level()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    assert add_placeholder(tokenizer, 320) == 259
    place_token(tokenizer, "<image>", 320)
    assert ids(tokenizer, "<image>") == [320] and add_placeholder(tokenizer, 320) == 320


def test_more_tokens_than_rows() -> None:
    with pytest.raises(UserError, match="go up to id 258, the language model's vocabulary has 200 rows"):
        add_placeholder(byte_level(), 200)


def test_padding_is_the_end_token_where_there_is_none(tmp_path: Path) -> None:
    byte_level().save_pretrained(str(tmp_path))
    assert load_tokenizer(str(tmp_path)).pad_token == "<|im_end|>"


def test_what_cannot_be_loaded_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    (tmp_path / "tokenizer.model").write_bytes(b"none")
    with pytest.raises(
        UserError, match="cannot be loaded: .*; a tokenizer.model without tokenizer.json needs"
    ) as caught:
        load_tokenizer(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_tokenizer_model_alone_is_read(tmp_path: Path) -> None:
    """As Vicuna and the original LLaVA ship it."""
    words = [first + second for first in "abcdefgh" for second in "ijklmnop"]
    (tmp_path / "text").write_text("\n".join(" ".join(words[i % 7 :: 3]) for i in range(200)))
    trainer = importlib.import_module("sentencepiece").SentencePieceTrainer
    trainer.train(
        input=str(tmp_path / "text"), model_prefix=str(tmp_path / "tokenizer"), vocab_size=80, model_type="bpe"
    )
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer", "eos_token": "</s>"}')
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.decode(tokenizer("ai bj ck").input_ids, skip_special_tokens=True) == "ai bj ck"
    assert add_placeholder(tokenizer, 80) == 80
