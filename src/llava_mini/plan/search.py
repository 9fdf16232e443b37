"""The largest batch that fits, found with as few planned steps as can be.

A step's peak is the highest of its moments, and each moment grows by the same bytes with every further sample: so the
peak is convex in the batch's size from 2 on (a batch of 1 has no padding and needs no mask).
"""

from __future__ import annotations

from collections.abc import Callable

LARGEST = 4096  # nobody asks for more, and a tiny model would take for ever


def largest_batch(peak_of: Callable[[int], int], limit: int, start: int) -> int:
    """The largest number of samples whose peak is within `limit`; 0 when one sample is too many.

    The answer has been planned and fits; one more sample does not, as planned or because the peak is convex.

    Args:
        peak_of: Bytes at the peak for a number of samples.
        limit: Bytes that there are.
        start: A number of samples whose peak is known or wanted anyway.
    """
    known = {size: peak_of(size) for size in sorted({2, max(start, 3)})}
    while True:
        fits = [size for size in known if known[size] <= limit]
        low, high = max(fits, default=0), min((size for size in known if known[size] > limit), default=LARGEST + 1)
        if high == 2:
            return int(peak_of(1) <= limit)
        guess = _guess(known, limit)
        if low + 1 == high or (guess <= low and len(fits) == len(known)):
            return low
        size = min(max(guess, low + 1), high - 1)
        known[size] = peak_of(size)


def _guess(known: dict[int, int], limit: int) -> int:
    """Where the line through the two largest known points meets the limit: never below the answer."""
    (first, second) = sorted(known)[-2:]
    slope = (known[second] - known[first]) / (second - first)
    return LARGEST if slope <= 0 else min(int(second + (limit - known[second]) / slope), LARGEST)
