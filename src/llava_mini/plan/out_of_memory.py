"""Message of a run that is out of memory: at which step, what is saved, and what to change, cheapest first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from llava_mini.config import Config
from llava_mini.out_of_memory import oom_as
from llava_mini.plan.memory_options import Change
from llava_mini.run.folder import kept_of
from llava_mini.run.identity import config_hash

ANOTHER_RUN = "*"  # marks a change of the run's result, so that the run cannot continue in its folder


class RunOutOfMemoryError(RuntimeError):
    """Error that training is out of memory. The message is for the user."""


@contextmanager
def oom_as_run_error(config: Config, step: Callable[[], int], advice: Callable[[], list[Change]]) -> Iterator[None]:
    """Turn an out-of-memory error into one line.

    `step` returns the number of optimizer steps done; `advice`, called only when out of memory, config changes that
    save memory, in order.

    Raises:
        RunOutOfMemoryError: torch or Python ran out of memory; it replaces their own error.
    """
    with oom_as(lambda reason: RunOutOfMemoryError(message(config, step(), reason, advice()))):
        yield


def message(config: Config, step: int, reason: str, advice: list[Change]) -> str:
    """Return the line for the user."""
    start = f"out of memory at step {step} ({reason}); {kept_of(config)}; "
    if not advice:
        return f"{start}nothing is left to turn on: shorten data.max_length, or take a smaller model or a larger card"
    named = _named(config, advice)
    marked = any(item.endswith(ANOTHER_RUN) for item in named)
    return f"{start}try, one after another, cheapest first: {'; '.join(named)}" + (
        f" ({ANOTHER_RUN} in another run_dir)" if marked else ""
    )


def _named(config: Config, advice: list[Change]) -> list[str]:
    """Return the changes as text, each marked if its run cannot continue in the folder of this one."""
    here = config_hash(config)
    return [f"{change.text}{'' if config_hash(change.of(config)) == here else ANOTHER_RUN}" for change in advice]
