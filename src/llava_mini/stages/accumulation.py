"""Gradients of the mean over all supervised tokens of an optimizer step, however batches and ranks share the tokens.

The number of tokens in a step is known only with its last batch, so the mean is updated batch by batch: before a
batch's backward pass the gradients so far are scaled down to their share of the tokens so far. The gradients thus
always have the size of a mean, which float16 needs. They are final when the last batch's backward pass ends, so
clipping, the gradient scaler and FSDP need no changes.
"""

from __future__ import annotations

from torch.optim import Optimizer


class StepMean:
    """Mean over the supervised tokens of an optimizer step, updated one batch at a time.

    Attributes:
        tokens: Number of supervised tokens of the step so far, of all ranks.
    """

    def __init__(self) -> None:
        self.tokens = 0

    def begin(self) -> None:
        """Begin a step: its first batch comes next, and no gradient is left."""
        self.tokens = 0

    def add(self, own: int, every: int, parts: int, optimizer: Optimizer) -> float:
        """Add the next batch of every rank; to be called between the last backward pass and the batch's own.

        Args:
            own: Number of supervised tokens in this rank's batch; a batch with 0 counts for nothing.
            every: Number of supervised tokens in all ranks' batches.
            parts: Divisor of gradients elsewhere: batches of a step (Lightning) times ranks (DDP, FSDP).
            optimizer: Optimizer whose gradients, from the step's earlier batches, are scaled.

        Returns:
            Factor that the batch's own mean loss must be multiplied by.
        """
        before, self.tokens = self.tokens, self.tokens + every
        if before and every:
            scale_gradients(optimizer, before / self.tokens)
        return own * parts / max(self.tokens, 1)


def scale_gradients(optimizer: Optimizer, factor: float) -> None:
    """Multiply in place the gradients that an optimizer would be given now; with FSDP, this rank's shards of them.

    The optimizer's own parameters are used, because between forward and backward pass an FSDP module shows others.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                parameter.grad.mul_(factor)
