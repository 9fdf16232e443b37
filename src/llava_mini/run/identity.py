"""Which run a config describes: a hash of the values that decide its result, and of no others."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

from llava_mini.config import Config

# These keys change no result. They say where a run is written, and how it is launched, tracked and fed with data.
UNHASHED = ("run_dir", "tracking", "tracker", "launcher")
_UNHASHED_DATA = ("cache_dir", "num_workers", "worker_transport", "max_bad_fraction")
# What holds for runs from before there was a choice, whose identity must stay.
_AS_BEFORE = (("background", [255, 255, 255]),)
# These keys change how a step is computed and not its result, so a run that ran out of memory resumes with them.
_UNHASHED_MEMORY = ("fit", "activation_checkpointing", "loss_chunk", "vision_batch", "offload_vision", "must_fit")
_UNHASHED_TRAINER = ("rank_timeout",)
# Factors of the number of batches in a step. Only their product decides which samples a step contains.
BATCH_FACTORS = ("devices", "num_nodes", "accumulate_grad_batches")
BATCHES_A_STEP = "batches_a_step"


def config_hash(config: Config) -> str:
    """sha256 of the resolved config without the keys that change no result.

    It stays equal if the batches of a step are distributed differently.
    """
    return hashlib.sha256(json.dumps(decisive(config.to_dict()), sort_keys=True, default=str).encode()).hexdigest()


def decisive(config: Mapping[str, Any]) -> dict[str, Any]:
    """Part of a resolved config, as a mapping, that decides a result.

    How a step's batches are distributed is not in it: `trainer.batches_a_step` replaces the keys that say so, and with
    `trainer.global_batch` the size of a batch is not in it either.
    """
    kept = {key: value for key, value in config.items() if key not in UNHASHED}
    if "data" in kept:
        kept["data"] = {
            key: value
            for key, value in kept["data"].items()
            if key not in _UNHASHED_DATA and (key, value) not in _AS_BEFORE
        }
    if "choices" in kept:  # the values of `memory` say what an option of it is
        kept["choices"] = {group: name for group, name in kept["choices"].items() if group != "memory"}
    if "memory" in kept:
        kept["memory"] = {key: value for key, value in kept["memory"].items() if key not in _UNHASHED_MEMORY}
    if "trainer" in kept:
        trainer = {
            key: value for key, value in kept["trainer"].items() if key not in (*BATCH_FACTORS, *_UNHASHED_TRAINER)
        }
        if trainer.get("global_batch") is None:
            trainer[BATCHES_A_STEP] = math.prod(kept["trainer"].get(key) or 1 for key in BATCH_FACTORS)
        else:
            kept["data"] = {key: value for key, value in kept["data"].items() if key != "batch_size"}
        kept["trainer"] = trainer
    return kept
