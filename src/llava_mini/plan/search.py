"""Search for the largest batch that fits, with as few planned steps as possible.

A step's peak is the highest memory over its moments, and each moment grows by the same number of bytes with every
further sample. So the peak is convex in the batch size from 2 on (a batch of 1 has no padding and needs no mask), or
nearly convex (what works in portions, as the vision tower may, grows only up to the size of a portion).
"""

from __future__ import annotations

from collections.abc import Callable


def largest_batch(peak_of: Callable[[int], int], limit: int, start: int, most: int) -> int:
    """Return the largest number of samples whose peak is within `limit`; 0 if one sample is too many.

    The answer was planned and fits; one more sample was planned and does not fit, unless the answer is `most`.

    Args:
        peak_of: Function that returns the bytes at the peak for a number of samples.
        limit: Number of bytes that are available.
        start: Number of samples whose peak is known or needed anyway.
        most: Largest number of samples that may be planned, at least 3.
    """
    known = {size: peak_of(size) for size in sorted({2, min(max(start, 3), most)})}
    ahead = 1
    while True:
        high = min((size for size in known if known[size] > limit), default=most + 1)
        low = max((size for size in known if size < high), default=0)
        if high == 2:
            return int(peak_of(1) <= limit)
        if low + 1 == high:
            return low
        size = _guess(known, limit, most)
        if size <= low:  # the guess is on `low`, or nearly
            size, ahead = low + ahead, 2 * ahead
        size = min(size, high - 1)
        known[size] = peak_of(size)


def _guess(known: dict[int, int], limit: int, most: int) -> int:
    """Batch size where a line through two known points meets the limit: the points next to it, or the largest two."""
    (first, second) = sorted(known)[-2:]
    if known[first] > limit:
        second = min(size for size in known if known[size] > limit)
        first = max((size for size in known if size < second), default=first)
    slope = (known[second] - known[first]) / (second - first)
    return most if slope <= 0 else min(int(second + (limit - known[second]) / slope), most)
