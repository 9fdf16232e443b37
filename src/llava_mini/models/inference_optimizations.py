"""Computations that an answer does not need; each can be switched for comparison, and none of it changes a result.

The release computes the layers of the vision tower after the one that is read. It computes all rows of the last
pre-fusion layer, though only the compressed tokens and the text are read. It computes the patches' keys and values
again for every question, and one frame after the other (REFERENCE section 4).
"""

from __future__ import annotations

from dataclasses import dataclass

from llava_mini.errors import refused


@dataclass(frozen=True)
class InferenceOptimizations:
    """Options of inference without gradients; training never splits pre-fusion, takes all frames at once, also trims.

    Args:
        stop_tower: Whether the vision tower stops at the layer whose features are used.
        split_prefusion: Whether patches and compressed tokens go through pre-fusion first and the text then reads their
            keys and values. Attention is then causal without a mask, and no text next to patches is padded. Later
            questions can reuse the keys and values.
        trim_last_layer: Whether the last pre-fusion layer computes only keys and values for rows that are not read from
            it; needs `split_prefusion`.
        frame_batch: Number of frames that go through vision tower, compressor and pre-fusion together; None: as many as
            memory allows.

    Raises:
        UserError: `trim_last_layer` without `split_prefusion`, or a `frame_batch` below 1.
    """

    stop_tower: bool = True
    split_prefusion: bool = True
    trim_last_layer: bool = True
    frame_batch: int | None = None

    def __post_init__(self) -> None:
        if self.trim_last_layer and not self.split_prefusion:
            raise refused("trim_last_layer", True, "needs split_prefusion=True")
        if self.frame_batch is not None and self.frame_batch < 1:
            raise refused("frame_batch", self.frame_batch, allowed="1 and above, and None")


RELEASE = InferenceOptimizations(stop_tower=False, split_prefusion=False, trim_last_layer=False, frame_batch=1)
