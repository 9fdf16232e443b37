"""Exceptions that say in one line what is wrong with the user's input, a disk, or one image, video or sample.

The command line prints the message of a UserError as a single line and exits with status 2. Everything else is a
bug in this package and keeps its traceback.
"""

from __future__ import annotations


class UserError(ValueError):
    """A mistake in the user's input. The message is one line that names the bad value and what is allowed.

    Args:
        *message: The line.
        key: Config key, flag or parameter that has the bad value; None where there is no such name.
        value: Bad value.
        allowed: What is allowed, as text.
        hint: What the user probably meant, such as the nearest known key.
    """

    def __init__(
        self,
        *message: object,
        key: str | None = None,
        value: object = None,
        allowed: str | None = None,
        hint: str | None = None,
    ):
        super().__init__(*message)
        self.key, self.value, self.allowed, self.hint = key, value, allowed, hint


class SampleError(ValueError):
    """An image, a video or a data sample that cannot be used. The message is the reason.

    In training the sample is counted and logged, and the run continues without it. If the user named it, it is a
    user's mistake.
    """


class WriteError(OSError, UserError):
    """A file that cannot be written: the disk is full, a quota is used up, the folder accepts no files.

    Takes the arguments of an OSError: errno, its text and the file's path. The message is one line that begins with the
    file's path.
    """

    def __str__(self) -> str:
        if self.filename is None:  # rebuilt from its text, as after a worker's failure
            return super().__str__()
        return f"{self.filename}: cannot be written: {self.strerror}"
