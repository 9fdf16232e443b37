"""TokenLayout: how many tokens of the language model the frames of a sample take, and in which order.

It is made by the model and used wherever placeholders are written, counted or checked: processor, labels, inputs,
sessions, plans and FLOPs. So no other place assumes that every frame has the same number of tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from llava_mini.errors import refused

SINGLE_VIEW, HD_VIEWS = 1, 5


@dataclass(frozen=True)
class TokenLayout:
    """Compressed tokens of frames, which follow one another in the order of the frames.

    Attributes:
        single_view: Tokens of a frame with one view; 0 for a compressor that passes nothing on.
        hd: Tokens of a frame with five views (2x2 crops and the whole image).

    Raises:
        UserError: a number of tokens is negative.
    """

    single_view: int
    hd: int

    def __post_init__(self) -> None:
        for name, tokens in (("single_view", self.single_view), ("hd", self.hd)):
            if tokens < 0:
                raise refused(name, tokens, "tokens of a frame", allowed="0 and above")

    def frame(self, views: int = SINGLE_VIEW) -> int:
        """Return the number K of tokens of a frame.

        Args:
            views: Number of its views, 1 or 5.

        Raises:
            ValueError: no frame has so many views.
        """
        if views not in (SINGLE_VIEW, HD_VIEWS):
            raise ValueError(
                f"a frame has {views} views, expected {SINGLE_VIEW} or {HD_VIEWS} (2x2 crops and the whole)"
            )
        return self.single_view if views == SINGLE_VIEW else self.hd

    def frames(self, count: int, views: int = SINGLE_VIEW) -> int:
        """Return the number of tokens of `count` frames that have `views` views each."""
        return count * self.frame(views)

    def sample(self, views: Iterable[int]) -> int:
        """Return the number of tokens that an image or a video takes.

        Args:
            views: Number of views of each of its frames, in their order.
        """
        return sum(self.frame(each) for each in views)
