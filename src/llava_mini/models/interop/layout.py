"""Names of tensors in other projects' checkpoints and in ours: pairs of beginnings, tried in order."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """How a checkpoint names what we name otherwise.

    Args:
        pairs: (their beginning, ours), the longer of two that begin alike first.
    """

    pairs: tuple[tuple[str, str], ...]

    def ours(self, name: str) -> str:
        """Our name of theirs; their own, with a mark that none of ours has, where there is none."""
        for theirs, ours in self.pairs:
            if name.startswith(theirs):
                return ours + name[len(theirs) :]
        return f"?{name}"

    def theirs(self, name: str) -> str:
        """Their name of ours."""
        for theirs, ours in self.pairs:
            if name.startswith(ours):
                return theirs + name[len(ours) :]
        return name.removeprefix("?")
