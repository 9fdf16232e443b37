"""Exceptions that say in one line what is wrong: with what the user gave, a disk, or one image, video or sample.

The command line prints the message of a UserError as a single line and exits with status 2; everything else is a
defect of this package and keeps its traceback.
"""

from __future__ import annotations


class UserError(ValueError):
    """A mistake in what the user gave; the message is one line that names the culprit and what is allowed."""


class SampleError(ValueError):
    """An image, a video or a sample of data that cannot be used; the message is the reason.

    In training it is counted and logged, and the run goes on without it; where a user names it, it is a mistake.
    """


class WriteError(OSError, UserError):
    """A file that cannot be written: the disk is full, a quota is used up, the folder takes no files.

    Made as an OSError is, of errno, its text and the file's path; the message is one line that names the file first.
    """

    def __str__(self) -> str:
        if self.filename is None:  # made again from its text, as after a worker's failure
            return super().__str__()
        return f"{self.filename}: cannot be written: {self.strerror}"
