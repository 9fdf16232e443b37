"""`llava-mini train`: one run from config to result.json in its own folder. A killed run resumes there."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from llava_mini.command_line.table import STRICT
from llava_mini.config import check_each_once, resolve
from llava_mini.errors import refused
from llava_mini.run.folder import claim
from llava_mini.run.ranks import OWN_MESSAGE, own_rank, run_ranks, train_command


def train(overrides: list[str], config_dirs: tuple[str, ...]) -> int:
    """Train one run in this process, or start the ranks that train it; returns 1 when training ended without a result.

    Raises:
        UserError: the config is impossible here, or the folder contains another run.
    """
    strict, overrides = STRICT in overrides, [override for override in overrides if override != STRICT]
    check_each_once(overrides)
    config = resolve(overrides, config_dirs)
    count, num_nodes, rank = config.trainer.devices, config.trainer.num_nodes, own_rank()
    run_dir = Path(config.run_dir)
    if num_nodes > 1 and rank is None:
        raise refused("trainer.num_nodes", num_nodes, "begin the run on each by torchrun -m llava_mini train ...")
    if rank is None and claim(run_dir, config):
        from llava_mini.run.tracked import send_waiting

        if config.tracking.enabled:
            send_waiting(config)
        return 0
    if strict and not rank:
        from llava_mini.plan.run_memory import check_fits

        check_fits(config)
    if count > 1 and rank is None:
        from llava_mini.assembly import check_training

        check_training(config)  # once here, before every rank loads everything only to find the same mistake
        return run_ranks([*train_command(config_dirs), *overrides], count, run_dir)
    if rank:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # rank 0 shuts down cleanly, and then all ranks are stopped
    from llava_mini.plan.run_memory import RunOutOfMemoryError
    from llava_mini.stages.base import NonFiniteLossError
    from llava_mini.training.lost_rank import LostRankError
    from llava_mini.training.run import train_run

    try:
        train_run(config)
    except (NonFiniteLossError, RunOutOfMemoryError, LostRankError) as error:
        print(f"{OWN_MESSAGE}{error}", file=sys.stderr)
        return 1
    return 0
