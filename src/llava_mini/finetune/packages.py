"""The optional packages of fine-tuning, imported only where they are needed: each takes seconds to import."""

from __future__ import annotations

import importlib
import logging
from typing import Any

from llava_mini.errors import UserError

# On CPUs with bf16 instructions bitsandbytes looks for a kernel of another project as soon as it is imported, and warns
# when there is none. The layers here would not use it: it rounds weights again (`quantization.nf4_linear`).
_UNUSED_KERNEL = "Failed to load CPU gemm_4bit_forward"


def _is_wanted(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(_UNUSED_KERNEL)


logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_is_wanted)


def require(name: str, key: str) -> Any:
    """Import an optional package, or a module of it; `key`, for the message, is the config value that needs it.

    Raises:
        UserError: the package is not installed or cannot be loaded.
    """
    package = name.partition(".")[0]
    try:
        importlib.import_module(package)
        return importlib.import_module(name)
    except (ImportError, OSError, RuntimeError) as error:  # bitsandbytes fails in several ways without its library
        if isinstance(error, ModuleNotFoundError) and error.name == package:
            why = "is not installed: pip install 'llava-mini-lab[finetune]'"
        else:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            why = f"is installed and cannot be loaded ({reason}): pip install --force-reinstall {package}"
        option, _, value = key.partition("=")
        raise UserError(f"{key}: {package} {why}", key=option, value=value or None) from error
