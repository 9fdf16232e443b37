"""The reference of the config is complete, true and the one that docs/ shows."""

import inspect
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from hydra.utils import get_class
from pydantic import Field

from llava_mini.cli import main
from llava_mini.command_line.table import COMMANDS
from llava_mini.config import reference, resolve
from llava_mini.config.compose import options
from llava_mini.config.reference import GROUPS, Key, arguments, help_text, keys, page
from llava_mini.files import CONFIG_DIR
from llava_mini.settings import conf

ROOT = Path(__file__).parents[2]
OF_CLASSES = {"choices", "compressor", "stage", "launcher", "tracker", "inputs"}  # checked by signatures


@pytest.fixture(scope="module")
def found() -> dict[str, Key]:
    return {key.name: key for key in keys(resolve([]))}


def flat(value: Any, known: dict[str, Key], prefix: str) -> list[str]:
    if prefix in known or not isinstance(value, dict):
        return [prefix]
    return [name for key, inner in value.items() for name in flat(inner, known, f"{prefix}.{key}")]


def test_every_key_of_the_config_is_in_it_with_a_line(found: dict[str, Key]) -> None:
    config = resolve([]).to_dict()
    names = [name for key, value in config.items() if key not in OF_CLASSES for name in flat(value, found, key)]
    assert sorted(names) == sorted(found)
    assert [key.name for key in found.values() if not key.text] == []


def test_defaults_are_those_of_the_config(found: dict[str, Key]) -> None:
    config = resolve([]).to_dict()
    for name in (
        "seed",
        "trainer.gradient_clip_val",
        "data.train",
        "memory.loss_chunk",
        "order.fuse_compressed_tokens",
    ):
        value: Any = config
        for part in name.split("."):
            value = value[part]
        assert yaml.safe_load(found[name].default) == value


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (Annotated[int, Field(ge=1, le=3)], "int, 1 or more, at most 3"),
        (Annotated[float, Field(gt=0)] | None, "float, above 0 | null"),
        (Literal["a", "b"] | bool, "a | b | true | false"),
        (Annotated[list[str], Field(description="x")], "[...]"),
    ],
)
def test_types_as_text(kind: Any, text: str) -> None:
    assert reference._kind(*reference._bare(kind)) == text


def test_every_group_is_in_it() -> None:
    assert set(GROUPS) == {path.name for path in CONFIG_DIR.iterdir() if path.is_dir()}
    assert "avg_pool, none, query*, uniform, zero" in help_text()


def test_arguments_of_components_are_in_it_as_their_signatures_have_them() -> None:
    shown = {key.name: key for key in arguments()}
    assert shown["compressor.C"].text and "query: 1" in shown["compressor.C"].default
    assert shown["compressor.num_heads"].default == "query: 8"
    given = {"dim", "model", "kinds", "report_dir", "finetune", "optimizer", "seed", "word_marks", "devices",
             "vision_tower", "feature_layer", "target_classes"}  # not by the config  # fmt: skip
    for group in ("compressor", "stage", "launcher", "tracker"):
        for option in options(group):
            parameters = inspect.signature(get_class(conf(f"{group}/{option}")["_target_"])).parameters
            assert {f"{group}.{name}" for name in parameters if name not in given} <= shown.keys()
    assert all(key.name in help_text() for key in shown.values())


def test_docs_show_it_as_it_is() -> None:
    shown = (ROOT / "docs" / "reference" / "config.md").read_text()
    assert shown == page(), "run: python -m llava_mini.config.reference > docs/reference/config.md"


@pytest.mark.parametrize("command", ["train", "sweep", "config", "world", "plan", "data features"])
def test_commands_that_read_a_config_show_it(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with suppress(SystemExit):
        main([*command.split(), "seed=1", "--help"])
    out = capsys.readouterr().out
    assert out.startswith("usage: llava-mini") and f" {command}" in out.splitlines()[0]
    assert help_text() in out


def test_the_first_page_lists_every_command_under_a_heading(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    lines = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert [name for name in COMMANDS if lines.count(name) < 1] == []
    assert [name for name in ("prepare", "train", "compare", "use", "measure") if name not in lines] == []
