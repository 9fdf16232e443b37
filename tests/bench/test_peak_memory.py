"""A point of the measurement: a session with so many frames, in a process of its own."""

import pytest

from llava_mini.bench.peak_memory import LLAVA, OURS, OURS_KV, session_peak
from llava_mini.bench.process_memory import fresh

TOKEN = 2 * 8 * 128 * 4  # keys and values x layers x width x bytes, of the small model


@pytest.mark.parametrize(("way", "tokens"), [(LLAVA, 576), (OURS, 1), (OURS_KV, 1)])
def test_a_frame_costs_the_language_model_its_tokens(way: str, tokens: int) -> None:
    one, two = session_peak(way, 1), session_peak(way, 2)
    assert (two.way, two.frames) == (way, 2)
    assert two.cache_bytes - one.cache_bytes == tokens * TOKEN


def test_the_peak_of_a_process_of_its_own() -> None:
    """Four frames of all patches: their keys and values at the least, and not a model or a library besides."""
    found = fresh(session_peak, LLAVA, 4)
    assert 4 * 576 * TOKEN < found.peak_bytes < 20 * 4 * 576 * TOKEN
