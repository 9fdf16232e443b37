"""Settings of fine-tuning as plain types, and presets of conf/, also for machines without the packages of the config.

The config's section `finetune` is of these types, with limits and documentation (`config.types`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import yaml

from llava_mini.files import CONFIG_DIR


def conf(path: str) -> dict[str, Any]:
    """Return a file of conf/ (`model/tiny`) merged over those that its `defaults` name by `@_here_`, without Hydra."""
    content: dict[str, Any] = yaml.safe_load((CONFIG_DIR / f"{path}.yaml").read_text())
    for entry in content.pop("defaults", []):
        if isinstance(entry, str) and entry.endswith("@_here_"):
            content = _merged(conf(f"{path.rpartition('/')[0]}/{entry.removesuffix('@_here_')}"), content)
    return content


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    both = {k: _merged(base[k], v) for k, v in over.items() if isinstance(v, dict) and isinstance(base.get(k), dict)}
    return base | over | both


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters (PEFT's LoraConfig).

    Attributes:
        rank: Rank of the adapters.
        alpha: Scale of the adapters, over the rank.
        dropout: Dropout before the adapters.
        dora: Whether they are DoRA's.
    """

    rank: int
    alpha: int
    dropout: float
    dora: bool


@dataclass(frozen=True)
class Finetune:
    """Which weights of the language model and of pre-fusion train, and how the frozen ones are stored.

    Attributes:
        language_model: How the language model trains.
        prefusion: How pre-fusion trains.
        quantize: 4-bit storage of the frozen language model; None for none.
        lora: Adapters, where a part trains them.
    """

    language_model: Literal["full", "lora", "frozen"]
    prefusion: Literal["full", "lora"]
    quantize: Literal["nf4"] | None
    lora: Lora | None

    def of(self, part: str) -> str:
        """Return how a part of the model trains: full, lora or frozen; other parts than the two train in full."""
        return {"language_model": self.language_model, "prefusion": self.prefusion}.get(part, "full")


FULL = Finetune(language_model="full", prefusion="full", quantize=None, lora=None)
