"""The hash of the source and the commit, in small packages and repositories made here; the command of this process."""

import subprocess
import sys
from pathlib import Path

import pytest

from llava_mini.run.provenance import code_version, git_commit, source_tags


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package in a git repository with one commit."""
    folder = tmp_path / "repository" / "package"
    (folder / "room").mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "room" / "part.py").write_text("a = 1\n")
    git(folder.parent, "init", "-q")
    git(folder, "add", ".")
    git(folder, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "one")
    return folder


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(folder), *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


def test_the_version_follows_every_change_of_source(package: Path) -> None:
    first = code_version(package)
    (package / "notes.txt").write_text("no source")
    assert code_version(package) == first
    (package / "room" / "part.py").write_text("a = 2\n")
    second = code_version(package)
    (package / "room" / "part.py").rename(package / "room" / "other.py")
    assert len({first, second, code_version(package)}) == 3


@pytest.mark.parametrize("changed", ["package/room/part.py", "package/room/new.py", "conf/new.yaml"])
def test_the_commit_and_changes_to_it(package: Path, changed: str) -> None:
    commit = git(package, "rev-parse", "HEAD")
    (package.parent / "notes.txt").write_text("no code")
    assert git_commit(package) == commit
    (package.parent / "conf").mkdir()
    (package.parent / changed).write_text("a = 2\n")
    assert git_commit(package) == commit + "+changes"


def test_outside_of_a_checkout_it_is_unknown(tmp_path: Path, package: Path) -> None:
    assert git_commit(tmp_path) == "unknown"
    installed = package.parent / ".venv" / "package"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    assert git_commit(installed) == "unknown", "a package that lies within someone else's repository"


def test_mlflow_gets_the_command_without_the_address_of_the_tracker(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["sweep", "compressor.C=1,2", "stage.note=a b", "tracking.uri=https://me:secret@tracker"]
    monkeypatch.setattr(sys, "argv", ["/usr/bin/llava-mini", *arguments])
    assert source_tags("unknown") == {
        "mlflow.source.type": "JOB", "mlflow.source.name": "llava-mini sweep compressor.C=1,2 'stage.note=a b'"
    }  # fmt: skip


@pytest.mark.parametrize(("commit", "dirty"), [("c0ffee", "false"), ("c0ffee+changes", "true")])
def test_mlflow_gets_the_commit_and_whether_there_are_changes_to_it(commit: str, dirty: str) -> None:
    tags = source_tags(commit)
    assert (tags["mlflow.source.git.commit"], tags["mlflow.source.git.dirty"]) == ("c0ffee", dirty)
