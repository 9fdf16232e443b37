"""`llava-mini compare`: table, plots and report of a sweep's folder, made again."""

from __future__ import annotations

from pathlib import Path

from llava_mini.commands.sweep import DEFAULT_FOLDER
from llava_mini.errors import UserError


def compare(arguments: list[str], _config_dirs: tuple[str, ...] = ()) -> int:
    """Compare the runs of the named folder's sweep, or else of the default one's.

    Raises:
        UserError: more than one folder is named, or it is not the folder of a sweep.
    """
    if len(arguments) > 1:
        given = " ".join(arguments)
        raise UserError(f"compare {given}: takes one folder of a sweep", key="compare", value=given)
    from llava_mini.sweep import report  # imports torch, so only after the arguments are checked

    report.compare(Path(arguments[0] if arguments else DEFAULT_FOLDER))
    return 0
