"""Whose run lies in a folder: a run continues only where its own config and code were at work."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from llava_mini.config import load
from llava_mini.errors import UserError
from llava_mini.files import remove_leftovers
from llava_mini.sweep.grid import config_hash
from llava_mini.sweep.provenance import code_version

log = logging.getLogger("llava_mini")


def claim(run_dir: Path, config: dict[str, Any]) -> bool:
    """Whether the folder holds this very run, finished; what a killed attempt left half written is removed.

    Raises:
        UserError: when it holds another run.
    """
    if (run_dir / "config.yaml").exists():
        if config_hash(load(run_dir / "config.yaml")) != config_hash(config):
            raise UserError(f"run_dir={run_dir} holds a run with another config; name another folder or delete it")
    elif run_dir.exists() and any(run_dir.glob("checkpoints/*.ckpt")):
        raise UserError(f"run_dir={run_dir} holds checkpoints and no config.yaml; name another folder")
    code = run_dir / "code.json"
    if code.exists() and json.loads(code.read_text())["code_version"] != code_version():
        raise UserError(f"run_dir={run_dir} was begun with other code; name another folder or delete it")
    for folder in (run_dir, run_dir / "checkpoints"):
        remove_leftovers(folder)
    finished = (run_dir / "result.json").exists()
    if finished:
        log.info("%s is finished already: %s", run_dir, run_dir / "result.json")
    return finished
