"""What README and docs show can be pasted: commands name what exists, and what needs no training runs."""

import json
import re
import shlex
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from llava_mini.cli import main
from llava_mini.command_line.table import COMMANDS
from llava_mini.config import resolve
from llava_mini.sweep.grid import parse

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_CONFIGURED = ("train", "plan", "sweep", "config", "world")
_PROMPT_OR_INDENT = re.compile(r"^(?:\$ | {4}(?:\$ )?)((?:llava-mini|make) .*)$", re.MULTILINE)


def shown(page: Path) -> Iterator[list[str]]:
    """Every command of a page's blocks, as words, without its comment; those with an ellipsis are only sketched."""
    text = re.sub(r" *\\\n *", " ", page.read_text(encoding="utf-8"))
    for line in _PROMPT_OR_INDENT.findall(text):
        words = shlex.split(re.sub(r" +# .*", "", line))
        if not any(re.fullmatch(r"\.\.\.|[A-Z]", word) for word in words):
            yield words


def python_of(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


LLAVA_MINI = [words[1:] for page in PAGES for words in shown(page) if words[0] == "llava-mini"]
LLAVA_MINI = [words for number, words in enumerate(LLAVA_MINI) if words not in LLAVA_MINI[:number]]
CONFIGURED = [words for words in LLAVA_MINI if words[0] in _CONFIGURED]
MADE = sorted({words[1] for page in PAGES for words in shown(page) if words[0] == "make"})


def test_there_are_commands_of_each_kind() -> None:
    assert len(CONFIGURED) >= 8
    assert {words[0] for words in LLAVA_MINI} > {"ask", "batch", "chat", "convert", "data", "merge", "compare"}


@pytest.mark.parametrize("words", CONFIGURED, ids=" ".join)
def test_every_value_of_a_config_is_one(words: list[str]) -> None:
    given = [word for word in words[1:] if "=" in word and not word.startswith("-")]
    choices = parse(given)
    for turn in range(max(map(len, choices.values()))):
        resolve([f"{key}={values[turn % len(values)]}" for key, values in choices.items()])


@pytest.mark.parametrize("words", LLAVA_MINI, ids=" ".join)
def test_every_command_and_flag_is_one(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    command, *rest = words[2:] if words[0] == "--config-dir" else words
    assert command in COMMANDS
    flags = {word for word in rest if word.startswith("--")}
    if flags:
        parent = [command, *rest[:1]] if command in ("data", "convert", "bench") else [command]
        with suppress(SystemExit):
            main([*parent, "--help"])
        text = capsys.readouterr().out
        assert [flag for flag in sorted(flags) if flag not in text] == []


def test_the_plan_of_the_readme_is_what_its_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    (words,) = (words for words in shown(ROOT / "README.md") if words[:2] == ["llava-mini", "plan"])
    assert main([*words[1:], "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    peak, most = re.findall(
        r"([\d.]+) of 31\.4 GiB; the largest batch that fits is (\d+)", (ROOT / "README.md").read_text()
    )[0]
    assert f"{plan['peak_bytes'] / 2**30:.1f}" == peak and plan["largest_batch"] == int(most)


@pytest.mark.parametrize("target", MADE)
def test_every_target_is_one(target: str) -> None:
    assert target in re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)


def end_at_once(model: Path) -> None:
    """Have any word end an answer: a model that has hardly been trained talks until it is stopped."""
    config = json.loads((model / "config.json").read_text())
    path = model / "generation_config.json"
    words = list(range(config["text_config"]["vocab_size"]))
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": words}))


def test_what_needs_no_training_runs(
    smoke: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *smoke("trainer.max_steps=1", f"run_dir={tmp_path}/runs/mine")]) == 0
    end_at_once(tmp_path / "runs" / "mine" / "model")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    commands = [words for words in LLAVA_MINI if words[0] in ("ask", "batch") or "--session" in words]
    assert len(commands) >= 6
    for words in commands:
        assert main(words) == 0, words
        assert capsys.readouterr().out.strip(), words
    blocks = [block for page in PAGES for block in python_of(page) if "runs/mine/model" in block]
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, "docs", "exec"), {})
        assert capsys.readouterr().out.strip()
    assert {path.name for path in tmp_path.glob("*.safetensors")} == {"clip.safetensors", "film.safetensors"}
