"""The largest batch that fits, found with as few planned steps as can be.

A step's peak is the highest of its moments, and each moment grows by the same bytes with every further sample: so the
peak is convex in the batch's size from 2 on (a batch of 1 has no padding and needs no mask), or nearly (what works in
portions, as the vision tower may, grows up to its portion only).
"""

from __future__ import annotations

from collections.abc import Callable


def largest_batch(peak_of: Callable[[int], int], limit: int, start: int, most: int) -> int:
    """The largest number of samples whose peak is within `limit`; 0 when one sample is too many.

    The answer was asked for and fits; one more sample was asked for and does not, unless the answer is `most`.

    Args:
        peak_of: Bytes at the peak for a number of samples.
        limit: Bytes that there are.
        start: A number of samples whose peak is known or wanted anyway.
        most: Samples that may be asked for, at least 3.
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
        if size <= low:  # on it, or nearly
            size, ahead = low + ahead, 2 * ahead
        size = min(size, high - 1)
        known[size] = peak_of(size)


def _guess(known: dict[int, int], limit: int, most: int) -> int:
    """Where the line through two known points meets the limit: those next to it, or the largest."""
    (first, second) = sorted(known)[-2:]
    if known[first] > limit:
        second = min(size for size in known if known[size] > limit)
        first = max((size for size in known if size < second), default=first)
    slope = (known[second] - known[first]) / (second - first)
    return most if slope <= 0 else min(int(second + (limit - known[second]) / slope), most)
