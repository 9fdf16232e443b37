"""`llava-mini data`: from JSON to a checked and counted set by the command line; mistakes are one line."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from llava_mini.cli import main
from llava_mini.data.building.workers import WorkerDiedError
from llava_mini.data.format.shard_set import ShardSet
from llava_mini.data.toyworld.tokenizer import build_tokenizer


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with mix.json, 12 records about images, and the images; one record names none that is there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    records = []
    for number in range(12):
        pixels = np.full((40, 60, 3), 20 * number, np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG")
        (tmp_path / "images" / f"{number}.jpg").write_bytes(buffer.getvalue())
        talk = [{"from": "human", "value": "<image>\nwhat color is the ring"}, {"from": "gpt", "value": "red"}]
        records.append({"id": f"r{number}", "image": f"{number}.jpg", "conversations": talk})
    records[7]["image"] = "nothing.jpg"
    (tmp_path / "mix.json").write_text(json.dumps(records))
    return tmp_path


BUILD = ["data", "build", "mix.json", "--images", "images", "--out", "set", "--workers", "1"]


def test_build_check_stats(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([*BUILD, "--resize", "20", "--samples-per-shard", "5", "--seed", "3"]) == 0
    shards = ShardSet("set")
    assert len(shards) == 11 and shards.plan is not None and shards.plan["resize"] == 20 and shards.plan["seed"] == 3
    build_tokenizer().save_pretrained("tokenizer")
    told = ["--tokenizer", "tokenizer", "--template", "tiny", "--report", "bad.jsonl"]
    capfd.readouterr()
    assert main(["data", "check", "set", "--workers", "1", *told]) == 0
    out = capfd.readouterr().out
    assert "set: 11 samples in 3 shards, 11 images" in out and " 22 supervised, 0 samples truncated" in out
    assert Path("bad.jsonl").read_text() == ""
    assert main(["data", "stats", "set", "--workers", "1", "--out", "drawn"]) == 0
    out = capfd.readouterr().out
    assert "11 samples in 3 shards" in out and "1 records were rejected" in out and "drawn in drawn/stats.png" in out
    assert Image.open("drawn/stats.png").format == "PNG"


def test_a_sidecar_that_is_gone_fails_the_check(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(BUILD) == 0
    (place / "set" / "shard-000000.json").unlink()
    assert main(["data", "check", "set", "--workers", "1"]) == 1
    assert "set/shard-000000.json is missing" in capsys.readouterr().err
    assert len(ShardSet("set")) == 11


def test_parts_are_built_one_by_one(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    sized = [*BUILD, "--samples-per-shard", "4"]
    assert main([*sized, "--task", "1", "--of", "2"]) == 0
    assert "task 1 of 2: 12 records in 3 shards; 1 of 1 to build" in caplog.text
    assert "set: 2 of 3 shards are still missing" in caplog.text
    assert main([*sized, "--task", "0", "--of", "2"]) == 0
    assert "set: 11 samples, " in caplog.text and "1 x missing image" in caplog.text
    assert main(sized) == 0
    assert "set is complete already: 11 samples" in caplog.text


def test_a_strict_build_is_one_line_and_exit_status_2(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*BUILD, "--strict"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(
        "llava-mini: --strict: r7 (mix.json record 8): missing image (No such file or directory): n"
    )
    assert error.count("\n") == 1 and not list((place / "set").glob("shard-*"))


def test_links_out_of_the_folder_are_an_option(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "images").rename(place / "disk")
    (place / "images").mkdir()
    for number in range(12):
        (place / "images" / f"{number}.jpg").symlink_to(place / "disk" / f"{number}.jpg")
    assert main(BUILD) == 2
    assert "which only `follow_links` allows: " in capsys.readouterr().err
    assert main([*BUILD[:-4], "--out", "followed", "--follow-links"]) == 0
    assert len(ShardSet("followed")) == 11


def test_a_set_that_fails_its_check_is_exit_status_1(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(BUILD) == 0
    tar = place / "set" / "shard-000000.tar"
    raw = bytearray(tar.read_bytes())
    raw[-1] ^= 1
    tar.write_bytes(raw)
    capsys.readouterr()
    assert main(["data", "check", "set", "--workers", "1"]) == 1
    out, error = capsys.readouterr()
    assert "damaged   set/shard-000000.tar has SHA-256" in out and "tokens were not counted" in out
    assert error.startswith("llava-mini: set: 1 damaged files, set/shard-000000.tar") and error.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("shard-000000.tar", "set/shard-000000.tar has 300 bytes instead of"),
        ("index.npy", "set/index.npy has 300 bytes instead of"),
        ("shards.json", "set/shards.json is not valid JSON"),
    ],
)
def test_a_set_that_cannot_be_opened_fails_its_check(
    place: Path, name: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(BUILD) == 0
    path = place / "set" / name
    path.write_bytes(path.read_bytes()[:300])
    capsys.readouterr()
    assert main(["data", "check", "set", "--workers", "1"]) == 1
    assert message in capsys.readouterr().err


def test_without_a_tokenizer_the_configs_own_counts_what_is_learnt(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(BUILD) == 0
    assert main(["data", "check", "set", "--workers", "1"]) == 0
    assert "supervised tokens were not counted; --tokenizer names your model's" in capsys.readouterr().out
    build_tokenizer().save_pretrained("checkpoints/tiny/stage1")
    assert main(["data", "check", "set", "--workers", "1"]) == 0
    out = capsys.readouterr().out
    assert " supervised, 0 samples truncated" in out
    assert "tokens are those of checkpoints/tiny/stage1" in out


def test_tokens_that_do_not_fit_fail_the_check(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(BUILD) == 0
    build_tokenizer().save_pretrained("tokenizer")
    check = ["data", "check", "set", "--workers", "1", "--tokenizer", "tokenizer", "--template", "tiny"]
    assert main([*check, "--image-tokens", "64", "--max-length", "60"]) == 1
    out, error = capsys.readouterr()
    assert "bad       11 samples" in out and "(r3): " in out
    assert error == "llava-mini: set: there is nothing to supervise in 11 of 11 samples, more than 1%\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build", "nothing.json", "--out", "set"], "nothing.json: cannot be read: No such file or directory"),
        (["build", "mix.json", "--out", "set", "--images", "none"], "--images none: no such folder"),
        (["build", "mix.json", "--out", "set", "--task", "1"], "--task and --of go together, as in --task 0 --of 16"),
        (
            ["build", "mix.json", "--out", "set", "--task", "2", "--of", "2"],
            "--task 2: allowed are tasks 0 to 1",
        ),
        (["build", "mix.json", "--out", "set", "--resize", "0"], "--resize 0: allowed are 1 pixel and above"),
        (["build", "cut.json", "--out", "set", "--images", "images"], "cut.json is a broken array, at character"),
        (["check", "nowhere"], "nowhere is no complete shard set (it has no shards.json)"),
        (["check", "ready", "--tokenizer", "nowhere"], "--tokenizer nowhere: no tokenizer_config.json there"),
        (["check", "ready", "--tokenizer", ".", "--template", "alpaca"], "--template alpaca: allowed are vicuna_v1"),
        (["build", "mix.json", "--out", "mix.json", "--images", "images"], "--out mix.json is a file; allowed is a"),
        (["build", "mix.json", "--out", "set", "--task", "0", "--of", "0"], "--of 0: allowed are 1 and above"),
        (["build", "mix.json", "--out", "set"], " names an image (0.jpg): --images must name the folder of these"),
        (["check", "ready", "--report", "."], "--report . cannot be written (Is a directory)"),
        (["stats", "nowhere"], "nowhere is no complete shard set"),
        (["stats", "ready", "--out", "mix.json"], "--out mix.json cannot be written (File exists)"),
    ],
)
def test_a_mistake_is_one_line(
    place: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if "ready" in arguments:
        assert main([*BUILD[:-3], "ready", "--workers", "1"]) == 0
    (place / "cut.json").write_text((place / "mix.json").read_text()[:-2])
    capsys.readouterr()
    assert main(["data", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("llava-mini: ") and message in error and error.count("\n") == 1
    assert not (place / "set" / "shards.json").exists()


@pytest.mark.parametrize(
    ("flag", "least"), [("--workers=0", 1), ("--max-length=0", 1), ("--max-length=many", 1), ("--image-tokens=-1", 0)]
)
def test_a_number_that_is_impossible_is_named_with_its_flag(
    flag: str, least: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["data", "check", "set", flag])
    name, _, value = flag.partition("=")
    told = f"llava-mini data check: argument {name}: {value}: allowed are whole numbers from {least} to "
    assert caught.value.code == 2 and capsys.readouterr().err.startswith(told)


@pytest.mark.parametrize(
    "arguments", [[], ["pack"], ["build"], ["check", "set", "--workers", "0"], ["build", "x.json"]]
)
def test_what_cannot_be_read_as_a_command_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["data", *arguments])
    error = capsys.readouterr().err
    assert caught.value.code == 2 and error.startswith("llava-mini data") and error.count("\n") == 1


@pytest.mark.parametrize("command", ["build", "check", "stats"])
def test_help_explains_every_flag(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["data", command, "--help"])
    out = capsys.readouterr().out
    assert caught.value.code == 0 and "--workers N" in out and ("SLURM" in out) == (command == "build")


def test_a_process_that_died_is_reported_in_one_line(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def died(*arguments: Any, **options: Any) -> None:
        raise WorkerDiedError(3, -9)

    monkeypatch.setattr("llava_mini.data.building.run.build_part", died)
    assert main(BUILD) == 1
    assert capsys.readouterr().err == (
        "llava-mini: the process of shard 3 died, killed by SIGKILL (not enough memory for so many --workers?)."
        " Repeat the command: what is complete is not done again\n"
    )
