"""Assertion on the fields of an error about the user's input, so that a test depends on no wording."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import ANY

import pytest

from llava_mini.errors import UserError


@contextmanager
def refuses(key: str | None, value: Any = ANY, allowed: Any = ANY) -> Iterator[pytest.ExceptionInfo[UserError]]:
    """Expect a UserError of one line about this key, with this value and what is allowed, if they are given."""
    with pytest.raises(UserError) as caught:
        yield caught
    error = caught.value
    assert (key, value, allowed) == (error.key, error.value, error.allowed)
    assert "\n" not in str(error)
