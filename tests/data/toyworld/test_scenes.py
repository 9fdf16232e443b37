"""Scenes show what they say, are pure functions of their place in a stream, and no scene is in two streams."""

import numpy as np
import pytest

from llava_mini.data.toyworld.drawing import COLOR_NAMES, COLORS, SHAPES, DigitBank, digit_bank
from llava_mini.data.toyworld.scenes import (
    BOX,
    STREAMS,
    Scene,
    SceneObject,
    drawn_at,
    make_scene,
    scene_at,
    stream_split,
)

COUNT = 60


@pytest.fixture(scope="module")
def made() -> list[Scene]:
    return [scene_at("instruct-train", 0, index) for index in range(COUNT)]


def test_scenes_have_two_boxes_and_three_to_five_shapes(made: list[Scene]) -> None:
    for scene in made:
        assert [thing.kind for thing in scene.objects[:2]] == [BOX, BOX]
        assert 3 <= len(scene.shapes) <= 5
        assert {thing.kind for thing in scene.shapes} <= set(SHAPES)
        assert {thing.color for thing in scene.objects} <= set(COLOR_NAMES)
        assert scene.boxes[0].color != scene.boxes[1].color
        assert all((thing.digit is not None) == (thing.kind == BOX) for thing in scene.objects)
    assert {len(scene.objects) for scene in made} == {5, 6, 7}


def test_objects_stay_inside_and_apart(made: list[Scene]) -> None:
    for scene in made:
        for number, one in enumerate(scene.objects):
            assert 0 <= one.x <= 64 - one.size
            assert 0 <= one.y <= 64 - one.size
            for other in scene.objects[:number]:
                gap_x = max(one.x - other.x - other.size, other.x - one.x - one.size)
                gap_y = max(one.y - other.y - other.size, other.y - one.y - one.size)
                assert max(gap_x, gap_y) >= 1


def test_positions_follow_no_grid(made: list[Scene]) -> None:
    places = np.array([[thing.x, thing.y] for scene in made for thing in scene.objects])
    for period in (1, 4, 8, 16):
        shares = np.histogram(places % period, bins=4, range=(0, period))[0] / places.size
        assert shares.max() < 0.35


def test_two_questions_of_every_kind_can_be_asked(made: list[Scene]) -> None:
    for scene in made:
        assert min(len(scene.placed_shapes), len(scene.unique_shapes), len(scene.unique_colors)) >= 2


def test_objects_are_painted_where_and_as_they_say(made: list[Scene]) -> None:
    names, table = list(COLORS), np.array(list(COLORS.values()), np.float32)
    for scene in made:
        for thing in scene.objects:
            # The centre of a full shape; a ring is full at its rim and a box, which holds its digit, at its edge.
            x, y = {"ring": (thing.x + thing.size * 0.87, thing.y + thing.size / 2),
                    BOX: (thing.x + 1, thing.y + 1)}.get(thing.kind, thing.center)  # fmt: skip
            color = scene.image[int(y), int(x)].astype(np.float32)
            assert names[np.abs(table - color).sum(1).argmin()] == thing.color, thing


def test_a_box_shows_its_digit() -> None:
    blank, full = np.zeros((12, 12), np.float32), np.ones((12, 12), np.float32)
    labels = np.array([3, 8])
    bank = DigitBank(np.arange(2), np.stack([blank, full]), labels)
    for seed in range(8):
        scene = make_scene(np.random.default_rng(seed), bank)
        for box in scene.boxes:
            x, y = (int(value) for value in box.center)
            assert (scene.image[y, x].max() < 40) == (box.digit == 8)


def test_a_scene_depends_on_nothing_but_its_place(made: list[Scene]) -> None:
    alone = scene_at("instruct-train", 0, 7)
    assert alone.objects == made[7].objects
    assert (alone.image == made[7].image).all()
    assert scene_at("instruct-train", 1, 7).objects != alone.objects


def test_no_scene_is_in_two_streams() -> None:
    pictures = [drawn_at(stream, 0, index).image.tobytes() for stream in STREAMS for index in range(25)]
    assert len(set(pictures)) == len(STREAMS) * 25


@pytest.mark.parametrize("stream", STREAMS)
def test_a_stream_shows_digits_of_its_split_only(stream: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def spy(split: str) -> DigitBank:
        asked.append(split)
        return digit_bank("val")

    monkeypatch.setattr("llava_mini.data.toyworld.scenes.digit_bank", spy)
    drawn_at(stream, 0, 0)
    assert asked == [stream.split("-")[-1]]


def test_an_unknown_stream_is_named() -> None:
    with pytest.raises(ValueError, match="unknown stream 'instruct-dev'"):
        stream_split("instruct-dev")


@pytest.mark.parametrize(
    ("x", "y", "quadrant"),
    [
        (0, 0, "northwest"),
        (50, 0, "northeast"),
        (0, 50, "southwest"),
        (50, 50, "southeast"),
        (25, 0, None),
        (0, 27, None),
    ],
)
def test_quadrants_leave_out_the_middle_lines(x: float, y: float, quadrant: str | None) -> None:
    assert SceneObject("ring", "red", None, x, y, 12).quadrant == quadrant


def test_the_first_scene_of_seed_0_is_what_it_was() -> None:
    """When this changes, every world changes: raise RECIPE_VERSION in make.py."""
    scene = scene_at("instruct-train", 0, 0)
    assert [(thing.kind, thing.color, thing.digit) for thing in scene.objects] == [
        ("box", "green", 0),
        ("box", "purple", 4),
        ("circle", "green", None),
        ("ring", "purple", None),
        ("ring", "white", None),
        ("triangle", "white", None),
    ]
    # Not bit by bit: another version of Pillow may scale a mask a little differently.
    assert scene.image.mean() == pytest.approx(85.439, abs=0.05)
