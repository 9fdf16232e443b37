"""A rank that stops answering ends the run, after a time, with one line."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed
from tests.run.test_ranks import python

from llava_mini.run.ranks import run_ranks
from llava_mini.training.lost_rank import LostRankError, lost_rank_as_error

MEET = """
import datetime, torch.distributed as dist
from llava_mini.training.lost_rank import LostRankError, lost_rank_as_error
from types import SimpleNamespace
config = SimpleNamespace(run_dir=sys.argv[1], trainer=SimpleNamespace(rank_timeout=2))
dist.init_process_group("gloo", rank=rank, timeout=datetime.timedelta(seconds=60))
dist.barrier()
group = dist.new_group([0, 1], timeout=datetime.timedelta(seconds=2))
try:
    with lost_rank_as_error(config, lambda: 7):
        dist.barrier(group) if rank else time.sleep(600)
except LostRankError as error:
    print(f"llava-mini: {error}", file=sys.stderr)
    os._exit(1)
"""


def test_a_rank_that_stops_answering_ends_the_run_with_a_line(tmp_path: Path, capfd) -> None:
    (tmp_path / "checkpoints").mkdir()
    (last := tmp_path / "checkpoints" / "last.ckpt").touch()
    assert run_ranks([*python(MEET), str(tmp_path)], 2, tmp_path) == 1
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "rank 1: another rank stopped answering at step 7" in lines[0]
    assert f"trainer.rank_timeout=2 seconds is how long ranks wait; the last checkpoint is good: {last}" in lines[0]


def test_other_errors_are_left_as_they_are(tmp_path: Path, monkeypatch) -> None:
    config: Any = SimpleNamespace(run_dir=str(tmp_path), trainer=SimpleNamespace(rank_timeout=2))
    with pytest.raises(RuntimeError, match="^timed out$") as caught, lost_rank_as_error(config, lambda: 0):
        raise RuntimeError("timed out")  # no other rank is there
    assert not isinstance(caught.value, LostRankError)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    with pytest.raises(RuntimeError, match="^shape$"), lost_rank_as_error(config, lambda: 0):
        raise RuntimeError("shape")
    os.environ.pop("RANK", None)
    expected = r"rank None.* \(Connection closed by peer\).* no checkpoint was due yet"
    with pytest.raises(LostRankError, match=expected), lost_rank_as_error(config, lambda: 0):
        raise RuntimeError("Connection closed by peer [127.0.0.1]")
