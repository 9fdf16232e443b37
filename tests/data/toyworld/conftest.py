"""What is true of a scene, told by a second reading of its objects that shares no code with the package."""

from collections.abc import Callable

import pytest

from llava_mini.data.toyworld.scenes import Scene, SceneObject

NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@pytest.fixture(scope="session")
def answers() -> Callable[..., set[str]]:
    """answers(scene, kind, color, shape): every answer that could be defended; a fair question has exactly one."""

    def shapes(scene: Scene, color: str, shape: str) -> list[SceneObject]:
        """Objects other than boxes with that color and shape, either of them empty for any."""
        fits = [thing for thing in scene.objects if thing.digit is None]
        fits = [thing for thing in fits if color in ("", thing.color)]
        return [thing for thing in fits if shape in ("", thing.kind)]

    def place(thing: SceneObject) -> str:
        x, y = thing.x + thing.size / 2 - 32, thing.y + thing.size / 2 - 32
        if abs(x) < 1 or abs(y) < 1:
            return "the middle"
        return f"{'north' if y < 0 else 'south'}{'west' if x < 0 else 'east'}"

    def digits(scene: Scene, color: str) -> set[str]:
        boxes = [thing.digit for thing in scene.objects if thing.digit is not None and thing.color == color]
        return {NUMBERS[digit] for digit in boxes}

    def make(scene: Scene, kind: str, color: str = "", shape: str = "") -> set[str]:
        found = shapes(scene, color, shape)
        return {
            "color": {thing.color for thing in found},
            "shape": {thing.kind for thing in found},
            "digit": digits(scene, color),
            "count": {NUMBERS[len(found)]},
            "exist": {"yes" if found else "no"},
            "where": {place(thing) for thing in found},
        }[kind]

    return make
