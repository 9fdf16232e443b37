"""Answers about clips are those of a second reading of the states, and are balanced."""

from collections import Counter, defaultdict

import numpy as np
import pytest
from tests.data.toyworld.kinds import CLIP_KINDS

from llava_mini.data.toyworld.clips import Clip, clip_at
from llava_mini.data.toyworld.questions import Asked, clip_questions
from llava_mini.data.toyworld.scenes import stream_rng
from llava_mini.data.toyworld.tokenizer import VOCABULARY

COUNT = 1200
NUMBERS = ["zero", "one", "two", "three"]

Told = list[tuple[Clip, list[Asked]]]


@pytest.fixture(scope="module")
def told() -> Told:
    clips = [clip_at("clip-train", 5, index) for index in range(COUNT)]
    return [(clip, clip_questions(stream_rng("clip-train", 5, i, 1), clip)) for i, clip in enumerate(clips)]


def second_reading(clip: Clip) -> dict[str, str]:
    """Every answer about a clip that its question's words do not choose a shape for."""
    seen: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
    for state in clip.states:
        for thing in state:
            seen[thing.kind].append((thing.x, thing.y))
    moved = next(kind for kind, places in seen.items() if places[0] != places[-1])
    (x0, y0), (x1, y1) = seen[moved][0], seen[moved][-1]
    ring = [thing.color for state in clip.states for thing in state if thing.kind == "ring"]
    turns = sum(ring[i] != ring[i + 1] for i in range(len(ring) - 1))
    names = {(0, 1): "south", (0, -1): "north", (1, 0): "east", (-1, 0): "west"}
    return {
        "clip_moved": moved,
        "clip_move": names[np.sign(x1 - x0), np.sign(y1 - y0)],
        "clip_first": ring[0],
        "clip_last": ring[-1],
        "clip_changes": NUMBERS[turns],
        "clip_story": " ".join(ring),
    }


def test_every_answer_is_true(told: Told) -> None:
    for clip, asked in told:
        answers = second_reading(clip)
        for each in asked:
            if each.kind == "clip_color":
                shape = each.question.split()[-1]
                looks = [[(t.color, t.center) for t in state if t.kind == shape] for state in clip.states]
                assert all(look == looks[0] and len(look) == 1 for look in looks)  # unchanging and always there
                assert looks[0][0][0] == each.answer
            elif each.kind == "clip_path":
                shape = each.question.split()[-1]
                centers = [thing.center for state in clip.states for thing in state if thing.kind == shape]
                assert each.answer.split() == [
                    f"{('north', 'south')[y >= 32]}{('west', 'east')[x >= 32]}" for x, y in centers
                ]
            else:
                assert answers[each.kind] == each.answer, (each, clip.states)


def test_a_clip_has_one_question_of_every_kind_in_random_order_and_known_words(told: Told) -> None:
    for _, asked in told:
        assert sorted(each.kind for each in asked) == sorted(CLIP_KINDS)
        assert {word for each in asked for word in (*each.question.split(), *each.answer.split())} <= set(VOCABULARY)
    first = Counter(asked[0].kind for _, asked in told)
    assert set(first) == set(CLIP_KINDS)
    assert max(first.values()) < COUNT / 3


def test_blind_guesses_fail(told: Told) -> None:
    """The most common answer of one half, by the words of the question, is right in few cases of the other half."""
    known, asked = told[: COUNT // 2], told[COUNT // 2 :]
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for each in (each for _, all_of_them in known for each in all_of_them):
        counts[each.question][each.answer] += 1
    right: defaultdict[str, list[bool]] = defaultdict(list)
    for each in (each for _, all_of_them in asked for each in all_of_them):
        right[each.kind].append(counts[each.question].most_common(1)[0][0] == each.answer)
    shares = {kind: round(float(np.mean(hits)), 3) for kind, hits in right.items()}
    print("right without looking:", shares)
    assert max(shares[kind] for kind in ("clip_move", "clip_changes")) < 0.36
    assert max(shares[kind] for kind in ("clip_moved", "clip_first", "clip_last", "clip_color")) < 0.27
    assert max(shares[kind] for kind in ("clip_story", "clip_path")) < 0.1


def test_the_middle_frame_does_not_show_what_moved(told: Told) -> None:
    """Of the three that could have moved, none is told by its place or size."""
    hits: defaultdict[str, list[bool]] = defaultdict(list)
    for clip, asked in told:
        moved = next(each.answer for each in asked if each.kind == "clip_moved")
        state = sorted(clip.states[len(clip.states) // 2], key=lambda thing: thing.kind)
        shapes = [thing for thing in state if thing.kind != "ring"]
        far = [np.hypot(thing.center[0] - 32, thing.center[1] - 32) for thing in shapes]
        guesses = {
            "the most central": shapes[int(np.argmin(far))],
            "the outermost": shapes[int(np.argmax(far))],
            "the largest": max(shapes, key=lambda thing: thing.size),
            "the northernmost": min(shapes, key=lambda thing: thing.y),
        }
        for name, guess in guesses.items():
            hits[name].append(guess.kind == moved)
    shares = {name: float(np.mean(each)) for name, each in hits.items()}
    assert max(shares.values()) < 0.42, shares
