"""The only package that turns a config into objects: tokenizer, model, data, stage, trainer.

Values that one object defines and another needs (widths, numbers of tokens and patches) are passed on here, so no
config repeats them.
"""

from llava_mini.assembly.base import frozen_dtype
from llava_mini.assembly.data import build_datamodule, store_features, tower_fingerprint, with_steps
from llava_mini.assembly.model import build_model, build_processor, build_vision_model, check_model
from llava_mini.assembly.tokenizer import build_template, build_tokenizer
from llava_mini.assembly.trainer import (
    build_base,
    build_stage,
    build_trainer,
    check_training,
    fine_tune,
    make_trainer,
    num_ranks,
    seed_run,
)

__all__ = [
    "build_base", "build_datamodule", "build_model", "build_processor", "build_stage", "build_template",
    "build_tokenizer", "build_trainer", "build_vision_model", "check_model", "check_training", "fine_tune",
    "frozen_dtype", "make_trainer", "num_ranks", "seed_run", "store_features", "tower_fingerprint",
    "with_steps",
]  # fmt: skip
