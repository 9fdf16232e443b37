"""Grids of overrides: values, duplicates, the reference, hashes, and what cannot be read."""

import json
from types import ModuleType
from typing import Any

import pytest
from tests.refusals import refuses

from llava_mini.errors import UserError
from llava_mini.run.identity import config_hash, decisive
from llava_mini.sweep.grid import Run, expand, parse


def described(runs: list[Run]) -> list[tuple[str, int | None, int, int]]:
    return [(run.compressor, run.C, run.n_fusion, run.seed) for run in runs]


def test_every_combination_and_the_reference_seed_by_seed(standin: ModuleType) -> None:
    runs = expand(
        ["compressor=query,avg_pool", "compressor.C=1,2", "seed=0,1", "fusion.num_layers=0,2"], standin.resolve
    )
    assert len(runs) == 2 * (1 + 8)
    assert described(runs)[:3] == [("none", None, 0, 0), ("query", 1, 0, 0), ("query", 1, 2, 0)]
    assert [run.seed for run in runs] == [0] * 9 + [1] * 9
    assert [run.reference for run in runs] == ([True] + [False] * 8) * 2
    assert runs[1].overrides == ["seed=0", "compressor=query", "compressor.C=1", "fusion.num_layers=0"]
    assert len({run.label for run in runs}) == len(runs)
    assert runs[1].label == "query-C1-N0-s0"


def test_a_value_that_does_not_apply_makes_no_second_run(standin: ModuleType) -> None:
    runs = expand(["compressor=zero,query,none", "compressor.C=1,2", "fusion.num_layers=0,2"], standin.resolve)
    assert sorted(described(runs), key=str) == [
        ("none", None, 0, 0),
        ("none", None, 2, 0),
        ("query", 1, 0, 0),
        ("query", 1, 2, 0),
        ("query", 2, 0, 0),
        ("query", 2, 2, 0),
        ("zero", None, 0, 0),
        ("zero", None, 2, 0),
    ]
    assert [run.reference for run in runs if run.compressor == "none"] == [True, False]


def test_c_is_dropped_even_where_no_compressor_of_the_sweep_has_it(standin: ModuleType) -> None:
    assert described(expand(["compressor=zero", "compressor.C=1,2"], standin.resolve)) == [
        ("none", None, 0, 0),
        ("zero", None, 4, 0),
    ]


def test_a_key_of_one_compressor_is_dropped_for_the_others_only(standin: ModuleType) -> None:
    runs = expand(["compressor=query,avg_pool", "compressor.num_heads=4,8"], standin.resolve)
    assert [(run.compressor, run.values.get("compressor.num_heads")) for run in runs] == [
        ("none", None),
        ("query", 4),
        ("query", 8),
        ("avg_pool", None),
    ]
    with pytest.raises(UserError, match=r"compressor\.heads"):
        expand(["compressor=query,avg_pool", "compressor.heads=4,8"], standin.resolve)


def test_the_reference_is_there_without_any_argument(standin: ModuleType) -> None:
    assert described(expand([], standin.resolve)) == [("none", None, 0, 0), ("query", 1, 4, 0)]


def test_other_keys_have_a_reference_for_each_value(standin: ModuleType) -> None:
    runs = expand(["trainer.max_steps=10,20", "fusion.init=copy,random", "compressor.C=2"], standin.resolve)
    assert [(run.reference, run.values["trainer.max_steps"], run.values["fusion.init"]) for run in runs] == [
        (True, 10, None),
        (False, 10, "copy"),
        (False, 10, "random"),
        (True, 20, None),
        (False, 20, "copy"),
        (False, 20, "random"),
    ]
    assert runs[2].setting() == runs[0].setting() == {"trainer.max_steps": 10}
    assert runs[2].label == "query-C2-N4-max_steps=10-init=random-s0"


def test_repeated_values_are_one_run(standin: ModuleType) -> None:
    assert len(expand(["seed=0,0,1", "trainer.max_steps=10,10"], standin.resolve)) == 4


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1,2", ["1", "2"]),
        ("1, 2", ["1", "2"]),
        ("[1,2],[3,4]", ["[1,2]", "[3,4]"]),
        ("{a:1,b:[2,3]},null", ["{a:1,b:[2,3]}", "null"]),
        ("'a,b',\"c,d\"", ["'a,b'", '"c,d"']),
        (r"'it\'s, so',b", [r"'it\'s, so'", "b"]),
        ("${x.y},b", ["${x.y}", "b"]),
        ("1e-3,2e-4", ["1e-3", "2e-4"]),
        ("''", ["''"]),
        ("range(1,4)", ["1", "2", "3"]),
        ("choice(a,b)", ["a", "b"]),
    ],
)
def test_values_are_split_at_outer_commas(text: str, values: list[str]) -> None:
    assert parse([f"stage.note={text}"]) == {"stage.note": values}


def test_keys_may_be_groups() -> None:
    assert parse(["data/sub=x"]) == {"data/sub": ["x"]}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["compressor.C"], "compressor.C"),
        (["=3"], "=3"),
        (["--help=1"], "--help=1"),
        (["~seed=1"], "~seed=1"),
        (["+seed=1"], r"\+seed=1"),
        (["seed="], "seed="),
        (["seed=1,"], "seed=1,"),
        (["seed=1,,2"], "seed=1,,2"),
        (["a=[1,2"], r"a=\[1,2.*cannot be read as values"),
        (["a=b=c,d"], "a=b=c,d"),
        (["a=[1,(2]"], r"a=\[1,\(2\]"),
        (["a=1]"], "a=1"),
        (["a='x,y"], "a='x,y"),
        (["seed=1", "seed=2"], "seed is given twice"),
    ],
)
def test_malformed_arguments_are_named(arguments: list[str], named: str) -> None:
    with pytest.raises(UserError, match=named) as caught:
        parse(arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("argument", ["compressor=quary", "fusion.depth=1", "seed=zero,one"])
def test_impossible_values_stop_the_sweep_before_it_starts(standin: ModuleType, argument: str) -> None:
    with pytest.raises(UserError, match=argument.partition("=")[0]):
        expand([argument], standin.resolve)


def test_the_hash_is_of_what_changes_results(standin: ModuleType) -> None:
    def of(*overrides: str) -> str:
        return config_hash(standin.resolve(list(overrides)))

    assert of() == of("run_dir=elsewhere") == of("tracking.parent_run_id=abc") == of("launcher.max_parallel=3")
    assert decisive({"trainer": {"max_steps": 3}}) == decisive({"trainer": {"max_steps": 3, "rank_timeout": 5}})
    assert len({of(), of("seed=1"), of("trainer.max_steps=1"), of("compressor.C=2")}) == 4


def test_the_hash_is_of_the_samples_of_a_step_and_not_of_how_they_are_distributed_or_read() -> None:
    def of(devices: int = 1, accumulate: int = 1, batch_size: int = 4, machines: int = 1, **data: Any) -> str:
        trainer = {"max_steps": 3, "devices": devices, "num_nodes": machines, "accumulate_grad_batches": accumulate}
        kept = decisive({"data": {"batch_size": batch_size, "num_workers": 0, **data}, "trainer": trainer})
        return json.dumps(kept, sort_keys=True)

    assert (
        of(2, 2)
        == of(1, 4)
        == of(4, 1)
        == of(2, machines=2)
        == of(4, num_workers=3, cache_dir="x", max_bad_fraction=0.5)
    )
    assert len({of(), of(2), of(batch_size=8), of(2, batch_size=8)}) == 4
    assert of() == of(worker_transport="pipe") == of(background=[255, 255, 255]) != of(background=[0, 0, 0])


def test_the_hash_does_not_depend_on_the_order_of_keys(standin: ModuleType) -> None:
    config = standin.resolve([])
    other = standin.Config(dict(reversed(config.values.items())))
    assert list(config.to_dict()) != list(other.to_dict()) and config_hash(config) == config_hash(other)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("a, b", ["a", "b"]),
        ("lr = 1, a#1", ["lr = 1", "a#1"]),
        ("it's,so", ["it's", "so"]),
        ("a (1], b", ["a (1]", "b"]),
        ("'a, b',\"c,d\"", ["'a, b'", '"c,d"']),
        ("实验,~/é", ["实验", "~/é"]),
        ("[a,b]", ["[a", "b]"]),
    ],
)
def test_text_is_split_at_commas_outside_quotes(text: str, values: list[str]) -> None:
    assert parse([f"tracking.experiment={text}"]) == {"tracking.experiment": values}


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("[a=1, b], [c]", ["[a=1, b]", "[c]"]),
        ("['a], b', c],parts", ["['a], b', c]", "parts"]),
        ("[it's]", ["[it's]"]),
    ],
)
def test_lists_of_text_are_one_value(text: str, values: list[str]) -> None:
    assert parse([f"model.weights={text}"]) == {"model.weights": values}
    assert parse(["data.train={a: 0.9, b: 0.1}, c"]) == {"data.train": ["{a: 0.9, b: 0.1}", "c"]}


@pytest.mark.parametrize("text", ["", "a,", "a,,b", ","])
def test_text_that_is_left_out_is_named(text: str) -> None:
    with refuses("tracking.experiment", text):
        parse([f"tracking.experiment={text}"])
