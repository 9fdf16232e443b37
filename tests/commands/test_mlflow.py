"""`llava-mini mlflow`: what it prints, and the server that it becomes."""

import os
import sys
from pathlib import Path

import pytest

from llava_mini.cli import main

ADDRESSES = ["http://127.0.0.1:5001/#/charts", "http://127.0.0.1:5001/#/runs"]


@pytest.fixture
def became(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], dict[str, str]]]:
    """Commands that the process was replaced by, with their environments."""
    commands: list[tuple[list[str], dict[str, str]]] = []
    monkeypatch.setattr(os, "execve", lambda _, command, environment: commands.append((command, environment)))
    return commands


@pytest.fixture
def latest(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What was asked for; the answer is ADDRESSES."""
    asked: list[tuple[str, str]] = []

    def latest_sweep(uri: str, server: str) -> list[str]:
        asked.append((uri, server))
        return ADDRESSES

    monkeypatch.setattr("llava_mini.commands.mlflow.latest_sweep", latest_sweep)
    return asked


def test_the_latest_sweep_is_printed_and_the_server_begun(
    became: list, latest: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert main(["mlflow", "--port", "5001"]) == 0
    assert latest == [(uri, "http://127.0.0.1:5001")]
    printed = capsys.readouterr().out.splitlines()
    assert printed == [f"charts of the latest sweep: {ADDRESSES[0]}", f"all runs: {ADDRESSES[1]}"]
    ((command, environment),) = became
    assert command[:4] == [sys.executable, "-m", "mlflow", "ui"]
    given = dict(zip(command[4::2], command[5::2], strict=True))
    assert (given["--host"], given["--port"], given["--backend-store-uri"]) == ("127.0.0.1", "5001", uri)
    assert environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    assert environment["PATH"] == os.environ["PATH"]


def test_a_server_elsewhere_is_named_and_none_begun(
    became: list, latest: list, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://tracker.example/")
    assert main(["mlflow"]) == 0
    assert (latest, became) == ([("https://tracker.example/", "https://tracker.example")], [])
    assert ADDRESSES[0] in capsys.readouterr().out


def test_without_a_sweep_it_says_so(
    became: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setattr("llava_mini.commands.mlflow.latest_sweep", lambda uri, server: [])
    assert main(["mlflow"]) == 0
    assert capsys.readouterr().out.splitlines() == ["no sweep was found", "all runs: http://127.0.0.1:5000"]
    assert len(became) == 1
