"""Boards are full, in reading order, pure functions of their place in a stream, and aligned with no pooling grid."""

from itertools import pairwise

import numpy as np
import pytest

from llava_mini.data.toyworld.scenes import BOARD_SETS, BOX, Scene, board_at, drawn_at, scene_at

COUNT = 60


@pytest.fixture(scope="module")
def made() -> list[Scene]:
    return [board_at("board-train", 0, index) for index in range(COUNT)]


def test_a_board_has_seven_boxes_and_nine_shapes_in_reading_order(made: list[Scene]) -> None:
    for board in made:
        assert len(board.objects) == 16 and len(board.boxes) == 7
        rows = [board.objects[row * 4 : row * 4 + 4] for row in range(4)]
        for row in rows:
            assert [thing.x for thing in row] == sorted(thing.x for thing in row)
        for above, below in pairwise(rows):
            assert max(t.y for t in above) < min(t.y + t.size / 2 for t in below)
    assert len({tuple(thing.kind == BOX for thing in board.objects) for board in made}) > COUNT // 2


def test_objects_stay_inside_and_apart(made: list[Scene]) -> None:
    for board in made:
        for number, one in enumerate(board.objects):
            assert 0 <= one.x <= 64 - one.size and 0 <= one.y <= 64 - one.size
            for other in board.objects[:number]:
                gap_x = max(one.x - other.x - other.size, other.x - one.x - one.size)
                gap_y = max(one.y - other.y - other.size, other.y - one.y - one.size)
                assert max(gap_x, gap_y) > -1e-9


def test_positions_follow_no_grid(made: list[Scene]) -> None:
    places = np.array([[[thing.x, thing.y] for thing in board.objects] for board in made])  # [boards, 16, 2]
    assert np.ptp(places, axis=0).min() > 3  # each object moves by pixels from board to board
    assert np.unique(places % 1).size > places.size // 2


def test_a_board_is_a_function_of_seed_stream_and_index(made: list[Scene]) -> None:
    assert (board_at("board-train", 0, 7).image == made[7].image).all()
    others = [board_at("board-train", 1, 7), board_at("board-val", 0, 7), board_at("board-train", 0, 8)]
    assert not any((other.image == made[7].image).all() for other in others)
    assert (drawn_at("board-test", 0, 3).image == board_at("board-test", 0, 3).image).all()
    assert (drawn_at("instruct-test", 0, 3).image == scene_at("instruct-test", 0, 3).image).all()
    assert [name.rsplit("-", 1)[1] for name in BOARD_SETS] == ["train", "val", "test"]
