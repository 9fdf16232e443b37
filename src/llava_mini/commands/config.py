"""`llava-mini config`: the resolved config of a run, as YAML."""

from __future__ import annotations

import yaml

from llava_mini.commands.output import writes_any_text
from llava_mini.config import resolve


def config(overrides: list[str], config_dirs: tuple[str, ...]) -> int:
    """Print the config, and return the exit status."""
    resolved = resolve(overrides, config_dirs).to_dict()
    print(yaml.safe_dump(resolved, sort_keys=False, allow_unicode=writes_any_text()), end="")
    return 0
