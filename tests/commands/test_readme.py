"""What the README shows can be pasted: commands name keys, flags and targets that exist, and its Python runs."""

import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llava_mini.cli import COMMANDS, main
from llava_mini.config import resolve
from llava_mini.sweep.grid import parse

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
_CONFIGURED = ("train", "plan", "sweep", "config", "world")


def shown() -> Iterator[list[str]]:
    """Every command of the indented blocks, as words, without its comment; those with an ellipsis are only sketched."""
    block = re.sub(r" *\\\n *", " ", TEXT)
    for line in re.findall(r"^ {4}(?:\$ )?((?:llava-mini|make) .*)$", block, re.MULTILINE):
        words = shlex.split(re.sub(r" +# .*", "", line))
        if not any(re.fullmatch(r"\.\.\.|[A-Z]", word) for word in words):
            yield words


LLAVA_MINI = [words[1:] for words in shown() if words[0] == "llava-mini"]
CONFIGURED = [words for words in LLAVA_MINI if words[0] in _CONFIGURED]


def test_there_are_commands_of_each_kind() -> None:
    assert len(CONFIGURED) >= 8
    assert {words[0] for words in LLAVA_MINI} > {"ask", "batch", "chat", "convert", "data", "merge", "compare"}


@pytest.mark.parametrize("words", CONFIGURED, ids=" ".join)
def test_every_value_of_a_config_is_one(words: list[str]) -> None:
    given = [word for word in words[1:] if "=" in word and not word.startswith(("-", "sweep_dir="))]
    choices = parse(given)
    for turn in range(max(map(len, choices.values()))):
        resolve([f"{key}={values[turn % len(values)]}" for key, values in choices.items()])


@pytest.mark.parametrize("words", LLAVA_MINI, ids=" ".join)
def test_every_command_and_flag_is_one(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    command, *rest = words
    assert command in COMMANDS
    flags = {word for word in rest if word.startswith("--")}
    if flags:
        parent = [command, *rest[:1]] if command in ("data", "convert", "bench") else [command]
        with pytest.raises(SystemExit):
            main([*parent, "--help"])
        text = capsys.readouterr().out
        assert [flag for flag in sorted(flags) if flag not in text] == []


@pytest.mark.parametrize("words", [words for words in shown() if words[0] == "make"], ids=" ".join)
def test_every_target_is_one(words: list[str]) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert words[1] in targets


def test_its_python_runs(
    smoke: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *smoke("trainer.max_steps=1", f"run_dir={tmp_path}/runs/mine")]) == 0
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "film.mp4").symlink_to(ROOT / "examples" / "clip.mp4")
    monkeypatch.chdir(tmp_path)
    blocks = [block for block in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL) if "runs/mine/model" in block]
    assert len(blocks) == 2
    for block in blocks:
        capsys.readouterr()
        exec(compile(block, "README.md", "exec"), {})
        assert capsys.readouterr().out.strip()
    assert (tmp_path / "film.safetensors").exists()
