"""Labels cover answers and their end tokens only, and packed turns are exactly the separate samples."""

import copy
import pickle
import re
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from tests.refusals import refuses
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from llava_mini.data.format.shard_set import ShardSet
from llava_mini.data.text.conversation import Conversation, Turn, parse_record
from llava_mini.data.text.labels import ConversationTokenizer, TokenizedSample, Turns
from llava_mini.data.text.templates import CHATML, LLAMA3, MISTRAL, PLAIN, TINY, VICUNA, ConversationTemplate
from llava_mini.errors import SampleError
from llava_mini.token_layout import TokenLayout

TALK = Conversation(
    (
        Turn("<image>\nWhat is on the table?", "Two green apples, and a knife."),
        Turn("Is it morning?", "No"),
        Turn("Why  not? 早", "The light is électrique — warm."),
    )
)
TEXT_ONLY = Conversation((Turn("Is it morning?", "No"), Turn("What is 早?", "Early, in the morning.")))


SPECIAL = ["<unk>", "<s>", "</s>", "<image>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|im_start|>"]
SPECIAL += ["<|im_end|>"]
LLAMA3_WORDS = (  # joins a full stop with the ends of lines behind it
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
KINDS = ["byte_level", "byte_level_trimmed", "byte_level_prefixed", "metaspace", "metaspace_legacy"]


def build(kind: str, corpus: list[str]) -> PreTrainedTokenizerFast:
    """A subword tokenizer of one of the public kinds, trained right here.

    Bytes with a space before words (Qwen 2), the same with offsets that leave that space out (Llama 3), or with a space
    put before every text (an option of GPT-2); ▁ for a space and byte fallback, put before the first word (Mistral) or
    before every text behind a special token (Llama 2, Vicuna).
    """
    steps: list[Any] = [processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])]
    if kind.startswith("byte_level"):
        tokenizer = Tokenizer(models.BPE())
        prefixed = kind == "byte_level_prefixed"
        words = pre_tokenizers.Split(Regex(LLAMA3_WORDS), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                *([] if prefixed else [words]),
                pre_tokenizers.ByteLevel(add_prefix_space=prefixed, use_regex=prefixed),
            ]
        )
        tokenizer.decoder = decoders.ByteLevel()
        steps = [processors.ByteLevel(trim_offsets=kind == "byte_level_trimmed"), *steps]
        alphabet, special = pre_tokenizers.ByteLevel.alphabet(), SPECIAL
    else:
        tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()  # no token of two words
        tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
        alphabet, special = [], SPECIAL + [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special, initial_alphabet=alphabet, max_token_length=8)
    tokenizer.train_from_iterator(corpus, trainer)
    if kind == "metaspace":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    elif kind == "metaspace_legacy":
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([])
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL])
    tokenizer.post_processor = processors.Sequence(steps)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        name_or_path=kind,
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )


@pytest.fixture(scope="module", params=KINDS)
def subwords(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    """Subword tokenizers that know the words of `TALK` and of the Vicuna prompt."""
    corpus = [f"{turn.human} {turn.answer}" for turn in TALK.turns] + [VICUNA.render(TEXT_ONLY).text] * 3
    return build(request.param, corpus)


def make(
    tokenizer: Any, template: ConversationTemplate = TINY, turns: Turns = "independent", k: int = 3,
    hd: int | None = None, **more: Any,
) -> ConversationTokenizer:  # fmt: skip
    layout = TokenLayout(single_view=k, hd=k if hd is None else hd)
    return ConversationTokenizer(tokenizer, template, turns=turns, layout=layout, **more)


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


ADJACENT = ConversationTemplate("", user_prefix="<|im_start|>", user_suffix="<|im_end|>", assistant_suffix="</s>")
ANSWERS = [
    "No",
    "Two green apples, and a knife.",
    " It begins with a space",
    "\nIt begins with a line",
    "It ends with a line.\n",
    "It ends with spaces.  ",
    "é 早 🦜👩‍👩‍👧 e\u0301",
    "🦜",
    "USER: What? ASSISTANT: [/INST] [INST] assistant\n\nsystem\nA chat between",
    "a\n\n\tb  c\r\nd",
]


@pytest.mark.parametrize("turns", ["conversation", "independent"])
@pytest.mark.parametrize(
    "template",
    [VICUNA, LLAMA3, MISTRAL, CHATML, PLAIN, ADJACENT],
    ids=["vicuna_v1", "llama3", "mistral", "chatml", "plain", "adjacent"],
)
def test_exactly_answers_and_end_tokens_are_learnt(
    subwords: PreTrainedTokenizerFast, template: ConversationTemplate, turns: Turns
) -> None:
    tokenize = make(subwords, template, turns)
    for answer in ANSWERS:
        talk = Conversation((Turn("<image>\nWhat is on the table?", answer), Turn("Why  not?", "The light.")))
        if template.captions_only:
            talk = replace(talk, turns=talk.turns[:1])  # captions follow one another without a gap
        sample = tokenize(talk, [1])
        runs = learnt_runs(sample)
        for turn, run in zip(talk.turns, runs, strict=True):
            expected = (turn.answer.strip() if template.strip else turn.answer) + template.assistant_suffix
            learned = subwords.decode(run)
            assert learned.endswith(expected)
            more = learned.removesuffix(expected)  # what shares the first token with the answer
            assert more == "" or (len(subwords.decode(run[:1])) >= len(more) and more.isspace())


def learnt_runs(sample: TokenizedSample) -> list[list[int]]:
    """Stretches of learned tokens, which are labelled by themselves."""
    learned = sample.labels != -100
    assert (sample.labels[learned] == sample.input_ids[learned]).all()
    pieces = zip(sample.input_ids.tolist(), learned.tolist(), strict=True)
    return [[token for token, _ in run] for inside, run in groupby(pieces, lambda piece: piece[1]) if inside]


def test_a_token_on_the_border_of_question_and_answer_is_supervised() -> None:
    """ASSISTANT: and its space are the prompt's, but the tokens are `:` and `▁Two`."""
    for kind, first in (("metaspace_legacy", "▁Two"), ("byte_level", "ĠTwo"), ("byte_level_trimmed", "ĠTwo")):
        tokenizer = build(kind, ["ASSISTANT: Two green"] * 5)
        sample = make(tokenizer, VICUNA, "conversation")(Conversation((Turn("How many?", "Two green"),)), [])
        supervised = tokenizer.convert_ids_to_tokens(sample.labels[sample.labels != -100].tolist())
        assert supervised[0] == first and supervised[-1] == "</s>"


def test_a_token_on_the_border_of_caption_and_end_is_supervised() -> None:
    tokenizer = build("byte_level", ["A parrot.\n"] * 5)
    sample = make(tokenizer, PLAIN, "conversation", k=1)(Conversation((Turn("<image>", "A parrot."),)), [1])
    assert tokenizer.convert_ids_to_tokens(sample.input_ids.tolist())[-1] == ".Ċ"
    assert tokenizer.decode(learnt_runs(sample)[0]) == "A parrot.\n"


LLAMA3_CARD = (
    "<s>{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content | trim + '<|eot_id|>' }}{% endgeneration %}"
    "{% else %}{{ m.content | trim + '<|eot_id|>' }}{% endif %}{% endfor %}"
)
CHATML_CARD = (
    "<s>{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
)
MISTRAL_CARD = (
    "<s>{% for m in messages %}{% if m.role == 'user' %}{{ ' [INST] ' + m.content + ' [/INST] ' }}"
    "{% else %}{% generation %}{{ m.content + '</s>' }}{% endgeneration %}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("template", "card"),
    [(LLAMA3, LLAMA3_CARD), (replace(CHATML, system=""), CHATML_CARD), (MISTRAL, MISTRAL_CARD)],
    ids=["llama3", "chatml", "mistral"],
)
def test_tokens_and_labels_equal_those_of_generation_marks(
    subwords: PreTrainedTokenizerFast, template: ConversationTemplate, card: str
) -> None:
    # Of an answer that begins with a space which the offsets leave out, transformers marks nothing at all.
    trimmed = subwords.name_or_path == "byte_level_trimmed"
    answers = [answer for answer in ANSWERS if not (trimmed and answer[0].isspace())]
    messages = []
    for answer in answers:
        messages += [{"role": "user", "content": " Is it 早? "}, {"role": "assistant", "content": answer}]
    reference: Any = subwords.apply_chat_template(
        messages, chat_template=card, return_dict=True, return_assistant_tokens_mask=True
    )
    talk = Conversation(tuple(Turn(" Is it 早? ", answer) for answer in answers))
    sample = make(subwords, template, "conversation")(talk, [])
    assert sample.input_ids.tolist() == reference["input_ids"]
    assert (sample.labels != -100).int().tolist() == reference["assistant_masks"]


def test_a_conversation_is_the_text_tokenized_at_once(subwords: PreTrainedTokenizerFast) -> None:
    sample = make(subwords, VICUNA, "conversation", k=1)(TALK, [1])
    assert sample.input_ids.tolist() == subwords(VICUNA.render(TALK).text)["input_ids"]
    assert sample.turn_ids is None
    assert (sample.num_turns, sample.truncated) == (3, False)


def test_other_users_of_the_tokenizer_change_nothing(subwords: PreTrainedTokenizerFast) -> None:
    shared = copy.deepcopy(subwords)
    shared.pad_token = "<unk>"
    tokenize = make(shared, CHATML, "conversation")
    expected = tokenize(TALK, [1]).input_ids.tolist()
    for length in (2, 2000):
        shared("Is it", truncation=True, max_length=length, padding="max_length", split_special_tokens=True)
        assert tokenize(TALK, [1]).input_ids.tolist() == expected


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


CAPTIONS = ConversationTemplate()  # of the toy world


def test_captions_have_neither_question_nor_answer_mark(world: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    conversation = parse_record(ShardSet(world / "caption-train").read(0)["json"])
    sample = make(tokenizer, CAPTIONS, k=2)(conversation, [1])
    assert sample.turn_ids is not None
    assert sample.input_ids[:3].tolist() == tokenizer.convert_tokens_to_ids(["<s>", "<image>", "<image>"])
    for number, turn in enumerate(conversation.turns, 1):
        mine = sample.turn_ids == number
        assert tokenizer.decode(sample.input_ids[mine]) == f"{turn.answer} </s>"
        assert (sample.labels[mine] == sample.input_ids[mine]).all()


def test_a_text_seen_before_is_learnt_by_its_own_answer(tokenizer: PreTrainedTokenizerFast) -> None:
    """The same characters, divided otherwise between human and answer, must not be mistaken for each other."""
    tokenize = make(tokenizer, CAPTIONS)
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
        (Conversation((Turn("<image> " + "a " * 60, "b"),)), [1], "66 tokens before the answer, 50 allowed in all"),
    ],
)
def test_unusable_samples_say_why(
    tokenizer: PreTrainedTokenizerFast, conversation: Conversation, frames: list[int], reason: str
) -> None:
    with pytest.raises(SampleError, match=reason):
        make(tokenizer, max_length=50, k=4)(conversation, frames)


@pytest.mark.parametrize("token", ["</s>", "<|im_end|>", "<s>", "<unk>"])
def test_a_text_that_spells_a_special_token_is_refused(subwords: PreTrainedTokenizerFast, token: str) -> None:
    """It would end the answer, or begin another message, where the data only speak of it."""
    tokenize = make(subwords, VICUNA, "conversation")
    text = f"HTML has {token} too"
    for talk in (
        Conversation((Turn("a", text),)),
        Conversation((Turn(text, "b"),)),
        Conversation((Turn("a", "b"),), system=text),
    ):
        with pytest.raises(SampleError, match=re.escape(f"a text contains {token}, which is a special token")):
            tokenize(talk, [])
    whole = tokenize(Conversation((Turn("a", text.replace(">", " >")),)), [])
    assert (whole.input_ids == subwords.convert_tokens_to_ids(token)).sum() == (token in ("</s>", "<s>"))


def test_a_text_that_imitates_an_image_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    template = ConversationTemplate(image_token="<answer>")
    with pytest.raises(SampleError, match="a text contains <answer>, which is a special token"):
        make(tokenizer, template)(Conversation((Turn("is <answer> red", "no"),)), [])


@pytest.mark.parametrize(
    ("change", "key", "value", "allowed"),
    [
        ({"turns": "packed"}, "turns", "packed", "conversation, independent"),
        ({"k": -1}, "single_view", -1, "0 and above"),
        ({"hd": -2}, "hd", -2, "0 and above"),
        ({"max_length": 0}, "max_length", 0, "1 or more"),
    ],
)
def test_impossible_arguments_are_named(
    tokenizer: PreTrainedTokenizerFast, change: dict[str, Any], key: str, value: Any, allowed: str
) -> None:
    with refuses(key, value, allowed):
        make(tokenizer, **change)


@pytest.mark.parametrize(
    ("template", "mark"),
    [
        (ConversationTemplate(image_token="<pic>"), "<pic>"),
        (LLAMA3, "<|start_header_id|>"),
        (CHATML, "<|im_start|>"),
    ],
)
def test_a_token_that_a_template_writes_is_needed(
    tokenizer: PreTrainedTokenizerFast, template: ConversationTemplate, mark: str
) -> None:
    with refuses("tokenizer") as caught:
        make(tokenizer, template)
    assert f"no token {mark!r}, which the template writes" in str(caught.value)


@pytest.mark.parametrize("turns", ["conversation", "independent"])
def test_frames_with_five_views_have_placeholders_of_their_own(
    tokenizer: PreTrainedTokenizerFast, turns: Turns
) -> None:
    tokenize = make(tokenizer, turns=turns, k=2, hd=8)
    for k, num_views in ((2, 1), (8, 5)):
        sample, expected = tokenize(TALK, [1], num_views), make(tokenizer, turns=turns, k=k)(TALK, [1])
        assert sample.input_ids.tolist() == expected.input_ids.tolist()
        assert sample.labels.tolist() == expected.labels.tolist()
    same = make(tokenizer, turns=turns, k=2)
    assert same(TALK, [1], 5).input_ids.tolist() == same(TALK, [1]).input_ids.tolist()


def test_padding_falls_back_to_the_end_token(
    tokenizer: PreTrainedTokenizerFast, subwords: PreTrainedTokenizerFast
) -> None:
    assert make(tokenizer).pad_token_id == tokenizer.pad_token_id
    assert make(subwords).pad_token_id == subwords.eos_token_id


LONG = Conversation(
    (
        Turn("<image>what", "🦜 and two green apples"),
        Turn("Is it morning?", "No"),
        Turn("is it", "early 早"),
        Turn("Why", "The light is warm."),
    )
)


@pytest.mark.parametrize("turns", ["conversation", "independent"])
@pytest.mark.parametrize("template", [VICUNA, LLAMA3], ids=["vicuna_v1", "llama3"])
def test_what_is_too_long_loses_its_last_turns_then_the_end_of_its_first_answer(
    subwords: PreTrainedTokenizerFast, template: ConversationTemplate, turns: Turns
) -> None:
    """Every length from the whole to nothing: as many turns as fit, and each as if the others had never been there."""
    tokenize = make(subwords, template, turns, k=4)
    firsts = {n: tokenize(replace(LONG, turns=LONG.turns[:n]), [1]) for n in range(1, 5)}
    prompt = int((firsts[1].labels != -100).int().argmax())
    too_short: dict[int, str] = {}
    for length in range(len(firsts[4]), 0, -1):
        tokenize.max_length = length
        try:
            sample = tokenize(LONG, [1])
        except SampleError as error:
            too_short[length] = str(error)
            continue
        fitting = [n for n, first in firsts.items() if len(first) <= length]
        expected = firsts[max(fitting, default=1)]
        assert sample.num_turns == max(fitting, default=1)
        assert sample.truncated == (length < len(firsts[4]))
        assert (sample.input_ids == subwords.convert_tokens_to_ids("<image>")).sum() == 4
        assert sample.input_ids.tolist() == expected.input_ids[: len(sample)].tolist()
        assert sample.labels.tolist() == expected.labels[: len(sample)].tolist()
        if fitting:
            assert len(sample) == len(expected)
        else:
            learned = subwords.decode(learnt_runs(sample)[0]).removeprefix(" ")
            assert learned and LONG.turns[0].answer.startswith(learned), "cut within a character"
            assert len(sample) == length, "more is lost than needed"
    assert too_short == {n: f"{prompt} tokens before the answer, {n} allowed in all" for n in sorted(too_short)}
    assert sorted(too_short) == list(range(1, max(too_short) + 1)), "of two lengths, the longer was refused"
    assert prompt <= max(too_short) <= prompt + 4, "only what has no room for the four bytes of the first character"


def test_a_shortened_answer_has_no_part_of_its_end(subwords: PreTrainedTokenizerFast) -> None:
    template = replace(VICUNA, assistant_suffix="\n</s>")
    talk = Conversation((Turn("Why", "The light."),))
    whole = make(subwords, template, "conversation")(talk, [])
    cut = make(subwords, template, "conversation", max_length=len(whole) - 1)(talk, [])
    assert subwords.decode(learnt_runs(cut)[0]).removeprefix(" ") in ("The light.", "The light")  # `.` may be in `.\n`


def test_an_image_of_a_later_turn_is_never_cut(subwords: PreTrainedTokenizerFast) -> None:
    """Two turns must stay for their images, although the first alone would fit."""
    talk = Conversation((Turn("<image>a", "b"), Turn("<image>\nWhat", "Two green apples"), Turn("Why", "No")))
    whole = make(subwords, VICUNA, "conversation", k=4)(replace(talk, turns=talk.turns[:2]), [1, 1])
    sample = make(subwords, VICUNA, "conversation", k=4, max_length=len(whole) - 2)(talk, [1, 1])
    assert sample.num_turns == 2 and sample.truncated
    assert sample.labels.tolist() == whole.labels[: len(sample)].tolist()
    assert len(learnt_runs(sample)) == 2 and len(whole) - 4 < len(sample) < len(whole) - 1
    before = int(whole.labels.ne(-100).nonzero()[1 - len(learnt_runs(whole)[1])])
    with pytest.raises(SampleError, match="tokens before the answer"):
        make(subwords, VICUNA, "conversation", k=4, max_length=before - 1)(talk, [1, 1])


def test_an_answer_of_100_kilobytes_is_shortened(subwords: PreTrainedTokenizerFast) -> None:
    answer = "The light is électrique, early. " * 3200
    assert len(answer.encode()) > 100_000
    for turns in ("conversation", "independent"):
        sample = make(subwords, VICUNA, turns, max_length=512)(Conversation((Turn("<image>\nWhat?", answer),)), [1])
        learned = subwords.decode(learnt_runs(sample)[0]).removeprefix(" ")
        assert answer.startswith(learned) and len(learned) > 300
        assert 510 <= len(sample) <= 512 and sample.truncated and sample.num_turns == 1


def test_more_frames_than_fit_are_no_sample(subwords: PreTrainedTokenizerFast) -> None:
    talk = Conversation((Turn("<image>\nWhat?", "No"),))
    with pytest.raises(SampleError, match="tokens before the answer, 100 allowed in all"):
        make(subwords, VICUNA, "conversation", k=4, max_length=100)(talk, [200])


def test_turns_share_only_what_none_of_them_changes() -> None:
    """Of `ab`, the system text, a question `c` makes a|bc: no token of `ab` is common to all turns."""
    tokenizer = build("byte_level", ["bc"] * 10 + ["ab"] * 5)
    template = ConversationTemplate(system="ab", user_suffix="<|im_end|>")
    talk = Conversation((Turn("d", "No"), Turn("c", "The light.")))
    packed = make(tokenizer, template)(talk, [])
    assert packed.turn_ids is not None
    for number, turn in enumerate(talk.turns, 1):
        seen = (packed.turn_ids == 0) | (packed.turn_ids == number)
        single = make(tokenizer, template, "conversation")(Conversation((turn,)), [])
        assert packed.input_ids[seen].tolist() == single.input_ids.tolist()
        assert packed.labels[seen].tolist() == single.labels.tolist()
    assert tokenizer.convert_ids_to_tokens(packed.input_ids.tolist())[:6] == ["<s>", "ab", "d", "<|im_end|>", "N", "o"]
