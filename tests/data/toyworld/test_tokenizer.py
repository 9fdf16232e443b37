"""Every word of the toy world is one token, and the tokenizer survives its files."""

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from llava_mini.data.toyworld.questions import caption, question, scene_facts
from llava_mini.data.toyworld.scenes import scene_at, stream_rng
from llava_mini.data.toyworld.tokenizer import _CLIP_WORDS, SPECIAL_TOKENS, VOCABULARY, build_tokenizer


def test_every_text_is_known_words_and_every_word_is_used(tokenizer: PreTrainedTokenizerFast) -> None:
    used = set()
    for index, scene in enumerate([scene_at("instruct-train", 0, index) for index in range(150)]):
        for fact in scene_facts(stream_rng("instruct-train", 0, index, 1), scene):
            for text in (question(fact), caption(fact), fact.answer):
                ids = tokenizer(text)["input_ids"]
                assert tokenizer.unk_token_id not in ids
                assert ids[0] == tokenizer.bos_token_id
                assert tokenizer.decode(ids, skip_special_tokens=True) == text
                used.update(text.split())
    assert used == set(VOCABULARY) - set(SPECIAL_TOKENS) - set(_CLIP_WORDS)


def test_ids_are_fixed(tokenizer: PreTrainedTokenizerFast) -> None:
    assert [tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS] == list(range(6))
    assert tokenizer.get_vocab() == {word: number for number, word in enumerate(VOCABULARY)}
    assert len(VOCABULARY) == 62
    assert list(VOCABULARY[6:]) == sorted(VOCABULARY[6:])


def test_an_unknown_word_has_its_own_token(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer("red hexagon")["input_ids"][-1] == tokenizer.unk_token_id


def test_it_comes_back_from_its_files(tmp_path: Path) -> None:
    tokenizer = build_tokenizer()  # its own, as a processor pads on the left whichever it is given
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "<image>\nwhat color is the ring <answer> red</s>"
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert (loaded.pad_token_id, loaded.bos_token_id, loaded.eos_token_id, loaded.unk_token_id) == (0, 1, 2, 3)
    assert (loaded.image_token_id, loaded.answer_token_id) == (4, 5)
    assert loaded.padding_side == "right"
