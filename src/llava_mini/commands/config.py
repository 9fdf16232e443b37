"""`llava-mini config`: the resolved config of a run, as YAML."""

from __future__ import annotations

import yaml

from llava_mini.command_line.output import writes_any_text
from llava_mini.config import check_each_once, resolve


def config(overrides: list[str], config_dirs: tuple[str, ...]) -> int:
    """Print the config, and return the exit status.

    Raises:
        UserError: a key or value is a mistake, also of a class that the config names.
    """
    check_each_once(overrides)
    resolved = resolve(overrides, config_dirs)
    from llava_mini.assembly import check_model  # imports torch, so other mistakes are reported before

    check_model(resolved, complete=False)
    print(yaml.safe_dump(resolved.to_dict(), sort_keys=False, allow_unicode=writes_any_text()), end="")
    return 0
