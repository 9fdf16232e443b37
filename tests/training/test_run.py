"""One run from end to end: its files, resumption after kill -9, a compressor of one's own, bad samples, refusals."""

import json
import logging
import re
import signal
import socket
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.several_ranks import ROOT, Nursery

from llava_mini.cli import main
from llava_mini.config import Config, resolve
from llava_mini.errors import UserError
from llava_mini.stages.base import NonFiniteLossError, VLMStage
from llava_mini.stages.callbacks import Clock
from llava_mini.training.run import assemble, train_run


def history(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "history.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(smoke_in, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing has interrupted."""
    return train_run(resolve(smoke_in(tmp_path_factory.mktemp("finished") / "run")))


def test_a_run_leaves_everything_that_it_promises(finished: Path):
    run_dir = finished
    result = json.loads((run_dir / "result.json").read_text())
    assert result["status"] == "finished"
    assert (result["compressor"], result["C"], result["tokens"], result["n_fusion"], result["seed"]) == (
        "query",
        1,
        1,
        4,
        0,
    )
    assert result["prefill_flops"] > 1e6
    assert result["params"]["vision_tower"] > 300_000
    for split in ("val", "test"):
        answers = np.load(run_dir / f"predictions_{split}.npz")
        assert len(set(answers["key"])) == 16 and len(answers["key"]) > 16 * 7
        assert answers["exact_match"].mean() == pytest.approx(result["accuracy"][split])
        shares, kinds = answers["word_accuracy"], answers["kind"]
        assert result["word_accuracy_by_kind"][split]["objects"] == pytest.approx(shares[kinds == "objects"].mean())
        dense = [shares[kinds == kind].mean() for kind in ("digits", "colors", "objects")]
        assert result["word_accuracy"][split]["dense"] == pytest.approx(np.mean(dense))
        assert set(result["nll"][split]) == {"dense", "one_word"}
    assert set(result["gains"]) == {"dense", "one_word"} and result["gained_last_third"] is not None
    assert result["converged"] == all(gain["converged"] for gain in result["gains"].values())
    assert (result["steps"], result["start"]) == (4, "checkpoints/tiny/stage0, checkpoints/tiny/uncompressed")
    validations = [f"step-{step:06}.npz" for step in (1, 2, 3, 4)]  # a third of four steps is one
    assert sorted(path.name for path in (run_dir / "validation").iterdir()) == validations
    assert [line["step"] for line in history(run_dir)] == [0, 1, 2, 3]
    assert sorted(path.name for path in (run_dir / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]


def test_checkpoints_hold_trained_weights_and_plain_values_only(finished: Path):
    checkpoint = torch.load(finished / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["hyper_parameters"]["learning_rates"]["projector"] == 2e-3
    assert type(checkpoint["hyper_parameters"]["learning_rates"]) is dict
    parts = {name.split(".")[1] for name in checkpoint["state_dict"]}
    assert parts == {"projector", "compressor", "prefusion", "language_model"}


def test_a_finished_run_is_not_repeated_and_another_config_is_refused(smoke_in, finished: Path):
    before = (finished / "result.json").stat().st_mtime_ns
    train_run(resolve(smoke_in(finished)))
    assert (finished / "result.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="another config"):
        train_run(resolve(smoke_in(finished, "seed=1")))


def test_the_saved_model_answers_as_the_trained_one(smoke_in, finished: Path):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    config = resolve(smoke_in(finished))
    model = AutoModelForImageTextToText.from_pretrained(finished / "model")
    processor = AutoProcessor.from_pretrained(finished / "model")
    data = assemble(config.changed({"data": {"features": False}})).datamodule
    batch = next(data.evaluation_batches("val", "cpu"))
    logits = model(**batch.model_inputs()).logits
    predictions = np.load(finished / "predictions_val.npz")
    from llava_mini.stages.metrics import answer_scores

    expected = [score.exact_match for row in answer_scores(logits, batch.labels, batch.turn_ids) for score in row]
    assert expected == predictions["exact_match"][: len(expected)].tolist()
    assert processor.num_image_tokens == model.layout.frame()


def test_features_computed_once_equal_the_tower_in_every_step(smoke):
    config = resolve(smoke())
    direct = assemble(config.changed({"data": {"features": False}}))
    cached = assemble(config)
    a, b = (next(run.datamodule.evaluation_batches("val", "cpu")) for run in (direct, cached))
    assert a.keys == b.keys and b.pixel_values is None
    with torch.no_grad():
        torch.testing.assert_close(direct.model.encode(a.pixel_values), b.image_features)
        torch.testing.assert_close(direct.model(**a.model_inputs()).loss, cached.model(**b.model_inputs()).loss)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_killed_run_resumed_equals_the_uninterrupted_one(smoke, nursery: Nursery, tmp_path: Path, accumulate: int):
    common = ["trainer.max_steps=8", "trainer.checkpoint_every=3", f"trainer.accumulate_grad_batches={accumulate}"]
    common += ["data.batch_size=4", "trainer.val_every=4"]
    whole = train_run(resolve(smoke(*common, f"run_dir={tmp_path / 'whole'}")))
    killed = tmp_path / "killed"
    for lines in (4 * accumulate, 7 * accumulate):
        status, said = nursery.call("train", *smoke(*common, f"run_dir={killed}"), killed_after=lines)
        assert status == -signal.SIGKILL, said
    train_run(resolve(smoke(*common, f"run_dir={killed}")))
    assert history(killed) == history(whole)
    results = [json.loads((folder / "result.json").read_text()) for folder in (whole, killed)]
    assert results[0]["accuracy"] == results[1]["accuracy"]


def from_readme(language: str, word: str) -> str:
    """The README's block of code in `language` that has `word` in it."""
    blocks = re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return next(block for block in blocks if word in block)


def test_a_compressor_of_ones_own_is_two_files_and_no_edit(smoke, nursery: Nursery, tmp_path: Path):
    (tmp_path / "own" / "compressor").mkdir(parents=True)
    (tmp_path / "own" / "max_pool.py").write_text(from_readme("python", "class MaxPoolCompressor"))
    (tmp_path / "own" / "compressor" / "max_pool.yaml").write_text(from_readme("yaml", "max_pool."))
    arguments = smoke("compressor=max_pool", "compressor.C=2", "trainer.max_steps=1", "trainer.val_every=1")
    status, said = nursery.call("--config-dir", str(tmp_path / "own"), "train", *arguments)
    assert status == 0, said
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["compressor"], result["tokens"], result["status"]) == ("max_pool", 4, "finished")


def test_a_non_finite_loss_stops_the_run_and_names_its_samples(smoke, tmp_path: Path):
    config = resolve(smoke("stage.learning_rates.projector=1.0e+30", "trainer.gradient_clip_val=null"))
    with pytest.raises(NonFiniteLossError, match="non_finite_loss.json"):
        train_run(config)
    report = json.loads((tmp_path / "run" / "non_finite_loss.json").read_text())
    assert report["keys"] == history_keys_at(config, report["step"])


def test_a_run_of_an_epoch_fits_its_card_by_itself(finished: Path, smoke, caplog: pytest.LogCaptureFixture):
    """The same samples in the same steps and the same answers, whatever the planner turns on."""
    planned = json.loads((finished / "result.json").read_text())["planned_peak_bytes"]
    length = ["trainer.max_steps=null", "trainer.epochs=1", "trainer.global_batch=16"]  # 64 samples
    card = ["memory=auto", "trainer.accelerator=cpu", f"hardware.memory_gib={0.15 * planned / 2**30}"]
    with caplog.at_level(logging.INFO, "llava_mini"):
        run_dir = train_run(resolve(smoke(*length, *card)))
    (said,) = [line for line in caplog.messages if line.startswith("memory=auto: ")]
    assert "memory.activation_checkpointing=true" in said and "data.batch_size=" in said, said
    found, expected = (json.loads((folder / "result.json").read_text()) for folder in (run_dir, finished))
    assert found["planned_peak_bytes"] <= 0.15 * planned and found["steps"] == 4
    keys = [[key for line in history(folder) for key in line["keys"]] for folder in (run_dir, finished)]
    assert keys[0] == keys[1] and len(history(run_dir)) > len(history(finished))
    assert found["nll"]["val"] == pytest.approx(expected["nll"]["val"], rel=1e-3)
    assert "fit: true" in (run_dir / "config.yaml").read_text()


def history_keys_at(config: Config, step: int) -> list[str]:
    loader = assemble(replace(config, run_dir=config.run_dir + "-again")).datamodule.train_dataloader()
    return next(batch.keys for number, batch in enumerate(loader) if number == step)


def test_after_ctrl_c_the_same_command_continues(smoke, tmp_path: Path, monkeypatch, capsys):
    step, handler = VLMStage.training_step, signal.getsignal(signal.SIGINT)

    def interrupted(stage: VLMStage, batch, batch_idx: int):
        if batch_idx == 3:
            raise KeyboardInterrupt
        return step(stage, batch, batch_idx)

    command = ["train", *smoke()]
    with monkeypatch.context() as patch:
        patch.setattr(VLMStage, "training_step", interrupted)
        assert main(command) == 130
    signal.signal(signal.SIGINT, handler)  # Lightning ignores a second Ctrl-C while it ends
    assert "interrupted; repeat the command to continue" in capsys.readouterr().err
    assert not (tmp_path / "run" / "result.json").exists()
    assert main(command) == 0
    assert [line["step"] for line in history(tmp_path / "run")] == [0, 1, 2, 3]
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "finished"


def test_a_clock_adds_up_attempts_and_counts_its_own_time_only():
    started, clock = time.monotonic(), Clock()
    clock.before = {"seconds": 100.0, "cpu_seconds": 50.0}
    read = clock.read()
    assert 0 <= read["seconds"] - 100.0 <= time.monotonic() - started
    assert time.process_time() > 1.0  # importing took that; it is no part of the run
    assert 0 <= read["cpu_seconds"] - 50.0 < 0.5


def test_shard_sets_of_ones_own_are_read_as_they_are(smoke, tmp_path: Path, world_dir: Path):
    from llava_mini.data.format.shard_set import ShardSet
    from llava_mini.data.format.shards import write_shards
    from llava_mini.data.toyworld.make import toy_sample

    samples = (toy_sample("instruct-val", seed=3, index=index) for index in range(16))
    write_shards(samples, tmp_path / "mine" / "everything")
    splits = ["data.train=everything", "data.val=everything", "data.test=null"]
    own = [f"data.folder={tmp_path / 'mine'}", "data.world_seed=null", *splits]
    run_dir = train_run(resolve(smoke(*own)))
    result = json.loads((run_dir / "result.json").read_text())
    assert set(result["accuracy"]) == {"val"}
    trained_on = {key for line in history(run_dir) for key in line["keys"]}
    shards = ShardSet(tmp_path / "mine" / "everything")
    assert trained_on == {shards.key(index) for index in range(len(shards))}
    assert not (tmp_path / "mine" / "world.json").exists()


def test_a_tracking_server_that_says_nothing_costs_no_run(smoke, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # connections are accepted, and nothing is ever answered
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        caplog.set_level(logging.INFO)
        short = ["trainer.max_steps=2", "trainer.val_every=2"]
        assert main(["train", *smoke("tracking.enabled=true", f"tracking.uri={uri}", *short)]) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["status"], result["mlflow_run_id"]) == ("finished", None)
    assert re.search(rf"\d+ reports wait in {tmp_path / 'run'}; the same command sends them", caplog.text)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("data.val=null", "data.val=null: this needs a shard set for val; there are train, test"),
        ("trainer.max_steps=0", "trainer.max_steps=0: "),
        ("seed=4294967296", "seed=4294967296: "),
        ("data.max_length=3", "validation: none of the split's samples could be read"),
    ],
)
def test_what_no_run_can_be_is_one_line(smoke, tmp_path: Path, capsys, override: str, told: str):
    assert main(["train", *smoke(override)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"llava-mini: {told}")
    assert not (tmp_path / "run" / "result.json").exists()


@pytest.mark.parametrize("devices", [1, 2])
def test_strict_refuses_before_anything_is_written_or_started(smoke, tmp_path: Path, monkeypatch, capsys, devices: int):
    monkeypatch.setattr("llava_mini.commands.train.run_ranks", lambda *_: pytest.fail("ranks were started"))
    on_cpu = ["trainer.accelerator=cpu", f"trainer.devices={devices}"]
    assert main(["train", "--strict", *smoke(*on_cpu, "hardware.memory_gib=0.01")]) == 2
    told = capsys.readouterr().err
    assert told.startswith("llava-mini: does not fit: it needs ") and told.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_run_that_fits_is_trained_with_strict_too(smoke, tmp_path: Path):
    options = ["trainer.max_steps=1", "trainer.val_every=1", "hardware.memory_gib=4"]
    assert main(["train", "--strict", *smoke(*options)]) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["measured_peak_is"].startswith("the growth of the process")
