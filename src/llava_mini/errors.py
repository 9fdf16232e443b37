"""Exceptions that say in one line what is wrong with the user's input, a disk, or one image, video or sample.

The command line prints the message of a UserError as a single line and exits with status 2. Everything else is a
bug in this package and keeps its traceback.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class UserError(ValueError):
    """A mistake in the user's input. The message is one line that names the bad value and what is allowed.

    Args:
        *message: The line.
        key: Config key, flag or parameter that has the bad value; None where there is no such name.
        value: Bad value.
        allowed: What is allowed, as text.
        hint: What the user probably meant, such as the nearest known key.
    """

    key: str | None = None
    value: object = None
    allowed: str | None = None
    hint: str | None = None

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

    def with_line(self, message: str) -> UserError:
        """Return an error with another line and the fields of this one."""
        return UserError(message, key=self.key, value=self.value, allowed=self.allowed, hint=self.hint)


def refused(
    key: str, value: object, reason: str = "", *, allowed: str = "", only: str = "", given: str = "", hint: str = ""
) -> UserError:
    """Return the usual error: `key=value: reason; allowed are ...`, for a flag `--flag value: reason; ...`.

    With `only` in place of `allowed` it ends with `allowed is ...`; `given` replaces `key=value`.
    """
    rule = f"allowed is {only}" if only else f"allowed are {allowed}" if allowed else ""
    line = f"{given or _given(key, value)}: {'; '.join(part for part in (reason, rule) if part)}"
    return UserError(line, key=key, value=value, allowed=only or allowed or None, hint=hint or None)


@contextmanager
def named_as(names: Mapping[str, str]) -> Iterator[None]:
    """Give keys in `names`, and keys within them, the name that the user knows, such as a flag for a parameter.

    An error's key is renamed, and a hint that begins with one, in the line too.
    """
    try:
        yield
    except UserError as error:
        other = renamed(error, names)
        if other is error:
            raise
        raise other from error


def renamed(error: UserError, names: Mapping[str, str]) -> UserError:
    """Return the error with its key and hint renamed as by `named_as`; the error itself if they have no other name."""
    key, hint, line = _renamed(error.key, names), _renamed(error.hint, names), str(error)
    if (key, hint) == (error.key, error.hint):
        return error
    if error.key is not None and key is not None:
        given = _given(error.key, error.value)
        if given in line:
            line = line.replace(given, _given(key, error.value), 1)
        else:  # as a word, not in a path
            line = re.sub(rf"(?<![\w/.'-]){re.escape(error.key)}(?![\w/-]|\.\w)", lambda _: key, line, count=1)
    if error.hint is not None and hint is not None:
        line = line.replace(error.hint, hint, 1)
    return UserError(line, key=key, value=error.value, allowed=error.allowed, hint=hint)


def _renamed(text: str | None, names: Mapping[str, str]) -> str | None:
    for name, other in names.items():
        if text is not None and (text == name or text.startswith((f"{name}.", f"{name}="))):
            rest = text.removeprefix(name)
            return other + (rest.replace("=", " ", 1) if other.startswith("-") else rest)
    return text


def _given(key: str, value: object) -> str:
    """Return `key=value` as it is typed; text that is empty, has spaces or looks like a number is quoted."""
    shown = " ".join(str(value).split())
    if isinstance(value, str) and (shown != value or not value.isprintable() or value.isdecimal() or not value):
        shown = repr(value)
    elif "." in key and (value is None or isinstance(value, bool)):
        shown = json.dumps(value)  # as YAML has it
    return f"{key}{' ' if key.startswith('-') else '='}{shown}"


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
