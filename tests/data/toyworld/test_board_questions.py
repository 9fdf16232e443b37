"""Dense questions name everything in reading order; one-word questions of a board have one true answer."""

from collections import Counter

from tests.data.toyworld.kinds import DENSE_KINDS, FACT_KINDS
from transformers import PreTrainedTokenizerFast

from llava_mini.data.toyworld.questions import EVALUATED, NUMBER_WORDS, TRAINED, board_questions, dense_questions
from llava_mini.data.toyworld.scenes import Scene, SceneObject, board_at, stream_rng


def test_dense_answers_name_everything_in_reading_order() -> None:
    objects = (
        SceneObject("box", "red", 3, 0, 0, 14),
        SceneObject("star", "blue", None, 20, 0, 12),
        SceneObject("box", "red", 0, 40, 0, 14),
    )
    board = Scene(board_at("board-val", 0, 0).image, objects)
    answers = {asked.kind: (asked.question, asked.answer) for asked in dense_questions(board)}
    assert answers == {
        "digits": ("box", "three zero"),
        "colors": ("color", "red blue red"),
        "objects": ("objects", "red three blue star red zero"),
    }


def test_every_board_is_asked_all_dense_kinds_and_some_of_the_others(tokenizer: PreTrainedTokenizerFast) -> None:
    kinds: Counter[str] = Counter()
    for index in range(150):
        board = board_at("board-train", 0, index)
        asked = board_questions(stream_rng("board-train", 0, index, 1), board, TRAINED)
        assert len(asked) == len(DENSE_KINDS) + TRAINED
        kinds.update(each.kind for each in asked)
        for each in asked:
            assert len(each.answer.split()) == {"digits": 7, "colors": 16, "objects": 32}.get(each.kind, 1)
            assert tokenizer.unk_token_id not in tokenizer(f"{each.question} {each.answer}")["input_ids"]
            if each.kind == "digit":
                color = each.question.split()[-2]
                assert [NUMBER_WORDS[b.digit or 0] for b in board.boxes if b.color == color] == [each.answer]
            if each.kind == "color":
                shape = each.question.split()[-1]
                assert [thing.color for thing in board.shapes if thing.kind == shape] == [each.answer]
    assert set(kinds) == {*DENSE_KINDS, *FACT_KINDS}
    assert min(kinds.values()) > 20


def test_where_models_are_compared_every_kind_that_has_an_answer_is_asked() -> None:
    counts = []
    for index in range(40):
        board = board_at("board-test", 0, index)
        kinds = [a.kind for a in board_questions(stream_rng("board-test", 0, index, 1), board, EVALUATED)]
        assert len(set(kinds)) == len(kinds) and {*DENSE_KINDS, "count", "exist"} <= set(kinds)
        counts.append(len(kinds))
    assert max(counts) == 9 and sum(counts) / len(counts) > 7
