"""Is a QLoRA run within 3 points of full fine-tuning? What `make qlora` asks at its end.

    python experiments/004-memory/qlora_against_full.py QLORA FULL

Both are folders of finished runs. Prints their accuracy on test; status 1 when QLORA is more than 3 points below FULL,
2 when a folder holds no such run.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

BAR = 3.0  # points of accuracy


def finished(run_dir: Path) -> tuple[dict[str, Any], float]:
    """How a run was fine-tuned, and its share of right answers on test."""
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    result = json.loads((run_dir / "result.json").read_text())
    return config["finetune"], float(result["accuracy"]["test"])


def main(arguments: list[str]) -> int:
    """Compare.

    Returns:
        The exit status.
    """
    if len(arguments) != 2:
        print("needed are two folders of runs: QLORA FULL", file=sys.stderr)
        return 2
    qlora_dir, full_dir = map(Path, arguments)
    try:
        (by_qlora, qlora), (by_full, full) = finished(qlora_dir), finished(full_dir)
    except (OSError, ValueError, LookupError, TypeError, yaml.YAMLError) as error:
        print(f"{qlora_dir}, {full_dir}: not two finished runs with a test split ({error!r})", file=sys.stderr)
        return 2
    if by_qlora["quantize"] != "nf4" or by_qlora["language_model"] != "lora":
        print(f"{qlora_dir}: no run with finetune=qlora", file=sys.stderr)
        return 2
    if by_full["quantize"] is not None or by_full["language_model"] != "full":
        print(f"{full_dir}: no run with finetune=full", file=sys.stderr)
        return 2
    less = 100 * (full - qlora)
    within = less <= BAR + 1e-9  # 3 points are within
    difference = f"{abs(less):.2f} points {'below' if less > 0 else 'above'}"
    print(f"test accuracy: QLoRA {100 * qlora:.2f} %, full {100 * full:.2f} %; QLoRA is {difference}")
    print(f"{'within' if within else 'NOT within'} {BAR:g} points of full fine-tuning")
    return 0 if within else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
