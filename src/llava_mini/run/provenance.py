"""Provenance of a result: a hash of the package's source, the git commit, and the command."""

from __future__ import annotations

import hashlib
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import llava_mini

PACKAGE = Path(llava_mini.__file__).parent
UNKNOWN, CHANGED = "unknown", "+changes"


def code_version(package: Path = PACKAGE) -> str:
    """sha256 over the names and contents of all Python files of the package."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(package).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def git_commit(package: Path = PACKAGE) -> str:
    """Git commit, with "+changes" if code or conf/ differ from it; "unknown" outside a git checkout of this code."""
    try:
        _git(package, "ls-files", "--error-unmatch", "__init__.py")  # fails in another project's checkout
        commit = _git(package, "rev-parse", "HEAD")
        changes = _git(package, "status", "--porcelain", "--untracked-files=all", "--", ".", ":/conf")
    except (OSError, subprocess.CalledProcessError):
        return UNKNOWN
    return commit + (CHANGED if changes else "")


def commits_text(before: str, now: str) -> str:
    """Text `commit abc, now def`, or a text saying that the working tree of the same commit was changed."""
    return f"commit {before}, now {now}" if before != now else f"commit {now}, whose working tree was changed since"


def source_tags(commit: str) -> dict[str, str]:
    """Return MLflow's source tags: the commit (`git_commit`) and the command of this process."""
    # For any other source type MLflow's pages show only the part of the name after its last slash.
    tags = {"mlflow.source.type": "JOB", "mlflow.source.name": shlex.join(["llava-mini", *untracked(sys.argv[1:])])}
    if commit != UNKNOWN:
        dirty = commit.endswith(CHANGED)
        git = {"commit": commit.removesuffix(CHANGED), "dirty": str(dirty).lower()}
        tags |= {f"mlflow.source.git.{key}": value for key, value in git.items()}
    return tags


def untracked(arguments: Sequence[str]) -> list[str]:
    """Arguments without those of the tracker, whose address may contain a password."""
    return [argument for argument in arguments if not argument.startswith("tracking.")]


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
