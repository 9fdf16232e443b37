"""`llava-mini plan` of tiny and of 7B configs: what it prints, what it refuses, and how long it takes."""

import json
import time
from collections.abc import Callable

import pytest

from llava_mini.cli import main
from llava_mini.config import options, resolve
from llava_mini.finetune import num_parameters
from llava_mini.hardware import CUDA_CONTEXT
from llava_mini.plan.memory_options import finetunings
from llava_mini.plan.peaks import Peaks, sample_of
from llava_mini.plan.plans import training_plan
from llava_mini.units import GIB

BIG = ["model=llava_mini_vicuna_7b", "model.weights=random", "hardware=rtx5090_32gb", "data.features=false"]
THIN = ["model.text_config.num_hidden_layers=1", "fusion.num_layers=1", "model.vision_config.num_hidden_layers=2"]
SMALL_CARD = ["hardware.memory_gib=0.75", "trainer.accelerator=gpu", *THIN]


@pytest.fixture
def planned(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """planned("key=value", "--flag", ...): exit status, standard output, standard error."""

    def call(*arguments: str) -> tuple[int, str, str]:
        status = main(["plan", *arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def test_json_is_one_object_with_what_is_promised(planned: Callable) -> None:
    status, out, _ = planned("--json", "data.batch_size=2", "--text-tokens", "20")
    found = json.loads(out)
    assert status == 0
    assert {"peak_bytes", "fits", "largest_batch", "seconds", "breakdown"} <= set(found)
    assert found["peak_bytes"] == sum(found["breakdown"].values()) > 0
    assert found["fits"] is None and found["largest_batch"] is None  # no card is named
    assert found["seconds"] < 20


def test_what_a_tiny_model_takes_is_reported_in_units_that_show_it(planned: Callable) -> None:
    _, out, _ = planned("data.batch_size=1", "--text-tokens", "20", *THIN)
    sizes = [line.split()[-2:] for line in out.splitlines() if line.endswith("iB")]
    assert {unit for _, unit in sizes} >= {"MiB"} and len(sizes) > 5
    assert all(float(size) >= 0.01 for size, _ in sizes)


def test_strict_refuses_in_one_line_what_does_not_fit(planned: Callable) -> None:
    status, out, err = planned("--strict", "data.batch_size=64", "--text-tokens", "200", *SMALL_CARD)
    assert status == 2
    assert "does not fit" in err and "0.62 GiB of it CUDA's context" in err and err.count("\n") == 1
    assert "memory.activation_checkpointing=true" in out


def test_largest_batch_fits_and_one_more_does_not() -> None:
    config = resolve(["trainer.max_steps=1", "data.batch_size=4", *SMALL_CARD])
    sample = sample_of(config, text_tokens=100)
    report = training_plan(config, sample)
    limit, largest = 0.75 * GIB - CUDA_CONTEXT, report.largest_batch
    assert largest is not None and 0 < largest < 1024

    def peak(size: int) -> int:
        whole = config.changed({"data": {"batch_size": size}})
        return training_plan(whole, sample, search=False).peak.bytes

    assert peak(largest) <= limit < peak(largest + 1)


@pytest.mark.parametrize("how", ["full", "lora", "qlora"])
def test_7b_step_is_planned_in_seconds(how: str) -> None:
    config = resolve(["trainer.max_steps=1", f"finetune={how}", "memory.activation_checkpointing=true", *BIG])
    start = time.process_time()
    peak = Peaks(config, sample_of(config, text_tokens=64))(2)
    assert time.process_time() - start < 60  # 10 on a free machine
    weights = sum(peak.breakdown[part] for part in ("frozen_weights", "trained_weights", "quantized_weights"))
    # 6.7 G parameters of the language model in 4, 2 or half a byte, and of pre-fusion 0.8 G, which train, in 4
    expected = {"full": 28.8, "lora": 17.8, "qlora": 8.5}[how] * GIB
    assert weights == pytest.approx(expected, rel=0.05)


def test_inference_counts_the_cache(planned: Callable) -> None:
    status, out, _ = planned("--inference", "--json", "data.batch_size=2", "--new-tokens", "100")
    assert status == 0
    assert json.loads(out)["breakdown"]["optimizer_state"] == 0


@pytest.mark.parametrize(
    "flag", ["--frames=0", "--text-tokens=many", f"--session={2**40 + 1}", f"--session={'9' * 5000}"]
)
def test_flags_are_checked(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["plan", flag])
    name, _, value = flag.partition("=")
    told = f"llava-mini plan: argument {name}: {value}: allowed are whole numbers from 1 to {2**40} (see "
    assert capsys.readouterr().err.startswith(told)


@pytest.mark.parametrize("model", [name for name in options("model") if name not in ("parts", "tiny")])
def test_every_preset_is_planned(model: str) -> None:
    """With its widths and two of its layers; the test above plans a whole one."""
    thin = ["model.text_config.num_hidden_layers=2", "fusion.num_layers=2", f"model={model}", *BIG[1:]]
    config = resolve(["trainer.max_steps=1", "finetune=qlora", "memory.activation_checkpointing=true", *thin])
    peaks = Peaks(config, sample_of(config, text_tokens=32))
    peak = peaks(1)
    # 4 bits a weight, 8 for every 64 weights, 32 for every 64 * 256
    bits = 4 + 8 / 64 + 32 / (64 * 256)
    weights = num_parameters(peaks.planner.model.get_decoder().layers)
    assert peak.breakdown["quantized_weights"] == pytest.approx(bits / 8 * weights, rel=0.01)
    assert sum(peak.breakdown.values()) == peak.bytes


@pytest.mark.parametrize("hardware", options("hardware"))
def test_every_card_is_planned_for(planned: Callable, hardware: str) -> None:
    status, out, _ = planned("--json", f"hardware={hardware}", "data.batch_size=2", "--text-tokens", "20")
    found = json.loads(out)
    assert status == 0
    assert found["fits"] is (None if hardware in ("auto", "cpu") else True)


def test_long_text_is_planned_without_its_masks(planned: Callable) -> None:
    status, out, _ = planned("--json", "data.batch_size=2", "--text-tokens", "100000")  # a mask of 10^10 values
    assert status == 0
    assert json.loads(out)["peak_bytes"] > 2 * 100_000**2


def test_an_estimated_batch_is_as_one_that_is_run() -> None:
    config = resolve(["trainer.max_steps=1"])
    peaks = Peaks(config, sample_of(config, text_tokens=20))
    assert peaks.largest_planned == 1024
    peaks.largest_planned = 20
    estimated = peaks(33)
    run = Peaks(config, peaks.sample)(33)
    assert estimated.bytes == pytest.approx(run.bytes, rel=5e-3)
    assert sum(estimated.breakdown.values()) == estimated.bytes


def test_a_batch_that_is_not_run_is_said_to_be_estimated(planned: Callable) -> None:
    status, out, _ = planned("--json", "data.batch_size=100000", "--text-tokens", "20")
    found = json.loads(out)
    assert status == 0
    assert found["notes"] == ["estimated: a batch of 100000, from smaller ones; up to 1024 are run"]
    assert min(found["breakdown"].values()) >= 0


def test_ways_to_fine_tune_are_offered_for_full_fine_tuning() -> None:
    assert [change.text for change in finetunings(resolve([]))][:2] == ["finetune=lora", "finetune=qlora"]


def test_advice_for_full_fine_tuning_that_does_not_fit_is_true_to_the_byte(planned: Callable) -> None:
    """Each line's figure is what a plan gives of the command line with what it and those above it say."""
    wide = ["model=llava_mini_vicuna_7b", "model.weights=random", "hardware=rtx5090_32gb", "data.batch_size=8"]
    command = [*wide, *THIN, "memory=manual", "trainer.global_batch=null", "finetune=full", "hardware.memory_gib=2.2"]
    status, out, _ = planned("--json", "--text-tokens", "16", *command)
    found = json.loads(out)
    offered = [change["change"] for change in found["changes"]]
    assert status == 0 and not found["fits"]
    assert {"finetune=lora", "finetune=qlora"} <= set(offered) and offered[-1].startswith("data.batch_size=")
    assert found["changes"][-1]["peak_bytes"] + found["outside_bytes"] <= found["memory_bytes"]
    assert found["batch_with_changes"] >= int(offered[-1].split()[0].split("=")[1])
    peaks = [change["peak_bytes"] for change in found["changes"]]
    assert peaks == sorted(set(peaks), reverse=True)  # nothing that saves nothing
    given = dict(item.split("=", 1) for item in command)
    for change in found["changes"]:
        given |= dict(item.split("=", 1) for item in change["change"].split())
        if change["change"].startswith("memory."):
            continue
        config = resolve(["trainer.max_steps=1", *(f"{key}={value}" for key, value in given.items())])
        assert Peaks(config, sample_of(config, 16)).bytes(config.data.batch_size) == change["peak_bytes"]


@pytest.mark.parametrize(("card", "batch"), [(4.55, 8), (4.0, 4)])
def test_auto_chooses_what_fits_and_keeps_the_step(planned: Callable, card: float, batch: int) -> None:
    """Its figure is the plan's of the same choices by hand; a step has as many samples, whatever the batch."""
    wide = ["model=llava_mini_vicuna_7b", "model.weights=random", "hardware=rtx5090_32gb", "finetune=qlora", *THIN]
    asked = [*wide, f"hardware.memory_gib={card}", "data.batch_size=8", "trainer.global_batch=16"]
    status, out, _ = planned("--json", "--text-tokens", "16", *asked)
    found = json.loads(out)
    assert status == 0 and found["fits"] and found["chosen"] and found["batch_size"] <= batch, found
    given = dict(item.split("=", 1) for item in asked)
    for change in found["chosen"]:
        given |= dict(item.split("=", 1) for item in change["change"].split())
    by_hand = resolve(["trainer.max_steps=1", "memory=manual", *(f"{key}={value}" for key, value in given.items())])
    assert Peaks(by_hand, sample_of(by_hand, 16)).bytes(by_hand.data.batch_size) == found["peak_bytes"]
    assert by_hand.accumulate * by_hand.data.batch_size == 16


@pytest.mark.parametrize("command", ["plan", "train"])
def test_strict_needs_a_card(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--strict", "hardware=cpu"]) == 2
    assert "hardware.memory_gib=null" in capsys.readouterr().err


def test_new_tokens_need_an_answer() -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["plan", "--new-tokens", "9"])


def test_a_tokenizer_that_is_not_here_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    elsewhere = ["model=llava_mini_qwen25_0_5b", "model.weights=random", "data.features=false", "finetune=frozen_llm"]
    with caplog.at_level("INFO", "llava_mini"):
        assert main(["plan", "--text-tokens", "8", "data.batch_size=2", *elsewhere, *SMALL_CARD]) == 0
    assert sum("the toy world's takes its place" in line for line in caplog.messages) == 1


def test_a_session_of_ten_thousand_frames_on_24_gb(planned: Callable) -> None:
    status, out, _ = planned("--session", "10000", "model=llava_mini_vicuna_7b", "hardware=rtx4090_24gb", "--json")
    found = {(plan["weights"], plan["bits"]): plan for plan in json.loads(out)}
    assert status == 0 and len(found) == 6
    plain = found["fp16", None]
    assert plain["fits"] and plain["total_bytes"] <= plain["card"] == int(23.5 * GIB)
    assert plain["largest"] > 10_000 and found["NF4", 4]["largest"] > plain["largest"]
    _, out, _ = planned("--session", "20000", "model=llava_mini_vicuna_7b", "hardware=rtx4090_24gb")
    assert "| fp16 | fp16 |" in out and "| no |" in out and "| yes |" in out
    assert "--context 20512 scales it" in out


def test_a_session_counts_the_tokens_of_the_configs_frames(planned: Callable) -> None:
    _, one, _ = planned("--session", "100", "--json", *THIN)
    _, four, _ = planned("--session", "100", "--json", "compressor.C=2", *THIN)
    of_one, of_four = (json.loads(out)[0] for out in (one, four))
    assert of_four["cache_bytes"] > 1.4 * of_one["cache_bytes"]  # 100 and 400 tokens beside a question's
    assert of_one["fits"] is None and of_one["largest"] is None


def test_a_session_that_does_not_fit(planned: Callable) -> None:
    status, out, err = planned("--session", "10000000", "--strict", *SMALL_CARD)
    assert status == 2 and err.count("\n") == 1 and "of 10,000,000 frames" in err and "| no |" in out


def test_a_session_is_no_sample() -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["plan", "--session", "10", "--inference"])
