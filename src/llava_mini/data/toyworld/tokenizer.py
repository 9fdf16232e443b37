"""The toy world's own word-level tokenizer, in transformers format.

The code fixes the vocabulary (special tokens, then every word that a question, caption or answer about an image or a
clip can contain, sorted), so that checkpoints and worlds of any seed are compatible.
"""

from __future__ import annotations

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from llava_mini.data.toyworld.drawing import COLOR_NAMES, SHAPES
from llava_mini.data.toyworld.questions import NUMBER_WORDS

PAD, BOS, EOS, UNK, IMAGE, ANSWER = "<pad>", "<s>", "</s>", "<unk>", "<image>", "<answer>"
SPECIAL_TOKENS = (PAD, BOS, EOS, UNK, IMAGE, ANSWER)
_DIRECTIONS = ("northeast", "northwest", "southeast", "southwest")
_QUESTION_WORDS = ("what", "where", "how", "many", "color", "shape", "is", "there", "in", "the", "a")
_CLIP_WORDS = ("moved", "move", "did", "it", "appeared", "first", "last", "changes", "north", "east", "south", "west")
_OTHER_WORDS = ("box", "object", "objects", "holds", "here", "no", "yes")
VOCABULARY = (
    *SPECIAL_TOKENS,
    *sorted({*SHAPES, *COLOR_NAMES, *NUMBER_WORDS, *_DIRECTIONS, *_QUESTION_WORDS, *_CLIP_WORDS, *_OTHER_WORDS}),
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return the tokenizer; it puts `<s>` before a text and has `image_token_id` and `answer_token_id`."""
    model = models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token=UNK)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, VOCABULARY.index(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        extra_special_tokens={"image_token": IMAGE, "answer_token": ANSWER},
        padding_side="right",
        model_max_length=2048,
    )
