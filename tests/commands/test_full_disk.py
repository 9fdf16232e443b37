"""A run that the disk takes no checkpoint of ends in one line, and goes on where there is room again."""

import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from llava_mini.cli import main

LARGEST = 64 * 2**10  # bytes; more than a run's small files have, and less than a checkpoint


def test_a_run_ends_in_one_line_and_continues_later(smoke_in: Callable[..., list[str]], tmp_path: Path) -> None:
    assert main(["train", *smoke_in(tmp_path / "makes-the-data", "trainer.max_steps=1", "trainer.val_every=1")]) == 0
    command = ["train", *smoke_in(tmp_path / "run")]

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST, resource.RLIM_INFINITY))

    alone = [sys.executable, "-m", "llava_mini", *command]
    full = subprocess.run(alone, check=False, capture_output=True, text=True, preexec_fn=limit)
    assert full.returncode == 2, full.stderr
    line = (
        re.escape(f"llava-mini: {tmp_path}/run/checkpoints/") + r"(last|best)\.ckpt: cannot be written: File too large"
    )
    assert re.fullmatch(line, full.stderr.splitlines()[-1])
    assert "Traceback" not in full.stderr
    assert not list((tmp_path / "run" / "checkpoints").rglob("*"))
    assert main(command) == 0
    assert (tmp_path / "run" / "result.json").exists()
