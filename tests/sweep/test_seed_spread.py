"""What too few seeds cannot tell, in words."""

import json
import math
from pathlib import Path

import pytest

from llava_mini.sweep.seed_spread import SPREAD_POINTS, few_seeds


@pytest.mark.parametrize(("seeds", "begin"), [(1, "One seed: "), (2, "Two seeds: ")])
def test_the_limit_is_named_for_each_group(seeds: int, begin: str) -> None:
    dense, one_word = (f"{SPREAD_POINTS[group]:g} points" for group in ("dense", "one_word"))
    both = few_seeds(seeds, ["dense", "one_word"])
    assert both.startswith(
        f"{begin}differences under about {dense} on dense answers or {one_word} on one-word answers "
    )
    assert few_seeds(seeds, ["one_word"]).startswith(f"{begin}differences under about {one_word} mean nothing")


def test_the_limits_are_those_of_the_study() -> None:
    study = Path(__file__).parents[2] / "experiments" / "007-compression" / "spread.json"
    measured = {group: figures["limit"] for group, figures in json.loads(study.read_text()).items()}
    assert {group: math.ceil(limit) for group, limit in measured.items()} == SPREAD_POINTS
