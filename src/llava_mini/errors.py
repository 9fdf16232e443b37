"""Exceptions that say in one line what is wrong: with what the user gave, or with one image, video or sample.

The command line prints the message of a UserError as a single line and exits with status 2; everything else is a
defect of this package and keeps its traceback.
"""


class UserError(ValueError):
    """A mistake in what the user gave; the message is one line that names the culprit and what is allowed."""


class SampleError(ValueError):
    """An image, a video or a sample of data that cannot be used; the message is the reason.

    In training it is counted and logged, and the run goes on without it; where a user names it, it is a mistake.
    """
