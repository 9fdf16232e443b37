"""What an answer need not compute, each switchable so that it can be compared; none of it changes a result.

The release computes layers of the vision tower behind the one that is read, all rows of the last pre-fusion layer
though only the compressed tokens and the text are, the patches' keys and values anew for every question, and one frame
after the other (REFERENCE section 4).
"""

from __future__ import annotations

from dataclasses import dataclass

from llava_mini.errors import UserError


@dataclass(frozen=True)
class InferenceOptimizations:
    """How a model works without gradients; training never splits pre-fusion, takes all frames at once, and trims too.

    Args:
        stop_tower: The vision tower stops at the layer whose features are used.
        split_prefusion: Patches and compressed tokens go through pre-fusion first and the text then reads their keys
            and values: causal attention without a mask, and no padding of text beside patches. Later questions can
            reuse them.
        trim_last_layer: The last pre-fusion layer computes keys and values alone for rows that are not read from it;
            needs `split_prefusion`.
        frame_batch: Frames that go through tower, compressor and pre-fusion together; None: as memory allows.

    Raises:
        UserError: `trim_last_layer` without `split_prefusion`, or a `frame_batch` below 1.
    """

    stop_tower: bool = True
    split_prefusion: bool = True
    trim_last_layer: bool = True
    frame_batch: int | None = None

    def __post_init__(self) -> None:
        if self.trim_last_layer and not self.split_prefusion:
            raise UserError("optimizations: trim_last_layer=True needs split_prefusion=True")
        if self.frame_batch is not None and self.frame_batch < 1:
            raise UserError(f"optimizations: frame_batch={self.frame_batch}; allowed are 1 and above, and None")


RELEASE = InferenceOptimizations(stop_tower=False, split_prefusion=False, trim_last_layer=False, frame_batch=1)
