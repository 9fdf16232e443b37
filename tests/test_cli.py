"""The command line: help; a user's mistakes are one line on standard error, exit status 2 and nothing written."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from llava_mini.cli import main
from llava_mini.command_line.table import COMMANDS, WITH_FLAGS
from llava_mini.config import resolve

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides for a working folder that is not the repository's: a small world, the shipped checkpoints."""
    tiny = ROOT / "checkpoints" / "tiny"
    world = tmp_path_factory.mktemp("world")
    weights = f"model.weights=[{tiny / 'stage0'},{tiny / 'stage1'}]"
    return ["recipe=smoke", weights, f"model.tokenizer={tiny / 'stage1'}", f"data.folder={world}"]


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_help_lists_every_command(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in COMMANDS)


def test_config_prints_what_will_be_used(capsys: pytest.CaptureFixture):
    assert main(["config", "compressor.C=3", "seed=5"]) == 0
    text = capsys.readouterr().out
    assert "C: 3" in text and "seed: 5" in text


def test_config_shows_letters_of_any_script(capsys: pytest.CaptureFixture):
    assert main(["config", "run_dir=/data/实验/josé"]) == 0
    assert "\nrun_dir: /data/实验/josé\n" in capsys.readouterr().out


def test_help_says_how_values_are_typed(capsys: pytest.CaptureFixture):
    """Each example is read as it says; what a shell takes off is taken off here."""
    assert main(["config", "--help"]) == 0
    lines = capsys.readouterr().out.partition("\nvalues ")[2].splitlines()[1:]
    examples = [re.split(" {2,}", line.strip())[0] for line in lines if not line.startswith("   ")]
    typed = [word for example in examples for word in shlex.split(example)]
    config = resolve(["data.world_seed=null", *typed])
    assert config.run_dir == os.path.expanduser("~/runs/lr=1e-4 (1)")
    assert (config.seed, config.data.features, config.data.cache_dir) == (3, False, None)
    assert config.model.weights == [os.path.expanduser("~/a"), "b=1"]
    assert config.data.train == {"a": 0.9, "b": 0.1} and config.tracking.experiment == "a, b"


def test_a_worker_that_dies_in_the_midst_of_a_run_is_one_line(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    def dying(overrides: list[str], config_dirs: tuple[str, ...]) -> int:
        raise RuntimeError("DataLoader worker (pid 17) is killed by signal: Killed. ")

    monkeypatch.setattr("llava_mini.commands.config.config", dying)
    assert main(["config"]) == 1
    told = "a worker that makes batches was killed: perhaps too little memory for so many workers (data.num_workers)"
    assert capsys.readouterr().err == f"llava-mini: {told}\n"


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["train", "compressor.C=0"], ["compressor.C=0", "at least 1"]),
        (["train", "compressor.C=two"], ["compressor.C=two"]),
        (["train", "seed=1", "seed=2"], ["seed is given twice: seed=1 and seed=2"]),
        (["plan", "seed=1", "seed=2"], ["seed is given twice"]),
        (["config", "seed=1", "seed=2"], ["seed is given twice"]),
        (["world", "seed=1", "seed=2"], ["seed is given twice"]),
        (["data", "features", "no/set", "--out", "no/folder", "seed=1", "seed=2"], ["seed is given twice"]),
        (["train", "compressor.C=1.5"], ["compressor.C=1.5"]),
        (["train", "compressor=nosuch"], ["compressor=nosuch", "avg_pool"]),
        (["train", "fusion.num_layers=99"], ["fusion.num_layers=99", "copy", "8"]),
        (["train", "fusion.num_layers=-1"], ["fusion.num_layers=-1"]),
        (["train", "fusion.init=clone"], ["fusion.init='clone'", "'identity', 'copy' or 'random'"]),
        (["train", "stage.weight_decay=heavy"], ["stage.weight_decay='heavy'"]),
        (["train", "stage.learning_rates.vision_tower=1"], ["stage.learning_rates.vision_tower"]),
        (["train", "data.turns=sometimes"], ["turns='sometimes'"]),
        (["train", "trainer.precision=12"], ["trainer.precision=12"]),
        (["train", "tracking.log_model=2"], ["tracking.log_model=2"]),
        (["train", "trainer.max_steps=0"], ["trainer.max_steps=0"]),
        (["train", "trainer.devices=0"], ["trainer.devices=0"]),
        (["train", "trainer.num_nodes=2"], ["trainer.num_nodes=2", "torchrun"]),
        (["world", "trainer.devices=2"], ["2 processes", "made by one"]),
        (["train", "trainer.accelerator=abacus"], ["trainer.accelerator='abacus'", "'cpu'"]),
        (["train", "model.weights=[nowhere]"], ["nowhere", "missing"]),
        (["train", "model.tokenizer=nowhere"], ["model.tokenizer=nowhere"]),
        (["train", "model.text_config.hidden_size=72"], ["checkpoints/tiny/stage1", "shape"]),
        (["train", "model.text_config.hidden_size=wide"], ["hidden_size"]),
        (["train", "model.text_config.model_type=gpt9"], ["gpt9"]),
        (["train", "data.train=nothing"], ["nothing"]),
        (["train", "data.batch_size=0"], ["batch_size=0"]),
        (["train", "unknown.key=1"], ["unknown key unknown.key"]),
        (["sweep", "compressor.C=1,0"], ["compressor.C=0"]),
        (["sweep", "compressor.C=1,"], ["compressor.C=1,"]),
        (["sweep", "compressor=query,nosuch"], ["nosuch"]),
        (["sweep", "--out="], ["--out ''"]),
        (["sweep", "sweep_dir=a"], ["sweep_dir=a: it is --out a now"]),
        (["compare", "no/such/folder"], ["no/such/folder"]),
        (["world", "world.stages=[3]"], ["world.stages"]),
        (["--config-dir", "no/such", "train"], ["--config-dir no/such"]),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    arguments: list[str], parts: list[str], elsewhere: Path, capsys: pytest.CaptureFixture, places: list[str]
):
    given = [part.split("=")[0] for part in arguments]
    needed = [place for place in places if place.split("=")[0] not in given] if given[0] in ("train", "sweep") else []
    status = main([*arguments, *needed])
    error = capsys.readouterr().err
    assert status == 2, error
    assert error.count("\n") == 1 and "Traceback" not in error
    for part in parts:
        assert part in error
    assert not list(elsewhere.glob("runs*")) and not list(elsewhere.glob("sweeps*"))


@pytest.mark.parametrize(
    "override",
    ["compressor.C=abc", "compressor.D=1", "stage.weight_decay=heavy", "stage.nope=1", "launcher.max_parallel=abc"],
)
def test_config_refuses_an_argument_of_a_class_as_train_does(
    override: str, elsewhere: Path, capsys: pytest.CaptureFixture, places: list[str]
):
    said = []
    for command in ("config", "train"):
        assert main([command, *places, override]) == 2
        said.append(capsys.readouterr().err)
    assert said[0] == said[1] and override.partition("=")[0] in said[0] and said[0].count("\n") == 1


def test_config_prints_a_stage_that_only_world_completes(capsys: pytest.CaptureFixture):
    assert main(["config", "recipe=tiny_stage0"]) == 0
    assert "VisionPretrainingStage" in capsys.readouterr().out


@pytest.mark.parametrize("command", [[], *([name] for name in WITH_FLAGS), ["data", "build"], ["data", "features"]])
def test_a_mistake_in_flags_is_one_line_that_says_where_help_is(
    command: list[str], elsewhere: Path, capsys: pytest.CaptureFixture
):
    with pytest.raises(SystemExit) as caught:
        main([*command, "--no-such-flag"])
    out, error = capsys.readouterr()
    program = " ".join(["llava-mini", *command])
    assert caught.value.code == 2 and out == ""
    assert error.startswith(f"{program}: ") and error.endswith(f" (see {program} --help)\n") and error.count("\n") == 1


def test_config_dir_before_a_command_without_a_config_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as caught:
        main(["--config-dir", str(tmp_path), "ask", "model", "image.png", "--question", "?"])
    assert caught.value.code == 2
    assert "ask comes first and takes no --config-dir" in capsys.readouterr().err


def test_a_home_in_a_flag_is_found(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """A shell finds it at the beginning of a word only."""
    monkeypatch.setenv("HOME", "/home/me")
    assert main(["config", "--config-dir=~/mine"]) == 2
    assert "--config-dir /home/me/mine: no such folder" in capsys.readouterr().err
    seen: list[list[str]] = []

    def noted(arguments: list[str], _: tuple[str, ...]) -> int:
        seen.append(arguments)
        return 0

    monkeypatch.setattr("llava_mini.commands.ask.ask", noted)
    assert main(["ask", "no/model", "--image=~/a=b.png", "--question=~/b", "~/c"]) == 0
    assert seen == [["no/model", "--image=/home/me/a=b.png", "--question=~/b", "~/c"]]


def test_an_unknown_command_is_refused(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as caught:
        main(["trian"])
    assert caught.value.code == 2
    assert "train" in capsys.readouterr().err


def test_what_this_machine_lacks_is_reported_once_before_ranks_begin(
    elsewhere: Path, places: list[str], capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["train", *places, "hardware=a100_80gb_x8"]) == 2
    assert capfd.readouterr().err == (
        "llava-mini: trainer.accelerator=gpu: torch finds no GPU here; allowed are auto, cpu\n"
    )
    assert not list(elsewhere.iterdir())


@pytest.mark.parametrize("devices", [1, 2])
def test_a_tracker_that_is_not_installed_is_one_line_before_anything_is_made(
    elsewhere: Path, places: list[str], capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, devices: int
):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    chosen = ["tracking.enabled=true", "trainer.accelerator=cpu", f"trainer.devices={devices}"]
    assert main(["train", *places, *chosen]) == 2
    told = capfd.readouterr().err
    assert told.startswith("llava-mini: tracker=mlflow: mlflow is not installed: ") and told.count("\n") == 1
    assert not list(elsewhere.iterdir())


@pytest.mark.parametrize(
    ("arguments", "asked", "otherwise"),
    [
        (["sweep", "recipe=smoke"], "tracker=mlflow", "tracking.enabled=false"),
        (["bench", "flops"], "bench flops", "--no-mlflow"),
        (["bench", "latency"], "bench latency", "--no-mlflow"),
        (["bench", "memory"], "bench memory", "--no-mlflow"),
    ],
)
def test_sweeps_and_benches_without_a_tracker_are_one_line(
    elsewhere: Path,
    capfd: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    asked: str,
    otherwise: str,
):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    assert main(arguments) == 2
    told = capfd.readouterr().err
    assert told == f"llava-mini: {asked}: mlflow is not installed: pip install mlflow; or {otherwise}\n"
    assert not list(elsewhere.iterdir())


def test_bars_of_transformers_are_for_terminals():
    ask = "import transformers.utils.logging as told; sys.exit(told.is_progress_bar_enabled())"
    code = f"import sys; from llava_mini.cli import main; main(['compare', 'nowhere']); {ask}"
    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_DISABLE_PROGRESS_BARS"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
