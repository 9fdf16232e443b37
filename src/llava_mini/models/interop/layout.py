"""Names of tensors in other projects' checkpoints and in ours: pairs of prefixes, tried in order."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """Mapping between a checkpoint's tensor names and ours, by pairs of prefixes: theirs, ours.

    Of two that begin alike, the longer comes first.
    """

    pairs: tuple[tuple[str, str], ...]

    def ours(self, name: str) -> str:
        """Convert their name to ours; a name without one of ours gets a mark that no name of ours has."""
        for theirs, ours in self.pairs:
            if name.startswith(theirs):
                return ours + name[len(theirs) :]
        return f"?{name}"

    def theirs(self, name: str) -> str:
        """Convert our name to theirs."""
        for theirs, ours in self.pairs:
            if name.startswith(ours):
                return theirs + name[len(ours) :]
        return name.removeprefix("?")
