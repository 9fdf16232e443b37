"""Fine-tuning of large parts with little memory: low-rank adapters (LoRA, DoRA), frozen weights in 4 bits (NF4).

The model's own classes stay: adapters and 4-bit layers replace linear layers inside the language model's decoder and,
if requested, pre-fusion. The vision tower, the embeddings and the head never get either.
"""

from llava_mini.finetune.adapters import adapted_parts, check_packages, is_adapted, is_adapter, merge_adapters, trains
from llava_mini.finetune.apply import apply, cast_frozen, compute_dtype, num_parameters
from llava_mini.finetune.saved import fingerprints, load_trained, save_trained

__all__ = [
    "adapted_parts", "apply", "cast_frozen", "check_packages", "compute_dtype", "fingerprints", "is_adapted",
    "is_adapter", "load_trained", "merge_adapters", "num_parameters", "save_trained", "trains",
]  # fmt: skip
