"""A stand-in for `llava-mini train`: a config like the real one's, and a run that leaves what a real one leaves.

As a script it takes a run's overrides; `standin.act` says what becomes of the run: finish, fail, fail_once, die,
nothing (exit without a result), noise, or a number of seconds to take before it finishes. The environment's
STANDIN_CODE_VERSION is the code's version.
"""

import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from llava_mini.errors import UserError
from llava_mini.sweep.grid import config_hash

COMPRESSORS: dict[str, dict[str, Any]] = {
    "query": {"_target_": "llava_mini.models.compressors.query.QueryCompressor", "C": 1, "num_heads": 8},
    "avg_pool": {"_target_": "llava_mini.models.compressors.avg_pool.AveragePoolCompressor", "C": 1},
    "none": {"_target_": "llava_mini.models.compressors.none.NoCompressor"},
    "zero": {"_target_": "llava_mini.models.compressors.zero.ZeroCompressor"},
}
CODE_VERSION = "code-1"
SCENES, QUESTIONS = 40, 6
KINDS = ("color", "shape", "digit", "count", "exist", "where")


def resolve(overrides: list[str]) -> dict[str, Any]:
    """A small copy of what the real `resolve` does."""
    config: dict[str, Any] = {
        "seed": 0,
        "compressor": dict(COMPRESSORS["query"]),
        "fusion": {"num_layers": 4, "init": "copy"},
        "order": {"compress_before_projection": True},
        "trainer": {"max_steps": 450, "betas": [0.9, 0.99]},
        "data": {
            "folder": "data/world",
            "world_seed": 0,
            "sizes": {"train": 100, "test": SCENES},
            "splits": {"train": "train", "test": "test"},
        },
        "stage": {"note": "", "learning_rates": {"projector": 0.002}},
        "standin": {"act": "finish"},
        "run_dir": "runs/one",
        "tracking": {"uri": None, "parent_run_id": None},
        "launcher": {"max_parallel": None},
    }
    for override in sorted(overrides, key=lambda item: "." in item.partition("=")[0]):  # groups first, as Hydra does
        key, _, text = override.partition("=")
        *path, last = key.split(".")
        if key == "compressor":
            if text not in COMPRESSORS:
                raise UserError(f"compressor={text}: no such compressor; allowed are {', '.join(COMPRESSORS)}")
            config["compressor"] = dict(COMPRESSORS[text])
            continue
        node = config
        for part in path:
            node = node[part]
        if last not in node:
            raise UserError(f"unknown key {key}")
        node[last] = _value(text)
    return config


def leave_result(folder: Path, config: dict[str, Any], code_version: str, accuracy: float = 0.8) -> None:
    """Writes predictions and `result.json` of a finished run."""
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(json.dumps([config["compressor"], config["fusion"], config["seed"]]).encode()).digest()
    rng = np.random.default_rng(list(digest))
    measured, by_kind = {}, {}
    for split in ("val", "test"):
        correct = rng.random(SCENES * QUESTIONS) < accuracy
        kind = np.tile(KINDS, SCENES)
        keys = np.repeat([f"{split}-{scene:03}" for scene in range(SCENES)], QUESTIONS)
        turns = np.tile(np.arange(QUESTIONS), SCENES)
        np.savez(folder / f"predictions_{split}.npz", key=keys, turn=turns, kind=kind, correct=correct)
        measured[split] = float(correct.mean())
        by_kind[split] = {name: float(correct[kind == name].mean()) for name in KINDS}
    c, n_fusion = config["compressor"].get("C"), config["fusion"]["num_layers"]
    tokens = 64 if "none" in config["compressor"]["_target_"] else 0 if c is None else c * c
    result = {
        "status": "finished", "config_hash": config_hash(config), "code_version": code_version, "commit": "abc",
        "seed": config["seed"], "compressor": config["compressor"]["_target_"].split(".")[-2], "C": c,
        "tokens": tokens, "n_fusion": n_fusion, "params": {"compressor": 10, "prefusion": 20 * n_fusion},
        "accuracy": measured, "accuracy_by_kind": by_kind, "prefill_flops": 1_000_000 * (20 + tokens + 8 * n_fusion),
        "seconds": 61.5, "cpu_seconds": 60.0, "peak_memory_bytes": 600_000_000, "train_loss": 0.5,
        "mlflow_run_id": None,
    }  # fmt: skip
    (folder / "config.yaml").write_text(json.dumps(config))  # which is YAML too
    (folder / "result.json.tmp").write_text(json.dumps(result))
    (folder / "result.json.tmp").replace(folder / "result.json")


def main(arguments: list[str]) -> None:
    """One run."""
    config = resolve(arguments)
    folder, act = Path(config["run_dir"]), config["standin"]["act"]
    (folder / "attempts").open("a").write(f"{os.getpid()}\n")
    (folder / "environment.json").write_text(json.dumps(dict(os.environ)))
    if act == "fail" or (act == "fail_once" and len((folder / "attempts").read_text().split()) == 1):
        raise ValueError(f"seed {config['seed']} <fails> & says so")
    if act == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if act == "noise":
        print("\x1b[31mred\x1b[0m\rlast words", flush=True)
        sys.exit(3)
    if isinstance(act, int | float):
        time.sleep(act)
    if act != "nothing":
        leave_result(folder, config, os.environ.get("STANDIN_CODE_VERSION", CODE_VERSION))


def _value(text: str) -> Any:
    if text.startswith("'"):
        return text[1:-1].replace("\\'", "'").replace("\\\\", "\\")
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


if __name__ == "__main__":
    main(sys.argv[1:])
