"""A build continues where it ended, gives the same bytes however it went, and tells what it left out."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import webdataset
from PIL import Image

from llava_mini.data.building.plan import Options
from llava_mini.data.building.run import build_part, build_set
from llava_mini.data.format.index import Modality
from llava_mini.data.format.shard_set import ShardSet
from llava_mini.data.format.shards import finish_set, write_shard
from llava_mini.data.inspection.check import check_set, finding_lines
from llava_mini.errors import UserError


def build(world: Path, out: str = "out", **options: object) -> ShardSet:
    folders = {"images": world / "images", "videos": world / "videos"}
    return build_set([world / "mix.json"], out=world / out, **{**folders, "samples_per_shard": 5, **options})


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_set_holds_every_usable_record(world: Path) -> None:
    shards = build(world)
    assert len(shards) == 28 and shards.num_shards == 6 and shards.rejected == 0
    shards.verify()
    modalities = [shards.modality(i) for i in range(28)]
    assert [modalities.count(kind) for kind in Modality] == [6, 20, 2]
    assert sorted(shards.sources) == ["clips", "mix"]
    clips = [i for i in range(28) if modalities[i] == Modality.VIDEO]
    assert sorted(shards.frames(i) for i in clips) == [2, 3]
    assert {shards.source(i) for i in clips} == {"clips"}
    ids = [json.loads(shards.read_record(i))["id"] for i in range(28)]
    assert sorted(ids) == sorted([*(f"i{n}" for n in range(20)), *(f"t{n}" for n in range(6)), "v0", "v1"]) != ids
    tars = sorted(str(path) for path in shards.folder.glob("*.tar"))
    read = list(webdataset.WebDataset(tars, shardshuffle=False).decode("pil"))
    assert [sample["__key__"] for sample in read] == [shards.key(i) for i in range(28)]
    pictures = [sample["jpg"] for sample in read if "jpg" in sample]
    assert len(pictures) == 20 and all(picture.size == (48, 32) for picture in pictures)


def test_the_manifest_says_what_the_set_was_made_from(world: Path) -> None:
    plan = build(world, seed=3, resize=24).plan
    source = {"name": "mix.json", "bytes": (world / "mix.json").stat().st_size}
    assert plan is not None and {**plan["sources"][0], **source} == plan["sources"][0]
    rest = {"seed": 3, "samples_per_shard": 5, "resize": 24, "fps": 1.0, "records": 28}
    assert {name: value for name, value in plan.items() if name != "sources"} == rest
    assert not (world / "out" / "plan").exists()


def test_repeating_a_complete_build_only_opens_it(world: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = build(world)
    before = contents(world / "out")
    (world / "images" / "coco" / "1.jpg").unlink()  # what is built needs it no more
    caplog.set_level(logging.INFO)
    assert build(world).fingerprint == first.fingerprint
    assert f"out is complete already: 28 samples, fingerprint {first.fingerprint[:16]}" in caplog.text
    assert contents(world / "out") == before
    with pytest.raises(UserError, match="out was built with seed 0, not 1; delete it or name another folder"):
        build(world, seed=1)


def test_a_complete_set_with_rejected_records_says_so(world: Path, caplog: pytest.LogCaptureFixture) -> None:
    (world / "images" / "coco" / "1.jpg").rename(world / "1.jpg")
    build(world)
    (world / "1.jpg").rename(world / "images" / "coco" / "1.jpg")
    caplog.set_level(logging.INFO)
    assert build(world).rejected == 1
    assert "1 records were rejected when it was built; delete the folder to try them again" in caplog.text


def test_a_set_that_was_not_built_is_left_alone(world: Path) -> None:
    plans: list[dict[str, Any] | None] = [None, {"features": {}}]
    for plan in plans:
        write_shard(world / "out", 0, [("a", {"json": b"{}"})])
        finish_set(world / "out", 1, plan)
        with pytest.raises(UserError, match="out contains a shard set that was not made by `data build`"):
            build(world)


@pytest.mark.parametrize("lost", ["shards.json", "shards.json shard-000001.json", "shards.json shard-000002.tar"])
def test_what_was_lost_of_a_complete_set_is_made_again(world: Path, lost: str) -> None:
    build(world)
    whole = contents(world / "out")
    for name in lost.split():
        (world / "out" / name).unlink()
    kept = {path: path.stat().st_mtime_ns for path in (world / "out").glob("shard-*.tar")}
    build(world)
    assert contents(world / "out") == whole
    assert sum(path.stat().st_mtime_ns == time for path, time in kept.items()) == 6 - lost.count("shard-")


def test_shards_without_a_plan_of_another_build_are_refused(world: Path) -> None:
    build(world)
    (world / "out" / "shards.json").unlink()
    with pytest.raises(UserError, match="out was built with fps 1.0, not 2.0; delete it or name another folder"):
        build(world, fps=2.0)
    (world / "mix.json").write_text((world / "mix.json").read_text().replace("text 3", "text 4"))
    with pytest.raises(UserError, match=r"out was built with another mix\.json"):
        build(world)


@pytest.mark.parametrize(("option", "what"), [("images", "an image"), ("videos", "a video")])
def test_records_of_files_without_their_folder_stop_the_build_at_once(world: Path, option: str, what: str) -> None:
    with pytest.raises(
        UserError, match=rf"^mix\.json record \d+ names {what} \(.*\d\.\w+\): {option} must name the folder of these$"
    ):
        build(world, **{option: None})
    assert not list((world / "out").glob("shard*"))
    assert len(build(world)) == 28


def test_processes_parts_and_one_after_the_other_give_the_same_bytes(world: Path) -> None:
    build(world, "one")
    build(world, "three", workers=3)
    options = Options(world / "images", world / "videos", samples_per_shard=5)
    for task in (2, 0, 3, 1):
        shards = build_part([world / "mix.json"], world / "parts", options, workers=1, task=task, of=4)
        assert (shards is None) == (task != 1)
    assert contents(world / "one") == contents(world / "three") == contents(world / "parts")


def test_options_that_are_impossible_are_refused_before_anything_is_written(world: Path) -> None:
    for task in (4, -1):
        with pytest.raises(UserError, match=f"task={task}: allowed are tasks 0 to 3$"):
            build_part([world / "mix.json"], world / "out", Options(), workers=1, task=task, of=4)
    with pytest.raises(UserError, match="^of=0: allowed are 1 and above$"):
        build_part([world / "mix.json"], world / "out", Options(), workers=1, task=0, of=0)
    with pytest.raises(UserError, match="workers=0"):
        build(world, workers=0)
    assert not (world / "out").exists()


def test_a_folder_that_cannot_be_written_is_named(world: Path) -> None:
    (world / "out").touch()
    with pytest.raises(UserError, match=r"^out=.*out is a file; allowed is a folder"):
        build(world)
    with pytest.raises(UserError, match=r"deeper cannot be written \(Not a directory\)"):
        build(world, "out/deeper")


def test_when_every_record_is_rejected_the_first_reason_is_reported(world: Path) -> None:
    records = [{"id": f"i{n}", "image": f"{n}.jpg", "conversations": []} for n in range(7)]
    (world / "mix.json").write_text(json.dumps(records))
    with pytest.raises(
        UserError, match=r"none of the 7 records can be used, as i\d \(mix\.json record \d\): no conversation; delete"
    ):
        build(world)
    assert not (world / "out" / "shards.json").exists()


def test_one_shard_may_have_nothing_but_rejected_records(world: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = [json.loads(build(world, "all").read_record(i))["id"] for i in range(28)]
    records = json.loads((world / "mix.json").read_text())
    for record in records:
        if record["id"] in expected[5:10]:
            del record["conversations"]
    (world / "mix.json").write_text(json.dumps(records))
    caplog.set_level(logging.INFO)
    shards = build(world)
    assert (len(shards), shards.num_shards, shards.rejected) == (23, 6, 5)
    found = [json.loads(shards.read_record(i))["id"] for i in range(23)]
    assert found == expected[:5] + expected[10:]
    assert "  5 x no conversation" in caplog.text
    tars = sorted(str(path) for path in shards.folder.glob("*.tar"))
    assert sum(1 for _ in webdataset.WebDataset(tars, shardshuffle=False)) == 23


def test_repeated_and_missing_ids_are_samples_of_their_own(world: Path) -> None:
    talk = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "a"}]
    records = [{"id": "same", "conversations": talk}] * 3 + [{"conversations": talk}] * 2
    (world / "mix.json").write_text(json.dumps(records))
    shards = build(world)
    assert len({shards.key(i) for i in range(5)}) == 5
    ids = [json.loads(shards.read_record(i)).get("id") for i in range(5)]
    assert sorted(ids, key=str) == [None, None, "same", "same", "same"]


@pytest.fixture
def slow(world: Path) -> Path:
    """The same world with pictures that take long enough for a build to be ended in the middle of a shard."""
    records = json.loads((world / "mix.json").read_text())
    picture = Image.open(world / "images" / "coco" / "1.jpg")
    picture.resize((3000, 2000)).save(world / "images" / "large.jpg", quality=95)
    for record in records:
        if "image" in record:
            record["image"] = "large.jpg"
    (world / "mix.json").write_text(json.dumps(records))
    return world


def start(world: Path, out: str, *more: str) -> subprocess.Popen[str]:
    """The command in a process group of its own."""
    folders = ["--images", str(world / "images"), "--videos", str(world / "videos"), "--out", str(world / out)]
    arguments = [str(world / "mix.json"), *folders, "--samples-per-shard", "4", *more]
    return subprocess.Popen(
        [sys.executable, "-m", "llava_mini", "data", "build", *arguments],
        start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def await_work(folder: Path, process: subprocess.Popen[str], shards: int) -> None:
    """Returns when so many shards are complete and another one is being written, or when the process has ended."""
    deadline = time.monotonic() + 60
    while process.poll() is None and not (
        len(list(folder.glob("shard-*.json"))) >= shards and list(folder.glob(".llava-mini-*.tmp/*/shard-*.tar"))
    ):
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_a_build_that_is_killed_again_and_again_gives_the_same_bytes(slow: Path) -> None:
    build(slow, "whole", samples_per_shard=4)
    chance = random.Random(0)
    kills = 0
    while True:
        process = start(slow, "killed", "--workers", "2")
        await_work(slow / "killed", process, 2 * kills)
        time.sleep(chance.uniform(0, 0.05))
        if process.poll() is not None:
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        kills += 1
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert kills >= 3
    assert contents(slow / "killed") == contents(slow / "whole")


def _build_and_die(world: Path, name: str, after: bool) -> None:
    replace = os.replace

    def at_last(old: Path, new: Path) -> None:
        if new.name != name or after:
            replace(old, new)
        if new.name == name:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = at_last  # type: ignore[assignment]
    build(world)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("name", ["records.jsonl", "plan.json", "shard-000001.tar", "index.npy", "shards.json"])
def test_a_build_that_is_killed_just_before_or_after_a_file_has_its_name_leaves_nothing_for_ever(
    world: Path, name: str, after: bool
) -> None:
    build(world, "whole")
    process = multiprocessing.get_context("fork").Process(target=_build_and_die, args=(world, name, after))
    process.start()
    process.join(30)
    assert process.exitcode == -signal.SIGKILL and list((world / "out").rglob(".llava-mini-*.tmp/*"))
    build(world)
    assert contents(world / "out") == contents(world / "whole")
    assert not list((world / "out").rglob(".llava-mini-*.tmp"))


def test_parts_in_processes_of_their_own_at_the_same_time_complete_one_set(slow: Path) -> None:
    build(slow, "whole", samples_per_shard=4)
    processes = [start(slow, "parts", "--workers", "1", "--task", str(task), "--of", "3") for task in range(3)]
    told = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert sum("fingerprint" in text for text in told) >= 1
    assert contents(slow / "parts") == contents(slow / "whole")


def test_the_same_build_started_twice_at_the_same_time_completes_one_set(slow: Path) -> None:
    build(slow, "whole", samples_per_shard=4)
    processes = [start(slow, "twice", "--workers", workers) for workers in ("1", "2")]
    told = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told
    assert all("fingerprint" in text for text, _ in told)
    assert contents(slow / "twice") == contents(slow / "whole")


def children(parent: int) -> list[int]:
    """Python processes that a process has started, without multiprocessing's own."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            status = (folder / "stat").read_text().rpartition(")")[2].split()
            command = (folder / "cmdline").read_text()
        except OSError:
            continue
        if int(status[1]) == parent and status[0] != "Z" and "spawn_main" in command:
            found.append(int(folder.name))
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")
@pytest.mark.parametrize("interrupt", [os.kill, os.killpg])  # a script's signal; a terminal's, which all get
def test_ctrl_c_ends_all_processes_and_leaves_nothing_half_written(
    slow: Path, interrupt: Callable[[int, int], None]
) -> None:
    process = start(slow, "out", "--workers", "2")
    await_work(slow / "out", process, 1)
    workers = children(process.pid)
    interrupt(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, "interrupted; repeat the command to continue\n")
    assert len(workers) == 2 and not any(Path(f"/proc/{worker}").exists() for worker in workers)
    names = {path.name for path in (slow / "out").glob("shard-*")}
    assert "shards.json" not in names and {Path(name).stem for name in names if name.endswith(".json")} <= {
        Path(name).stem for name in names if name.endswith(".tar")
    }
    build(slow, "whole", samples_per_shard=4)
    build(slow, "out", samples_per_shard=4)
    assert contents(slow / "out") == contents(slow / "whole")


@pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")
def test_a_worker_that_is_killed_is_reported_and_the_rest_can_be_continued(slow: Path) -> None:
    process = start(slow, "out", "--workers", "2")
    await_work(slow / "out", process, 1)
    os.kill(children(process.pid)[0], signal.SIGKILL)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert re.fullmatch(
        r"llava-mini: the process of shard \d died, killed by SIGKILL \(not enough memory.*Repeat the command.*\n",
        errors,
    )
    done = len(list((slow / "out").glob("shard-*.json")))
    assert 1 <= done < 7 and len(build(slow, "out", samples_per_shard=4)) == 28


def test_every_fault_is_left_out_with_its_reason(
    world: Path, picture: Callable[..., bytes], clip: Callable[..., bytes], caplog: pytest.LogCaptureFixture
) -> None:
    """One file with all that goes wrong in public data, and what is only unusual."""
    talk = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "a"}]
    rotated = Image.Exif()
    rotated[0x0112] = 6
    pictures = {
        "zero.jpg": b"",
        "cut.jpg": picture(1, (200, 200))[:-200],
        "cmyk.jpg": picture(1, mode="CMYK"),
        "palette.png": picture(1, encoding="PNG", mode="P"),
        "animated.gif": picture(1, encoding="GIF", save_all=True, append_images=[Image.new("RGB", (48, 32))]),
        "rotated.jpg": picture(1, exif=rotated),
        "named.jpg": picture(1, encoding="PNG"),
    }
    for name, content in pictures.items():
        (world / "images" / name).write_bytes(content)
    (world / "videos" / "none.mp4").write_bytes(clip(2, rate=1)[:300])
    kept: list[dict[str, Any]] = [
        {"image": "cmyk.jpg", "conversations": talk},
        {"image": "palette.png", "conversations": talk},
        {"image": "animated.gif", "conversations": talk},
        {"image": "rotated.jpg", "conversations": talk},
        {"image": "named.jpg", "conversations": talk},
        {"image": ["named.jpg", "cmyk.jpg"], "conversations": talk},
        {"conversations": [{"from": "gpt", "value": "I begin"}, *talk]},
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "a" * 100_000}]},
        {"conversations": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "a"}]},
    ]
    left_out: dict[str, dict[str, Any]] = {
        "image cannot be decoded: it has no bytes (zero.jpg)": {"image": "zero.jpg", "conversations": talk},
        "image cannot be decoded: ": {"image": "cut.jpg", "conversations": talk},
        "missing image (No such file or directory): gone.jpg": {"image": "gone.jpg", "conversations": talk},
        "image outside of the folder of images: ../mix.json": {"image": "../mix.json", "conversations": talk},
        "missing video (No such file or directory): gone.mp4": {"video": "gone.mp4", "conversations": talk},
        "no video in this file (none.mp4)": {"video": "none.mp4", "conversations": talk},
        "no conversation": {"image": "named.jpg"},
        "an empty answer": {"conversations": [talk[0], {"from": "gpt", "value": ""}]},
        "no answer to a human message": {"conversations": talk[:1]},
        "<image> in a record of text only": {"conversations": [{"from": "human", "value": "<image>"}, talk[1]]},
    }
    lines = [json.dumps({"id": f"good{n}", **record}) for n, record in enumerate(kept)]
    lines += [json.dumps({"id": f"bad{n}", **record}) for n, record in enumerate(left_out.values())]
    lines += ['{"id": "broken", ', "[]"]
    (world / "mix.json").write_text("\n".join(lines))
    caplog.set_level(logging.INFO)
    shards = build(world)
    assert sorted(json.loads(shards.read_record(i))["id"] for i in range(len(shards))) == [f"good{n}" for n in range(9)]
    assert shards.rejected == 12
    rejected: dict[str, str] = {}
    for sidecar in sorted((world / "out").glob("shard-0*.json")):
        rejected |= dict(json.loads(sidecar.read_text())["rejected"])
    for number, reason in enumerate(left_out):
        assert rejected[f"bad{number} (mix.json line {10 + number})"].startswith(reason)
    assert rejected["mix.json line 20"].startswith("not valid JSON (Expecting property name")
    assert rejected["mix.json line 21"] == "not a JSON object"
    assert "rejected  12" in caplog.text and "  2 x image cannot be decoded" in caplog.text
    assert check_set(shards).failure() == ""


def change(world: Path, place: int, **fields: Any) -> None:
    """Changes fields of one record of the world."""
    records = json.loads((world / "mix.json").read_text())
    records[place] |= fields
    (world / "mix.json").write_text(json.dumps(records))


def test_a_strict_build_ends_at_a_record_that_cannot_be_used_before_its_first_shard(world: Path) -> None:
    change(world, 20, image_path="coco/1.jpg")
    with pytest.raises(UserError, match=r"^strict: t0 \(mix\.json record 21\): `image_path` is not read \(files are"):
        build(world, strict=True)
    assert sorted(path.name for path in (world / "out").iterdir()) == [".lock"]
    assert build(world).rejected == 1


@pytest.mark.parametrize("workers", [1, 2])
def test_a_strict_build_ends_at_a_file_that_cannot_be_used_and_continues_when_it_can(world: Path, workers: int) -> None:
    build(world, "whole")
    (world / "images" / "coco" / "7.jpg").rename(world / "7.jpg")
    with pytest.raises(UserError, match=r"^strict: i7 \(mix\.json record 8\): missing image .*coco/7\.jpg"):
        build(world, strict=True, workers=workers)
    assert not (world / "out" / "shards.json").exists() and not list((world / "out").glob(".llava-mini*"))
    (world / "7.jpg").rename(world / "images" / "coco" / "7.jpg")
    build(world, strict=True, workers=workers)
    assert contents(world / "out") == contents(world / "whole")


def test_a_strict_build_does_not_take_up_what_another_one_has_left_out(world: Path) -> None:
    (world / "images" / "coco" / "7.jpg").unlink()
    build(world)
    with pytest.raises(UserError, match=r"^strict: .*out was built without 1 records that were rejected; delete it$"):
        build(world, strict=True)
    (world / "out" / "shards.json").unlink()
    (world / "out" / "shard-000000.json").unlink()
    with pytest.raises(UserError, match=r"^strict: i7 \(mix\.json record 8\): missing image"):
        build(world, strict=True)


def test_keys_that_are_not_read_are_counted_over_all_shards(world: Path, caplog: pytest.LogCaptureFixture) -> None:
    for place in (0, 5, 20, 27):
        change(world, place, score=place + 1)
    change(world, 3, model="x", image="gone.jpg")  # rejected, so that its keys do not matter
    caplog.set_level(logging.INFO)
    shards = build(world, workers=2)
    assert "ignored keys: score (4 records)" in [record.message for record in caplog.records]
    found = check_set(shards)
    assert found.ignored == {"score": 4} and finding_lines(shards, found)[-1] == "ignored keys: score (4 records)"


def test_a_linked_folder_is_read_only_where_that_is_asked_for(world: Path) -> None:
    (world / "images" / "coco").rename(world / "disk")
    (world / "images" / "coco").symlink_to(world / "disk")
    assert build(world, "closed").rejected == 20
    assert len(build(world, follow_links=True)) == 28
    begun = world / "begun"
    build_part([world / "mix.json"], begun, Options(world / "images", world / "videos", follow_links=True),
               workers=1, task=1, of=2)  # fmt: skip
    with pytest.raises(UserError, match="begun was built with follow-links True, not False; delete it"):
        build(world, "begun", samples_per_shard=1000)


def test_neighboring_forms_become_samples_with_their_files(world: Path) -> None:
    """The records of LLaMA-Factory and ms-swift beside LLaVA's, in one file."""
    asked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what"}]}]
    talk = [{"from": "human", "value": "what"}, {"from": "gpt", "value": "it"}]
    records = [
        {"id": "plural", "images": ["coco/1.jpg"], "conversations": talk},
        {"id": "two", "images": ["coco/1.jpg", "coco/2.jpg"], "conversations": talk},
        {"id": "film", "videos": ["0.mp4"], "conversations": talk, "source": "films"},
        {"id": "parts", "images": ["coco/3.jpg"], "messages": [*asked, {"role": "assistant", "content": "it"}]},
        {"id": "swift", "query": "<image>what", "response": "it", "images": "coco/4.jpg"},
        {"id": "alpaca", "instruction": "what", "output": "it", "system": "Be brief."},
        {"id": "far", "images": ["https://host/a.jpg"], "conversations": talk},
    ]
    (world / "mix.json").write_text(json.dumps(records))
    shards = build(world)
    found = {json.loads(shards.read_record(i))["id"]: (shards.modality(i), shards.frames(i)) for i in range(6)}
    assert found == {
        "plural": (Modality.IMAGE, 1), "two": (Modality.IMAGE, 2), "film": (Modality.VIDEO, 2),
        "parts": (Modality.IMAGE, 1), "swift": (Modality.IMAGE, 1), "alpaca": (Modality.TEXT, 0),
    }  # fmt: skip
    assert sorted(shards.index["text_length"].tolist()) == [6, 6, 6, 6, 13, 15]
    assert shards.rejected == 1 and check_set(shards).failure() == ""
    with pytest.raises(UserError, match=r"^mix\.json record 1 names an image \(coco/1\.jpg\): images must name"):
        build(world, "none", images=None)
