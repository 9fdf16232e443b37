"""Values of paths, names and URIs arrive as they were typed; what else Hydra reads stays as it was."""

from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from llava_mini.config import Config, resolve
from llava_mini.config.overrides import (
    PLACES,
    at_home,
    check_each_once,
    literal,
    quote,
    quoted,
    split,
    text_keys,
)
from llava_mini.errors import UserError

NAMES = {
    "model.template",
    "data.template",
    "data.kinds",
    "tracking.experiment",
    "tracking.parent_run_id",
    "run_name",
}
ODD = [
    "lr=1e-4", "mine (1)", "[a]", "{a: 1", "a)]}", "josé", "实验", "مجلد", "a#1", "a,b", "lr = 1", " a ", "it's",
    'say "a"', "'a' and 'b'", "a\\", "\\'", "2024", "1e-4", "true", "a:b@c?d&e%20", "https://u:p@h:1/a?b=c#d", "a$b",
    "-", "@x", "a;b|c>d",
]  # fmt: skip


def at(config: Config, key: str) -> Any:
    node: Any = config.to_dict()
    for part in key.split("."):
        node = node[part]
    return node


def test_every_text_key_is_a_place_or_a_name() -> None:
    assert set(text_keys()) == {*PLACES, *NAMES} and not NAMES & set(PLACES)


@pytest.mark.parametrize("text", ODD)
def test_text_is_taken_as_it_is_typed(text: str) -> None:
    """By keys of text, as an item of a list, and where a number, a list or `{a: 1}` would be something else."""
    plain = [key for key, kind in text_keys().items() if not kind.items and not kind.others]
    lists = [key for key, kind in text_keys().items() if kind.items]
    others = [] if text in ("2024", "1e-4", "true") else ["data.features"]
    assert len(plain) > 9 and len(lists) > 4
    inner = text.strip().replace(",", ";")  # which a list reads otherwise
    typed = [*(f"{key}={text}" for key in [*plain, *others]), *(f"{key}=[b c, {inner}, 'd, e']" for key in lists)]
    config = resolve(["model=llava_mini_vicuna_7b", "data.world_seed=null", *typed])
    assert {key: at(config, key) for key in [*plain, *others]} == dict.fromkeys([*plain, *others], text)
    assert {key: at(config, key) for key in lists} == {key: ["b c", inner, "d, e"] for key in lists}


@pytest.mark.parametrize("text", ["a=b", "'a", "[a", "实验"])
def test_a_set_is_named_by_any_text(text: str) -> None:
    assert resolve(["data.world_seed=null", f"data.val={text}"]).data.val == text


def test_what_stays_hydras() -> None:
    config = resolve(
        [
            "run_dir='a, b'", 'tracking.experiment="c = d"', "data.cache_dir=null", "tracking.uri= Null",
            "data.features=False", "model.weights=[]", "data.train={instruct-train: 0.9, /b: 1}",
            "world.out=x/${seed}/y=${run_name}", "data.template={user_suffix: ' '}", "seed=3",
        ]
    )  # fmt: skip
    assert (config.run_dir, config.tracking.experiment) == ("a, b", "c = d")
    assert config.data.cache_dir is config.tracking.uri is None and config.data.features is False
    assert config.model.weights == [] and config.data.train == {"instruct-train": 0.9, "/b": 1}
    assert config.world.out == "x/3/y=tiny" and config.data.template == {"user_suffix": " "}


@pytest.mark.parametrize("override", ["seed=1", "compressor.C=a=b", "data.sizes={a: 1}", "run_dir=", "run_dir", "x"])
def test_other_keys_are_left_alone(override: str) -> None:
    assert quoted(override) == override


def test_a_home_is_found_in_every_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    hub = ["model=llava_mini_vicuna_7b", "data.world_seed=null"]
    texts = [key for key in PLACES if not text_keys()[key].items]
    config = resolve([*hub, *(f"{key}=~/a~b" for key in texts), "model.weights=[~/a, '~', b~]", "data.val=[~/c]"])
    assert {key: at(config, key) for key in texts} == dict.fromkeys(texts, "/home/me/a~b")
    assert config.model.weights == ["/home/me/a", "/home/me", "b~"]
    assert config.data.val == ["/home/me/c"]
    assert resolve(["tracking.experiment=~/a", "run_name=~"]).tracking.experiment == "~/a"
    assert at_home("sqlite:///~/a.db") == "sqlite:////home/me/a.db" and at_home("sqlite:///a~.db") == "sqlite:///a~.db"
    assert at_home({"~/a": 1}) == {"/home/me/a": 1} and at_home("~no such user/a") == "~no such user/a"


def test_a_home_that_a_yaml_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in a folder whose name Hydra cannot read."""
    monkeypatch.setenv("HOME", "/home/me")
    folder = tmp_path / "a=b, (c) é"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "mine.yaml").write_text("defaults: [toyworld]\nfolder: ~/sets\n")
    assert resolve(["data=mine"], (str(folder),)).data.folder == "/home/me/sets"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=1=2", "seed=1=2: the value cannot be read; allowed are numbers, .* text, in quotes .*: 'seed=\"text\"'"),
        ("stage.note=a#b", "stage.note=a#b: the value cannot be read"),
        ("stage.note=it's", "stage.note=it's: the value cannot be read"),
        ("data.train={a=b: 1}", "data.train={a=b: 1}: the value cannot be read"),
        ("compressor.C=1,2", r"compressor.C=1,2: several values, .* sweep` takes; a list is compressor.C=\[a,b\]"),
        ("seed", "seed: not of the form key=value"),
        ("run_dir=a\udcff", "contains bytes that are not text"),
    ],
)
def test_a_value_that_cannot_be_read_says_how_to_quote(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        resolve(["recipe=smoke", override])
    assert "\n" not in str(error.value)


def test_a_key_that_is_given_twice_is_named() -> None:
    check_each_once(["compressor=query", "compressor.C=2", "seed=1"])
    with pytest.raises(UserError, match="^seed is given twice: seed=1 and seed=1=2; give it once$") as error:
        check_each_once(["seed=1", "compressor.C=2", "seed=1=2"])
    assert error.value.key == "seed"


def test_the_text_that_a_message_advises_is_read_as_it_says() -> None:
    assert resolve(["run_dir=a\\${b"]).run_dir == "a${b"


TEXTS = [
    "/a/b-1.0",
    "/a b/c,d",
    "x=[1]{2}",
    "back\\slash",
    "two\\\\ins\\\\'ide",
    "end\\",
    "it\\'s",
    "tab\there",
    "null",
    "1",
    "",
    *ODD,
]


@pytest.mark.parametrize("text", TEXTS)
def test_quoted_text_is_read_back(text: str) -> None:
    assert OverridesParser.create().parse_override(f"run_dir={quote(text)}").value() == text


@pytest.mark.parametrize("text", ["/a/b", "/a/${seed}", "/a/\\${seed}", "/a/$seed", "~/it's ${", "'a'", "null"])
def test_what_a_program_names_means_nothing_else(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "~")
    assert resolve([f"run_dir={literal(text)}"]).run_dir == text
    assert literal("/a/b-1.0+c") == "/a/b-1.0+c"


def test_values_are_split_outside_quotes_and_brackets() -> None:
    assert split("a, 'b, c' ,d") == ["a", "'b, c'", "d"] and split("it's, [a") == ["it's", "[a"]
    assert split("[a,b], {c: 1, d: 2},e", brackets=True) == ["[a,b]", "{c: 1, d: 2}", "e"]
    assert split("a,") == ["a", ""] and split(",") == ["", ""] and split("") == [""]
