"""The one exception that is the user's to mend: a wrong value, a missing file, a broken input.

The command line prints its message as a single line and exits with status 2; everything else is a defect of
this package and keeps its traceback.
"""


class UserError(ValueError):
    """A mistake in what the user gave; the message is one line that names the culprit and what is allowed."""
