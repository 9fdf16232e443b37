"""Errors: the line is made from the fields, fields stay when a command renames the key or a place is put in front."""

import pickle
from pathlib import Path
from typing import Any

import pytest
from tests.refusals import refuses

from llava_mini.errors import UserError, WriteError, named_as, refused


def fields(error: UserError) -> tuple[Any, ...]:
    return error.key, error.value, error.allowed, error.hint


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (refused("seed", -1, allowed="0 and above"), "seed=-1: allowed are 0 and above"),
        (refused("a.b", 3, "too many", allowed="1, 2"), "a.b=3: too many; allowed are 1, 2"),
        (refused("audio", [0.0], "none is read", only="None"), "audio=[0.0]: none is read; allowed is None"),
        (refused("--out", Path("x"), "no folder"), "--out x: no folder"),
        (refused("a.b", None, "needed"), "a.b=null: needed"),
        (refused("a.b", True, "impossible"), "a.b=true: impossible"),
        (refused("a", True, "impossible"), "a=True: impossible"),
        (refused("a", "", "needed"), "a='': needed"),
        (refused("a", "x y\n", "no name"), "a='x y\\n': no name"),
        (refused("a", "2", "no number"), "a='2': no number"),
        (refused("a", Path("x\ny"), "no name"), "a=x y: no name"),
        (
            refused("--task", 4, given="--task 4 --of 2", allowed="tasks 0 to 1"),
            "--task 4 --of 2: allowed are tasks 0 to 1",
        ),
    ],
)
def test_the_line_is_made_of_the_fields(error: UserError, line: str) -> None:
    assert str(error) == line


def test_what_is_allowed_is_a_field_whether_one_or_several() -> None:
    assert fields(refused("a", 1, allowed="2, 3")) == ("a", 1, "2, 3", None)
    assert fields(refused("a", 1, only="2")) == ("a", 1, "2", None)
    assert fields(refused("a", 1, "no")) == ("a", 1, None, None)


def test_a_command_gives_a_key_the_name_of_its_flag() -> None:
    with refuses("--device", "gpu", "cpu") as caught, named_as({"device": "--device"}):
        raise refused("device", "gpu", "this device", allowed="cpu")
    assert str(caught.value) == "--device gpu: this device; allowed are cpu"
    with refuses("--size", 3) as caught, named_as({"size": "--size"}):
        raise UserError("size is too large: 3", key="size", value=3)
    assert str(caught.value) == "--size is too large: 3"


@pytest.mark.parametrize("error", [UserError("x"), refused("b", 1), WriteError(28, "No space left", "x")])
def test_other_errors_pass(error: UserError) -> None:
    with pytest.raises(UserError) as caught, named_as({"a": "--a"}):
        raise error
    assert caught.value is error


def test_fields_stay_with_another_line_and_in_another_process() -> None:
    error = UserError("a=1: no", key="a", value=1, allowed="2", hint="b")
    assert fields(error.with_line("x.yaml: a=1: no")) == fields(pickle.loads(pickle.dumps(error))) == fields(error)
    assert str(error.with_line("x.yaml: a=1: no")) == "x.yaml: a=1: no"
    assert fields(WriteError(28, "No space left", "x")) == (None, None, None, None)
