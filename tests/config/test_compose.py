"""Composing a config: every shipped yaml composes, every mistake is one line that names the culprit."""

import ast
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from llava_mini.config import Component, instantiate, load, options, resolve, save
from llava_mini.config.reference import keys
from llava_mini.errors import UserError
from llava_mini.files import CONFIG_DIR

NEEDED = {"parts": ["model.vision_tower=a/b", "model.language_model=c/d"]}  # what an option leaves open


def groups() -> list[tuple[str, str]]:
    return [(path.parent.name, path.stem) for path in sorted(CONFIG_DIR.glob("*/*.yaml"))]


@pytest.mark.parametrize(("group", "option"), groups())
def test_every_yaml_composes(group: str, option: str):
    config = resolve([f"{group}={option}", *NEEDED.get(option, [])])
    if group not in ("launcher", "tracker"):
        assert config.choices[group] == option


def test_defaults_are_the_tiny_world_with_one_token():
    config = resolve([])
    assert config.choices == {
        "model": "tiny", "compressor": "query", "order": "release", "data": "toyboards", "stage": "instruction",
        "finetune": "full", "hardware": "auto", "memory": "manual", "recipe": "tiny",
    }  # fmt: skip
    assert (config.compressor.get("C"), config.fusion.num_layers) == (1, 4)


def test_one_value_chooses_the_papers_order():
    order = resolve(["order=paper"]).order
    assert (order.compress_before_projection, order.fuse_compressed_tokens) == (False, False)


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("fusio.num_layers=2", ["unknown key fusio.num_layers", "did you mean fusion"]),
        ("savers.checkpointing=true", ["unknown key savers.checkpointing: it is memory.activation_checkpointing now"]),
        ("savers.loss_chunk=8", ["unknown key savers.loss_chunk: it is memory.loss_chunk now"]),
        ("trainer.machines=2", ["unknown key trainer.machines: it is trainer.num_nodes now"]),
        ("seed =3", ["seed =3: a key has no spaces"]),
        ("tracking.enabled=yes", ["tracking.enabled='yes': allowed are true and false"]),
        ("fusion.layers=2", ["unknown key fusion.layers", "num_layers, init"]),
        ("trainer.max_stepz=3", ["trainer.max_steps?"]),
        ("compressor=qery", ["compressor=qery", "avg_pool, none, query, uniform, zero"]),
        ("compressor.D=2", ["unknown key compressor.D", "_target_, C, num_heads"]),
        ("model=null", ["override must be a string or a list"]),
        ("hydra.run.dir=/tmp", ["hydra.run.dir=/tmp: Hydra's own settings are fixed here"]),
        ("tracking.enabled=1", ["tracking.enabled=1: allowed are true and false"]),
        ("hardware.memory_gib=1e308", ["hardware.memory_gib=1e+308"]),
        ("trainer.max_steps=99999999999999999999999", ["trainer.max_steps=99999999999999999999999: "]),
        ("run_dir='${nope}'", ["run_dir: Interpolation key 'nope' not found"]),
        ("run_dir=${", ["run_dir=${: ${ begins the name of another key, as in ${seed}; \\${ is the text ${ itself"]),
        ("compressor=${:}", ["compressor=${:}: ${ begins the name of another key"]),
        ("data.train={a: '${'}", ["data.train={a: '${'}: ${ begins the name of another key"]),
        ("trainer=[1]", ["trainer=[1]: Cannot merge DictConfig with ListConfig"]),
        ("model={a: 1}", ["unknown key model.a: allowed in model are vision_config"]),
        ("data={vall: a}", ["unknown key data.vall (did you mean data.val?)"]),
        ("data.splits.train=a", ["unknown key data.splits.train: it is data.train now"]),
        ("experiment=smoke", ["unknown key experiment: it is recipe now"]),
        ("model=[nope]", ["model=nope: no such model; allowed are llava_mini_llama31_8b"]),
        ("world.stages=[0,0]", ["world.stages=[0, 0]: allowed are 0, 1 and 2, each once"]),
        ("world.stages=[true]", ["world.stages=[True]: allowed are 0, 1 and 2, each once"]),
        ("foo", ["foo", "key=value"]),
        ("a=b=c", ["a=b=c"]),
        ("seed='", ["seed=': the value cannot be read; allowed are numbers", "'seed=\"text\"'"]),
        ("+new=1", ["+new=1", "neither added nor removed"]),
        ("~seed", ["~seed"]),
        ("nothing/here=1", ["nothing/here"]),
        (
            "data.train=[]",
            ["train=[]: allowed are a set, [set, ...] and {set: weight above 0, ...}"],
        ),
        ("data.val={instruct-val: 0}", ["data.val={'instruct-val': 0}: allowed are a set"]),
        ("data.test=[instruct-test, nope]", ["data.test=nope: allowed are caption-train", "a URL"]),
        ("data.features=3", ["data.features=3: allowed are true, false and a folder"]),
        ("data.template=3", ["data.template=3: allowed are the name of a template and {field: text, ...}"]),
        ("data.views=round", ["data.views='round'", "'square', 'pad' or 'hd'"]),
        ("data.max_bad_fraction=2", ["data.max_bad_fraction=2", "less than or equal to 1"]),
        ("model.weights=parts", ["model.weights=parts with model.vision_tower=null", "a folder or a Hub id"]),
        ("model=parts", ["model.vision_tower: needs a value: model.vision_tower=..."]),
        ("model.weights=none", ["model.weights='none': allowed are random, parts and [folder, ...]"]),
        ("model.hub.vision_tower=a/b", ["model.hub.vision_tower", "it is model.vision_tower now"]),
        ("=3", ["=3: not of the form key=value"]),
        ("run_dir=", ["run_dir='': ", "at least 1 character"]),
        ("data.folder=", ["data.folder='': ", "at least 1 character"]),
        ("run_name=", ["run_name='': ", "at least 1 character"]),
        ("data.cache_dir=", ["data.cache_dir='': ", "at least 1 character"]),
        ("tracking.uri=", ["tracking.uri='': ", "at least 1 character"]),
        ("tracking.experiment=", ["tracking.experiment='': ", "at least 1 character"]),
        ("world.out=", ["world.out='': ", "at least 1 character"]),
        ("trainer.devices=0", ["trainer.devices=0", "greater than or equal to 1"]),
    ],
)
def test_a_mistake_is_one_line(override: str, parts: list[str]):
    with pytest.raises(UserError) as caught:
        resolve([override])
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_a_set_of_the_toy_world_has_a_size_and_any_other_is_named_by_its_place(tmp_path: Path):
    (tmp_path / "data").mkdir()
    train = "train: { instruct-train: 3, /mine: 1, 's3://bucket/set': 0.5 }"
    (tmp_path / "data" / "mix.yaml").write_text(f"defaults: [toyworld]\n{train}\n")
    mixed = resolve(["data=mix"], (str(tmp_path),)).data
    assert mixed.train == {"instruct-train": 3, "/mine": 1, "s3://bucket/set": 0.5}
    own = resolve(["data.world_seed=null", "data.train=[mine, yours]"]).data
    assert own.train == ["mine", "yours"]


def test_own_folder_adds_options(tmp_path: Path):
    (tmp_path / "compressor").mkdir()
    (tmp_path / "compressor" / "mine.yaml").write_text("_target_: mine.Mine\n")
    assert resolve(["compressor=mine"], (str(tmp_path),)).compressor == Component("mine.Mine", {})
    assert "mine" in options("compressor", (str(tmp_path),))
    with pytest.raises(UserError, match="mine"):
        resolve(["compressor=mine"])


GLOBAL, NAMED = "# @package _global_\n", "run_name: mine\ntrainer: {max_steps: 3}\n"


@pytest.mark.parametrize(
    ("recipe", "key", "allowed"),
    [
        (NAMED, "recipe", "needed is a first line `# @package _global_`"),
        (f"{GLOBAL}trainer: {{max_steps: 3}}\n", "run_name", "the name of the run's folder"),
        (
            f"{GLOBAL}run_name: mine\ntrainer: {{max_step: 3}}\n",
            "trainer.max_step",
            "did you mean trainer.max_steps?",
        ),
        (f"{GLOBAL}{NAMED}memry: {{}}\n", "memry", "did you mean memory?"),
        (f"{GLOBAL}defaults: [/compressor: zero]\n{NAMED}", None, "needed is `override /compressor: zero`"),
    ],
)
def test_what_is_wrong_with_a_recipe_is_said_with_its_file(tmp_path: Path, recipe: str, key: str | None, allowed: str):
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "mine.yaml").write_text(recipe)
    with pytest.raises(UserError) as caught:
        resolve(["recipe=mine"], (str(tmp_path),))
    assert caught.value.key == key
    assert str(caught.value).startswith(f"{tmp_path}/recipe/mine.yaml: ")
    assert allowed in str(caught.value)


def test_a_wrong_override_is_not_blamed_on_a_right_recipe(tmp_path: Path):
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "mine.yaml").write_text(f"{GLOBAL}defaults: [override /compressor: zero]\n{NAMED}")
    with pytest.raises(UserError) as caught:
        resolve(["recipe=mine", "fusion.layers=3"], (str(tmp_path),))
    assert str(caught.value).startswith("unknown key fusion.layers")


def test_own_code_of_a_tracker_is_no_part_of_a_run(tmp_path: Path):
    """A repaired tracker resends the reports of a run; a changed compressor is another run."""
    (tmp_path / "tracker").mkdir()
    (tmp_path / "tracker" / "mine.yaml").write_text("_target_: own_tracker_of_a_test.Mine\n")
    for name in ("own_tracker_of_a_test.py", "own_compressor_of_a_test.py"):
        (tmp_path / name).write_text("class Mine: pass\n")
    before = resolve(["tracker=mine"], (str(tmp_path),)).inputs["own_code"]
    (tmp_path / "own_tracker_of_a_test.py").write_text("class Mine: repaired = True\n")
    assert resolve(["tracker=mine"], (str(tmp_path),)).inputs["own_code"] == before
    (tmp_path / "own_compressor_of_a_test.py").write_text("class Mine: changed = True\n")
    assert resolve(["tracker=mine"], (str(tmp_path),)).inputs["own_code"] != before


class Thing:
    """A class to instantiate."""

    def __init__(self, *, size: int, names: list[str], rate: float | None = None, given: object = None):
        self.size, self.names, self.rate, self.given = size, names, rate, given


ROOT = Path(__file__).parents[2]
THING = f"{__name__}.Thing"


def test_instantiate_checks_against_the_signature():
    given = object()
    thing = instantiate(Component(THING, {"size": 3, "names": ["a"], "rate": 1}), "thing", given=given)
    assert (thing.size, thing.names, thing.rate, thing.given) == (3, ["a"], 1.0, given)


@pytest.mark.parametrize(
    ("spec", "part"),
    [
        ({"size": "x", "names": []}, "thing.size='x'"),
        ({"size": 1.5, "names": []}, "thing.size=1.5"),
        ({"size": 1, "names": "a"}, "thing.names='a'"),
        ({"size": 1, "names": [], "color": 2}, "unknown key thing.color: Thing takes size, names, rate"),
        ({"size": 1}, "missing key thing.names"),
    ],
)
def test_instantiate_names_the_culprit(spec: dict, part: str):
    with pytest.raises(UserError) as caught:
        instantiate(Component(THING, spec), "thing", given=None)
    assert part in str(caught.value)


def test_instantiate_names_a_class_that_is_not_there():
    with pytest.raises(UserError, match="thing._target_=no.such.Thing"):
        instantiate(Component("no.such.Thing", {}), "thing")


def test_a_saved_config_is_read_back(tmp_path: Path):
    config = resolve(["seed=7"])
    save(config, tmp_path / "run" / "config.yaml")
    assert load(tmp_path / "run" / "config.yaml") == config
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.yaml"]


def test_loading_what_is_no_config(tmp_path: Path):
    with pytest.raises(UserError, match="no such file"):
        load(tmp_path / "config.yaml")
    (tmp_path / "config.yaml").write_text("- a\n")
    with pytest.raises(UserError, match="not a config"):
        load(tmp_path / "config.yaml")
    (tmp_path / "config.yaml").write_text("a: [\n")
    with pytest.raises(UserError, match=r"config\.yaml: not readable as yaml \(while parsing") as caught:
        load(tmp_path / "config.yaml")
    assert "\n" not in str(caught.value)


def test_a_yaml_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "twice.yaml").write_text("defaults: [toymix]\ntrain: { a: 1, a: 2 }\n")
    with pytest.raises(UserError, match="duplicate key a") as caught:
        resolve(["data=twice"], (str(tmp_path),))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("memory", ["inf", "nan", "0", "-1"])
def test_a_card_has_some_memory(memory: str) -> None:
    with pytest.raises(UserError, match=r"hardware\.memory_gib="):
        resolve([f"hardware.memory_gib={memory}"])


@pytest.mark.parametrize(
    ("override", "key", "hint"),
    [
        ("fusio.num_layers=2", "fusio.num_layers", "fusion"),
        ("trainer.max_stepz=3", "trainer.max_stepz", "trainer.max_steps"),
        ("savers.loss_chunk=8", "savers.loss_chunk", "memory.loss_chunk"),
        ("compressor.D=2", "compressor.D", None),
        ("trainer={max_stepz: 3}", "trainer.max_stepz", "trainer.max_steps"),
        ("compressor=qery", "compressor", None),
        ("trainer.devices=0", "trainer.devices", None),
        ("data.train=[]", "data.train", None),
    ],
)
def test_a_mistake_has_fields(override: str, key: str, hint: str | None) -> None:
    with pytest.raises(UserError) as caught:
        resolve([override])
    assert (caught.value.key, caught.value.hint) == (key, hint)
    assert caught.value.allowed or hint


def test_a_config_cannot_be_changed_in_place_and_a_changed_one_is_checked() -> None:
    config = resolve([])
    with pytest.raises(FrozenInstanceError):
        config.trainer.max_steps = 3  # type: ignore[misc]
    changed = config.changed({"trainer": {"max_steps": 3}, "data": {"batch_size": 2}})
    assert (changed.trainer.max_steps, changed.data.batch_size, changed.seed) == (3, 2, config.seed)
    assert config.trainer.max_steps != 3
    with pytest.raises(UserError) as caught:
        config.changed({"trainer": {"max_steps": 0}})
    assert "max_steps=0" in str(caught.value)


def test_every_key_is_read_somewhere() -> None:
    """A key that no code reads, as an attribute of its section, would be an option without effect."""
    trees = [ast.parse(p.read_text()) for p in (ROOT / "src").rglob("*.py") if p.parts[-2:] != ("config", "types.py")]
    attributes = (node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    read = {".".join(ast.unparse(node).split(".")[-2:]) for node in attributes}
    references = "\n".join(path.read_text() for path in CONFIG_DIR.rglob("*.yaml"))
    whole = ("order.", "data.val", "data.test")  # taken as a whole, by `Data.splits`
    names = [key.name for key in keys(resolve([])) if not key.name.startswith(whole)]
    unread = [n for n in names if ".".join(f"config.{n}".split(".")[-2:]) not in read and f"${{{n}}}" not in references]
    assert unread == []
    assert "hardware.name" not in read and "hardware.memory_gib" in read


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("trainer: { zzz: 1 }", "unknown key trainer.zzz"),
        ("1: 2", "1: no key that a config file may have at its top"),
        ("choices: { model: x }", "choices: no key that a config file may have at its top"),
        ("a: \\xff", "yaml"),
    ],
)
def test_a_config_file_with_a_mistake(tmp_path: Path, text: str, named: str) -> None:
    (tmp_path / "recipe").mkdir()
    header = "# @package _global_\ndefaults: [smoke]\n"
    raw = f"{header}{text}\n".encode().replace(b"\\\\xff", b"\xff\xfe")
    (tmp_path / "recipe" / "mine.yaml").write_bytes(raw)
    with pytest.raises(UserError) as caught:
        resolve(["recipe=mine"], (str(tmp_path),))
    assert "\n" not in str(caught.value)
    assert named == "yaml" or named in str(caught.value)


@pytest.mark.parametrize("code", ["def", "import nowhere_at_all", "raise RuntimeError('no')"])
def test_own_code_that_cannot_be_imported(tmp_path: Path, code: str) -> None:
    (tmp_path / "compressor").mkdir()
    (tmp_path / "compressor" / "mine.yaml").write_text("_target_: broken_module.Mine\n")
    (tmp_path / "broken_module.py").write_text(f"{code}\n")
    with pytest.raises(UserError, match=r"broken_module cannot be imported \(\w+Error: "):
        resolve(["compressor=mine"], (str(tmp_path),))
