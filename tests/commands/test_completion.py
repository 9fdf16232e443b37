"""A shell completes commands, options of groups and keys by the script that is printed."""

import shutil
import subprocess

import pytest

from llava_mini.cli import main

BASH = shutil.which("bash") or ""


def completed(script: str, *words: str) -> list[str]:
    """Return what bash offers for the last word."""
    listed = " ".join(f"'{word}'" for word in words)
    ask = f'{script}\nCOMP_WORDS=({listed}); COMP_CWORD={len(words) - 1}; _llava_mini; echo "${{COMPREPLY[*]}}"'
    return subprocess.run([BASH, "-c", ask], capture_output=True, text=True, check=True).stdout.split()


def test_bash_completes_commands_groups_and_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert completed(script, "llava-mini", "tr") == ["train"]
    assert completed(script, "llava-mini", "train", "compressor=") == [
        f"compressor={name}" for name in ("avg_pool", "none", "query", "uniform", "zero")
    ]
    assert completed(script, "llava-mini", "sweep", "fusion.n") == ["fusion.num_layers="]
    assert completed(script, "llava-mini", "plan", "compressor.") == ["compressor.C=", "compressor.num_heads="]
    assert completed(script, "llava-mini", "ask", "fusion.n") == []
    assert main(["completion", "zsh"]) == 0
    assert capsys.readouterr().out == f"autoload -U bashcompinit && bashcompinit\n{script}"


def test_other_shells_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["completion", "fish"])
    assert "fish" in capsys.readouterr().err


def test_it_has_a_help_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["completion", "--help"])
    assert capsys.readouterr().out.startswith("usage: llava-mini completion")
