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
from types import SimpleNamespace
from typing import Any

import numpy as np

from llava_mini.config import Component
from llava_mini.errors import UserError
from llava_mini.predictions import Predictions
from llava_mini.run.identity import config_hash

COMPRESSORS: dict[str, dict[str, Any]] = {
    "query": {"_target_": "llava_mini.models.compressors.query.QueryCompressor", "C": 1, "num_heads": 8},
    "avg_pool": {"_target_": "llava_mini.models.compressors.avg_pool.AveragePoolCompressor", "C": 1},
    "none": {"_target_": "llava_mini.models.compressors.none.NoCompressor"},
    "zero": {"_target_": "llava_mini.models.compressors.zero.ZeroCompressor"},
}
CODE_VERSION = "code-1"
SCENES, QUESTIONS = 40, 9
# Kinds of questions and the words of their answers.
KINDS = {
    "dense": [("digits", 7), ("colors", 16), ("objects", 32)],
    "one_word": [("color", 1), ("shape", 1), ("digit", 1), ("count", 1), ("exist", 1), ("where", 1)],
}


class Config:
    """A small copy of the real config, with any keys."""

    def __init__(self, values: dict[str, Any]):
        self.values, self.seed, self.run_dir = values, values["seed"], values["run_dir"]
        self.compressor = Component.read(values["compressor"])
        self.fusion, self.trainer = SimpleNamespace(**values["fusion"]), SimpleNamespace(**values["trainer"])

    def to_dict(self) -> dict[str, Any]:
        return self.values


def resolve(overrides: list[str]) -> Config:
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
            "train": "train",
            "test": "test",
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
    return Config(config)


def leave_result(
    folder: Path,
    config: Config,
    code_version: str,
    accuracy: float | dict[str, float] = 0.8,
    training: dict[str, Any] | None = None,
) -> None:
    """Writes predictions and `result.json` of a finished run.

    `accuracy` is the chance of a word, or that by group of kinds: only the groups named are asked about. `training`
    replaces what `result.json` says of it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(
        json.dumps([config.values["compressor"], config.values["fusion"], config.seed]).encode()
    ).digest()
    rng = np.random.default_rng(list(digest))
    measured: dict[str, Predictions] = {}
    for split in ("val", "test"):
        measured[split] = _answers(split, accuracy, rng)
        measured[split].save(folder / f"predictions_{split}.npz")
    c, n_fusion = config.compressor.get("C"), config.fusion.num_layers
    tokens = 64 if "none" in config.compressor.target else 0 if c is None else c * c
    result = {
        "status": "finished", "config_hash": config_hash(config), "code_version": code_version, "commit": "abc",
        "seed": config.seed, "compressor": config.compressor.target.split(".")[-2], "C": c,
        "tokens": tokens, "n_fusion": n_fusion, "params": {"compressor": 10, "prefusion": 20 * n_fusion},
        "accuracy": {split: float(answers.exact_match.mean()) for split, answers in measured.items()},
        **{key: {split: getattr(answers, how)(score) for split, answers in measured.items()} for key, how, score in (
            ("accuracy_by_kind", "by_kind", "exact_match"),
            ("word_accuracy", "group_means", "word_accuracy"), ("nll", "group_means", "nll"),
            ("word_accuracy_by_kind", "by_kind", "word_accuracy"), ("nll_by_kind", "by_kind", "nll"),
        )},
        "converged": True, "gained_last_third": 0.001, "gain_noise": 0.004,
        "steps": config.trainer.max_steps, "start": "the uncompressed instruction model",
        "prefill_flops": 1_000_000 * (20 + tokens + 8 * n_fusion),
        "seconds": 61.5, "cpu_seconds": 60.0, "peak_memory_bytes": 600_000_000, "train_loss": 0.5,
        "mlflow_run_id": None, **(training or {}),
    }  # fmt: skip
    result.setdefault("gains", gains_of(result))
    (folder / "config.yaml").write_text(json.dumps(config.to_dict()))  # which is YAML too
    (folder / "result.json.tmp").write_text(json.dumps(result))
    (folder / "result.json.tmp").replace(folder / "result.json")


def gains_of(result: dict[str, Any]) -> dict[str, Any]:
    """What `converged`, `gained_last_third` and `gain_noise` mean for both groups of kinds."""
    gained, noise = result["gained_last_third"], result["gain_noise"]
    if gained is None:
        return {}
    improving = not result["converged"] and gained > 2 * noise
    one = {"gained": gained, "noise": noise, "improving": improving, "converged": result["converged"]}
    return {"dense": one, "one_word": one}


def _answers(split: str, accuracy: float | dict[str, float], rng: np.random.Generator) -> Predictions:
    """Answers whose words are right by chance, in some scenes more likely than in others, the same for every run."""
    chance = accuracy if isinstance(accuracy, dict) else dict.fromkeys(("dense", "one_word"), accuracy)
    kinds = [kind for group in chance for kind in KINDS[group]]
    words = np.tile(list(dict(kinds).values()), SCENES)
    share = np.tile([chance["one_word" if count == 1 else "dense"] for _, count in kinds], SCENES)
    hard = np.repeat(0.04 * np.random.default_rng(len(split)).standard_normal(SCENES), len(kinds))
    right = rng.binomial(words, np.clip(share + np.where(share < 1, hard, 0), 0, 1)) / words
    return Predictions(
        key=np.repeat([f"{split}-{scene:03}" for scene in range(SCENES)], len(kinds)),
        turn=np.tile(np.arange(len(kinds)), SCENES),
        kind=np.tile(list(dict(kinds)), SCENES),
        words=words,
        exact_match=(right == 1).astype(np.float32),
        word_accuracy=right.astype(np.float32),
        nll=-np.log(np.maximum(right, 0.05)).astype(np.float32),
    )


def main(arguments: list[str]) -> None:
    """One run."""
    config = resolve(arguments)
    folder, act = Path(config.run_dir), config.values["standin"]["act"]
    (folder / "attempts").open("a").write(f"{os.getpid()}\n")
    (folder / "environment.json").write_text(json.dumps(dict(os.environ)))
    if act == "fail" or (act == "fail_once" and len((folder / "attempts").read_text().split()) == 1):
        raise ValueError(f"seed {config.seed} <fails> & says so")
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
