"""Gradients of the mean over all supervised tokens of an optimizer step, however batches and ranks share them.

How many tokens a step has is known only with its last batch, so the mean is kept up to date: before a batch's backward
pass the gradients so far are scaled down to their share of the tokens so far. Every moment's gradients are thus of the
size of a mean, which float16 needs, and they are final when the last batch's backward pass ends: clipping, the gradient
scaler and FSDP need to know nothing of it.
"""

from __future__ import annotations

from torch.optim import Optimizer


class StepMean:
    """The mean over the supervised tokens of an optimizer step, a batch at a time.

    Attributes:
        tokens: Supervised tokens of the step so far, of all ranks.
    """

    def __init__(self) -> None:
        self.tokens = 0

    def begin(self) -> None:
        """A step's first batch comes next, and no gradient is left."""
        self.tokens = 0

    def add(self, own: int, every: int, parts: int, optimizer: Optimizer) -> float:
        """Enter the next batch of every rank; to be called between the last backward pass and the batch's own.

        Args:
            own: Supervised tokens of this rank's batch; 0 counts for nothing.
            every: Supervised tokens of all ranks' batches.
            parts: By how much gradients are divided by others: batches of a step (Lightning) times ranks (DDP, FSDP).
            optimizer: Whose gradients, of the step's earlier batches, are scaled.

        Returns:
            What the batch's own mean loss must be multiplied by.
        """
        before, self.tokens = self.tokens, self.tokens + every
        if before and every:
            scale_gradients(optimizer, before / self.tokens)
        return own * parts / max(self.tokens, 1)


def scale_gradients(optimizer: Optimizer, factor: float) -> None:
    """Multiply in place what gradients an optimizer would be given now, with FSDP this rank's share of them.

    The optimizer's own parameters are meant, for between forward and backward pass a module of FSDP shows others.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                parameter.grad.mul_(factor)
