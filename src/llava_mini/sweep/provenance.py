"""Which code made a result: a hash of the package's source and the git commit."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import llava_mini

PACKAGE = Path(llava_mini.__file__).parent


def code_version(package: Path = PACKAGE) -> str:
    """sha256 over the names and contents of all Python files of the package."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(package).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def git_commit(package: Path = PACKAGE) -> str:
    """The commit, with "+changes" when code or conf/ differ from it; "unknown" outside a git checkout of this code."""
    try:
        _git(package, "ls-files", "--error-unmatch", "__init__.py")  # else the checkout around it is another project's
        commit = _git(package, "rev-parse", "HEAD")
        changes = _git(package, "status", "--porcelain", "--untracked-files=all", "--", ".", ":/conf")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + ("+changes" if changes else "")


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
