"""Labels cover answers and their end tokens only, and packed turns are exactly the separate samples."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from llava_mini.data.conversation import Conversation, Turn, parse_record
from llava_mini.data.errors import SampleError
from llava_mini.data.labels import ConversationTokenizer, Turns
from llava_mini.data.shards import ShardSet
from llava_mini.data.templates import PLAIN, TINY, VICUNA, ConversationTemplate
from llava_mini.errors import UserError

TALK = Conversation(
    (
        Turn("<image>\nWhat is on the table?", "Two green apples, and a knife."),
        Turn("Is it morning?", "No"),
        Turn("Why  not? 早", "The light is électrique — warm."),
    )
)
TEXT_ONLY = Conversation((Turn("Is it morning?", "No"), Turn("What is 早?", "Early, in the morning.")))


@pytest.fixture(scope="module", params=["byte_level", "metaspace"])
def subwords(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    """Subword tokenizers as Llama 3 (bytes) and Llama 2 (▁ for a space, byte fallback) have, trained right here."""
    corpus = [f"{turn.human} {turn.answer}" for turn in TALK.turns] + [VICUNA.system + "USER: ASSISTANT:"] * 3
    special = ["<unk>", "<s>", "</s>", "<image>"]
    if request.param == "byte_level":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
        alphabet = []
        special += [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in ("<image>", "<s>", "</s>")])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", clean_up_tokenization_spaces=False
    )


def make(
    tokenizer: Any, template: ConversationTemplate = TINY, turns: Turns = "independent", k: int = 3, **more: Any
) -> ConversationTokenizer:
    return ConversationTokenizer(tokenizer, template, turns=turns, num_image_tokens=k, **more)


def alone(conversation: Conversation, turn: Turn) -> Conversation:
    """What a data set of single questions would hold."""
    image = "<image>\n" if conversation.num_images else ""
    return Conversation((Turn(image + turn.human.removeprefix("<image>\n"), turn.answer),))


@pytest.mark.parametrize("k", [0, 1, 3])
@pytest.mark.parametrize("conversation", [TALK, TEXT_ONLY], ids=["image", "text only"])
def test_packed_turns_equal_separate_samples(
    subwords: PreTrainedTokenizerFast, conversation: Conversation, k: int
) -> None:
    frames = [1] * conversation.num_images
    packed = make(subwords, VICUNA, k=k)(conversation, frames)
    assert packed.turn_ids is not None
    shared = packed.turn_ids == 0
    for number, turn in enumerate(conversation.turns, 1):
        single = make(subwords, VICUNA, "conversation", k=k)(alone(conversation, turn), frames)
        seen = shared | (packed.turn_ids == number)
        assert packed.input_ids[seen].tolist() == single.input_ids.tolist()
        assert packed.labels[seen].tolist() == single.labels.tolist()
    assert packed.turn_ids.unique().tolist() == list(range(len(conversation.turns) + 1))
    assert (packed.turn_ids.diff() >= 0).all()


def test_the_shared_prefix_ends_with_the_image_or_the_system_prompt(subwords: PreTrainedTokenizerFast) -> None:
    for conversation, text in ((TALK, VICUNA.system + "USER: <image><image>"), (TEXT_ONLY, VICUNA.system)):
        packed = make(subwords, VICUNA, k=2)(conversation, [1] * conversation.num_images)
        assert packed.turn_ids is not None
        shared = subwords.decode(packed.input_ids[packed.turn_ids == 0])
        assert shared.replace(" ", "") == "<s>" + text.replace(" ", "")


def test_a_text_without_system_prompt_shares_the_first_token(tokenizer: PreTrainedTokenizerFast) -> None:
    packed = make(tokenizer)(Conversation((Turn("how many star objects", "two"), Turn("where", "no"))), [])
    assert packed.turn_ids is not None
    assert packed.turn_ids.tolist() == [0] + [1] * 7 + [2] * 4


@pytest.mark.parametrize("turns", ["conversation", "independent"])
@pytest.mark.parametrize("template", [VICUNA, PLAIN, ConversationTemplate("", "[", "]", "", "</s>")])
def test_exactly_answers_and_end_tokens_are_learnt(
    subwords: PreTrainedTokenizerFast, template: ConversationTemplate, turns: Turns
) -> None:
    sample = make(subwords, template, turns)(TALK, [1])
    learnt = sample.labels != -100
    assert (sample.labels[learnt] == sample.input_ids[learnt]).all()
    runs = [subwords.decode(run).strip() for run in learnt_runs(sample.input_ids, learnt)]
    assert runs == [f"{turn.answer}</s>" for turn in TALK.turns]


def learnt_runs(ids: torch.Tensor, learnt: torch.Tensor) -> list[list[int]]:
    """Stretches of learnt tokens, also ended by the end token (2)."""
    runs: list[list[int]] = [[]]
    for token, inside in zip(ids.tolist(), learnt.tolist(), strict=True):
        if inside:
            runs[-1].append(token)
            if token == 2:
                runs.append([])
    assert runs[-1] == [], "an answer without its end token"
    return runs[:-1]


def test_a_conversation_is_the_text_tokenised_at_once(subwords: PreTrainedTokenizerFast) -> None:
    sample = make(subwords, VICUNA, "conversation", k=1)(TALK, [1])
    text = VICUNA.system + "".join(f"USER: {turn.human} ASSISTANT: {turn.answer}</s>" for turn in TALK.turns)
    assert sample.input_ids.tolist() == subwords(text)["input_ids"]
    assert sample.turn_ids is None


def test_the_worked_example_of_the_module(tokenizer: PreTrainedTokenizerFast) -> None:
    talk = Conversation((Turn("<image>\nwhat color", "red"), Turn("where", "zero")))
    sample = make(tokenizer, k=2)(talk, [1])
    s, end, image, answer = (tokenizer.convert_tokens_to_ids(token) for token in ("<s>", "</s>", "<image>", "<answer>"))
    what, color, red, where, zero = tokenizer.convert_tokens_to_ids(["what", "color", "red", "where", "zero"])
    assert sample.input_ids.tolist() == [s, image, image, what, color, answer, red, end, where, answer, zero, end]
    assert sample.labels.tolist() == [-100] * 6 + [red, end] + [-100] * 2 + [zero, end]
    assert sample.turn_ids is not None
    assert sample.turn_ids.tolist() == [0] * 3 + [1] * 5 + [2] * 4


def test_every_frame_of_every_image_gets_its_placeholders(tokenizer: PreTrainedTokenizerFast) -> None:
    talk = Conversation((Turn("<image> in <image>\nwhere", "no"),))
    for turns in ("conversation", "independent"):
        sample = make(tokenizer, turns=turns, k=4)(talk, [1, 3])
        images = sample.input_ids == tokenizer.convert_tokens_to_ids("<image>")
        assert images.sum() == 16
        assert sample.turn_ids is None or not sample.turn_ids[images].any(), "all images are shared"


def test_images_are_moved_to_the_front_of_independent_turns(tokenizer: PreTrainedTokenizerFast) -> None:
    sample = make(tokenizer, k=1)(Conversation((Turn("where is the star\n<image>", "no"), Turn("where", "no"))), [1])
    ids = tokenizer("<s> <image> where is the star <answer> no </s> where <answer> no </s>", add_special_tokens=False)
    assert sample.input_ids.tolist() == ids["input_ids"]


def test_captions_have_neither_question_nor_answer_mark(world: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    conversation = parse_record(ShardSet(world / "caption-train").read(0)["json"])
    sample = make(tokenizer, PLAIN, k=2)(conversation, [1])
    assert sample.turn_ids is not None
    assert sample.input_ids[:3].tolist() == tokenizer.convert_tokens_to_ids(["<s>", "<image>", "<image>"])
    for number, turn in enumerate(conversation.turns, 1):
        mine = sample.turn_ids == number
        assert tokenizer.decode(sample.input_ids[mine]) == f"{turn.answer} </s>"
        assert (sample.labels[mine] == sample.input_ids[mine]).all()


def test_a_text_seen_before_is_learnt_by_its_own_answer(tokenizer: PreTrainedTokenizerFast) -> None:
    """The same characters, divided otherwise between human and answer, must not be mistaken for each other."""
    tokenize = make(tokenizer, PLAIN)
    ring, end = tokenizer.convert_tokens_to_ids(["ring", "</s>"])
    red = tokenizer.convert_tokens_to_ids("red")
    for _ in range(2):
        assert tokenize(Conversation((Turn("red", " ring"),)), []).labels.tolist() == [-100, -100, ring, end]
        assert tokenize(Conversation((Turn("", "red ring"),)), []).labels.tolist() == [-100, red, ring, end]
    tokenize = pickle.loads(pickle.dumps(tokenize))
    assert tokenize(Conversation((Turn("red", " ring"),)), []).labels.tolist() == [-100, -100, ring, end]


@pytest.mark.parametrize(
    ("conversation", "frames", "reason"),
    [
        (TALK, [], "1 <image> for 0 images"),
        (TEXT_ONLY, [1], "0 <image> for 1 images"),
        (Conversation((Turn("a", "b"), Turn("<image>", "c"))), [1], "all images in the first turn"),
        (Conversation((Turn("<image> " + "a " * 60, "b"),)), [1], "68 tokens, 50 allowed"),
    ],
)
def test_unusable_samples_say_why(
    tokenizer: PreTrainedTokenizerFast, conversation: Conversation, frames: list[int], reason: str
) -> None:
    with pytest.raises(SampleError, match=reason):
        make(tokenizer, max_length=50, k=4)(conversation, frames)


def test_a_text_that_imitates_an_image_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    template = ConversationTemplate(image_token="<answer>")
    with pytest.raises(SampleError, match="a text contains <answer>"):
        make(tokenizer, template)(Conversation((Turn("is <answer> red", "no"),)), [])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"turns": "packed"}, "turns='packed'; allowed: conversation, independent"),
        ({"k": -1}, "num_image_tokens=-1"),
        ({"max_length": 0}, "max_length=0"),
        ({"template": ConversationTemplate(image_token="<pic>")}, "no token '<pic>'"),
    ],
)
def test_impossible_arguments_are_named(
    tokenizer: PreTrainedTokenizerFast, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        make(tokenizer, **change)


def test_padding_falls_back_to_the_end_token(
    tokenizer: PreTrainedTokenizerFast, subwords: PreTrainedTokenizerFast
) -> None:
    assert make(tokenizer).pad_token_id == tokenizer.pad_token_id
    assert make(subwords).pad_token_id == subwords.eos_token_id
