"""What is held when, and for what."""

import torch

from llava_mini.plan.ledger import (
    ACTIVATIONS,
    BACKWARD,
    FORWARD,
    FROZEN,
    LOGITS,
    WORKSPACE,
    Ledger,
    Watching,
)


def test_peak_is_the_highest_moment_since_begin() -> None:
    ledger = Ledger()
    with Watching(ledger):
        kept = torch.zeros(256)
        torch.zeros(4096)
        ledger.begin()
        torch.zeros(512)
        assert (ledger.current, ledger.peak) == (1024, 1024 + 2048)
        del kept
    assert ledger.current == 0


def test_sizes_are_rounded_as_on_cuda() -> None:
    ledger = Ledger()
    ledger.note(torch.zeros(3), FROZEN)
    with Watching(ledger):
        kept = torch.zeros(129)
        assert ledger.current == 1024
        del kept


def test_what_the_forward_pass_frees_again_is_workspace() -> None:
    ledger = Ledger(vocab_size=9)
    with Watching(ledger):
        ledger.begin()
        ledger.enter(FORWARD)
        saved, passing, logits = torch.zeros(128), torch.zeros(256), torch.zeros(2, 9)
        del passing
        ledger.enter(BACKWARD)
        parts = ledger.breakdown()
        assert (parts[ACTIVATIONS], parts[WORKSPACE], parts[LOGITS]) == (512, 1024, 512)
        assert sum(parts.values()) == ledger.peak
        del saved, logits
