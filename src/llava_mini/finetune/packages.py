"""The optional packages of fine-tuning, imported where they are needed: each takes seconds to import."""

from __future__ import annotations

import importlib
import logging
from typing import Any

from llava_mini.errors import UserError

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns that a kernel of another project is not installed


def require(name: str, key: str) -> Any:
    """Import an optional package.

    Args:
        name: The package.
        key: The config's value that asks for it, for the message.

    Raises:
        UserError: when it is not installed or cannot be loaded.
    """
    try:
        return importlib.import_module(name)
    except (ImportError, OSError, RuntimeError) as error:  # bitsandbytes fails in several ways without its library
        reason = "is not installed" if isinstance(error, ModuleNotFoundError) else f"cannot be loaded ({error})"
        raise UserError(f"{key}: {name} {reason}: pip install 'llava-mini-lab[finetune]'") from error
