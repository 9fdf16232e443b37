"""Clips show what they say, one thing at a time, and are as likely backwards as forwards."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from llava_mini.data.toyworld.clips import FEWEST_STATES, MOST_STATES, Clip, clip_at, make_clip
from llava_mini.data.toyworld.drawing import COLORS, SHAPES
from llava_mini.data.toyworld.scenes import SceneObject

COUNT = 400


@pytest.fixture(scope="module")
def made() -> list[Clip]:
    return [clip_at("clip-train", 0, index) for index in range(COUNT)]


def paths(clip: Clip) -> dict[str, list[SceneObject]]:
    """By kind, the object in every state."""
    return {kind: [state[i] for state in clip.states] for i, kind in enumerate(kinds(clip.states[0]))}


def kinds(state: tuple[SceneObject, ...]) -> list[str]:
    return [thing.kind for thing in state]


def mover(clip: Clip) -> list[SceneObject]:
    return next(path for path in paths(clip).values() if path[0].center != path[-1].center)


def test_clips_have_4_to_16_states_and_one_frame_each(made: list[Clip]) -> None:
    lengths = Counter(len(clip.states) for clip in made)
    assert (min(lengths), max(lengths)) == (FEWEST_STATES, MOST_STATES) == (4, 16)
    for clip in made:
        assert clip.frames.shape == (len(clip.states), 64, 64, 3)
        assert clip.frames.dtype == np.uint8


def test_no_two_objects_of_a_state_touch_or_share_their_kind(made: list[Clip]) -> None:
    for state in (state for clip in made for state in clip.states):
        assert len({thing.kind for thing in state}) == len(state)
        for number, one in enumerate(state):
            assert min(one.x, one.y) >= 0
            assert max(one.x, one.y) + one.size <= 64
            for other in state[:number]:
                gap_x = max(one.x - other.x - other.size, other.x - one.x - one.size)
                gap_y = max(one.y - other.y - other.size, other.y - one.y - one.size)
                assert max(gap_x, gap_y) >= 1 - 1e-9


def test_one_shape_moves_straight_and_clearly_and_nothing_else_does(made: list[Clip]) -> None:
    for clip in made:
        moving = [kind for kind, path in paths(clip).items() if len({thing.center for thing in path}) > 1]
        assert len(moving) == 1
        assert moving[0] in set(SHAPES) - {"ring"}
        places = np.array([thing.center for thing in mover(clip)])
        way = places[-1] - places[0]
        assert sorted(np.abs(way))[0] == 0
        assert 18 <= np.abs(way).max() <= 28
        assert np.allclose(np.diff(places, axis=0), way / (len(places) - 1))


def test_the_same_four_objects_are_there_all_the_time(made: list[Clip]) -> None:
    for clip in made:
        assert len(set(kinds(clip.states[0]))) == 4
        assert "ring" in kinds(clip.states[0])
        assert all(kinds(state) == kinds(clip.states[0]) for state in clip.states)
        assert all(thing.digit is None for state in clip.states for thing in state)


def test_only_the_ring_changes_between_two_colors_that_are_there_all_the_time(made: list[Clip]) -> None:
    changes: Counter[int] = Counter()
    for clip in made:
        path = paths(clip)
        ring = [thing.color for thing in path.pop("ring")]
        changes[sum(before != now for before, now in pairwise(ring))] += 1
        assert all(len({thing.color for thing in things}) == 1 for things in path.values())
        assert set(ring) <= {things[0].color for things in path.values()}
    assert sorted(changes) == [0, 1, 2, 3]
    assert min(changes.values()) > COUNT * 0.18


def test_how_long_the_ring_has_a_color_says_nothing_of_the_number_of_changes() -> None:
    """With any change at all, the rarer color's share is the same on average for one, two and three changes."""
    rng = np.random.default_rng(1)
    rarer: dict[int, list[float]] = {1: [], 2: [], 3: []}
    for _ in range(600):
        ring = [thing.color for thing in paths(make_clip(rng))["ring"]]
        changes = sum(before != now for before, now in pairwise(ring))
        if changes:
            rarer[changes].append(min(Counter(ring).values()) / len(ring))
            assert min(Counter(ring).values()) >= 2
    means = [np.mean(shares) for shares in rarer.values()]
    assert max(means) - min(means) < 0.05


def test_frames_without_order_and_the_middle_frame_tell_no_direction(made: list[Clip]) -> None:
    ways = np.array([np.subtract(mover(clip)[-1].center, mover(clip)[0].center) for clip in made])
    middles = np.array([np.mean([mover(clip)[0].center, mover(clip)[-1].center], axis=0) for clip in made])
    for axis in (0, 1):
        forth, back = (middles[sign * ways[:, axis] > 0, axis] for sign in (1, -1))
        assert min(len(forth), len(back)) > COUNT * 0.2
        error = np.hypot(forth.std() / len(forth) ** 0.5, back.std() / len(back) ** 0.5)
        assert abs(forth.mean() - back.mean()) < 3 * error


def test_frames_show_the_colors_of_the_states(made: list[Clip]) -> None:
    for clip in made[:50]:
        for frame, state in zip(clip.frames, clip.states, strict=True):
            for thing in state:
                if thing.kind != "ring":  # its middle is a hole
                    x, y = (int(v) for v in thing.center)
                    if thing.kind == "triangle":
                        y += thing.size // 4
                    near = min(COLORS, key=lambda name: np.abs(frame[y, x].astype(int) - COLORS[name]).sum())
                    assert near == thing.color, thing


def test_the_background_is_still(made: list[Clip]) -> None:
    for clip in made[:20]:
        empty = np.ones((64, 64), bool)
        for thing in (thing for state in clip.states for thing in state):
            x, y = int(thing.x), int(thing.y)
            empty[y : y + thing.size + 2, x : x + thing.size + 2] = False
        assert empty.sum() > 1000
        assert (clip.frames[:, empty] == clip.frames[0][empty]).all()


def test_a_clip_is_a_pure_function_of_its_place_in_a_stream() -> None:
    one = clip_at("clip-val", 2, 7)
    assert clip_at("clip-val", 2, 7).states == one.states
    assert (clip_at("clip-val", 2, 7).frames == one.frames).all()
    for place in [("clip-val", 3, 7), ("clip-val", 2, 8), ("clip-test", 2, 7), ("clip-train", 2, 7)]:
        assert clip_at(*place).states != one.states
