"""A plan is what a real step takes, to the byte, for all that torch's operators make."""

from collections.abc import Callable

import pytest
import torch

from llava_mini.plan import fakes
from llava_mini.plan.ledger import CASTS, FROZEN, GRADIENTS, OPTIMIZER, PARTS, QUANTIZED
from llava_mini.plan.planner import Planner
from llava_mini.plan.sample import Sample
from llava_mini.plan.search import largest_batch
from llava_mini.plan.step import Mode

SAMPLE = Sample(text_tokens=40)


@pytest.mark.parametrize("kind", ["full", "lora", "qlora", "qdora"])
@pytest.mark.parametrize(("checkpointing", "size", "half"), [(False, 3, None), (True, 2, torch.bfloat16)])
def test_plan_equals_watched_step(
    stage_of: Callable, watched: Callable, kind: str, checkpointing: bool, size: int, half: torch.dtype | None
) -> None:
    mode = Mode(autocast=half, clip=1.0)
    planner = Planner(stage_of(kind, meta=True, half=half, activation_checkpointing=checkpointing), mode, SAMPLE)
    real = watched(stage_of(kind, meta=False, half=half, activation_checkpointing=checkpointing), mode, SAMPLE, size)
    planned = planner.step(size)
    assert planned.bytes == real.bytes
    assert planned.breakdown == real.breakdown
    assert planner.step(size) == planned  # nothing of the first step is left


def test_breakdown_sums_to_peak_and_names_what_there_is(stage_of: Callable) -> None:
    stage = stage_of("qlora", meta=True, half=torch.bfloat16)
    peak = Planner(stage, Mode(autocast=torch.bfloat16), SAMPLE).step(2)
    assert list(peak.breakdown) == list(PARTS)
    assert sum(peak.breakdown.values()) == peak.bytes
    assert min(peak.breakdown[part] for part in (FROZEN, QUANTIZED, GRADIENTS, OPTIMIZER, CASTS)) > 0


def test_features_from_disk_several_frames_and_turns_are_planned_as_they_run(
    stage_of: Callable, watched: Callable
) -> None:
    sample = Sample(text_tokens=24, frames=3, stored_features=True, independent_turns=True)
    planned = Planner(stage_of("full", meta=True), Mode(), sample).step(2)
    assert planned.bytes == watched(stage_of("full", meta=False), Mode(), sample, 2).bytes


def test_a_batch_of_several_in_a_step_is_planned_as_it_runs(stage_of: Callable, watched: Callable) -> None:
    mode = Mode(clip=1.0, accumulate=2)
    peak = Planner(stage_of("lora", meta=True), mode, SAMPLE).step(2)
    assert peak.bytes == watched(stage_of("lora", meta=False), mode, SAMPLE, 2).bytes
    alone = Planner(stage_of("lora", meta=True), Mode(clip=1.0), SAMPLE).step(2)
    assert peak.bytes <= alone.bytes + peak.breakdown[GRADIENTS]  # those of the batch before it, scaled in place


def test_8_bit_state_is_as_bitsandbytes_makes_it(stage_of: Callable, watched: Callable) -> None:
    planned = Planner(stage_of("lora", meta=True, optimizer="adamw_8bit"), Mode(), SAMPLE).step(1)
    real = watched(stage_of("lora", meta=False, optimizer="adamw_8bit"), Mode(), SAMPLE, 1)
    # bitsandbytes keeps two tables of 256 float32 besides, one for each moment, which all parameters share
    assert real.breakdown[OPTIMIZER] - planned.breakdown[OPTIMIZER] in (0, 2048)


def test_paged_state_lies_in_host_memory(stage_of: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fakes, "PAGED_FROM", 5000)
    kept = Planner(stage_of("full", meta=True, optimizer="adamw_8bit"), Mode(), SAMPLE).step(1)
    paged = Planner(stage_of("full", meta=True, optimizer="paged_adamw_8bit"), Mode(), SAMPLE)
    paged.use("paged_adamw_8bit")
    peak = paged.step(1)
    stage_parameters = [p for p in paged.stage.parameters() if p.requires_grad]
    large = [p.numel() for p in stage_parameters if p.numel() >= 5000]
    assert peak.host_bytes == 2 * sum(large) > 0
    assert peak.breakdown[OPTIMIZER] < kept.breakdown[OPTIMIZER]


def test_offloaded_tower_counts_only_while_it_encodes(stage_of: Callable) -> None:
    kept = Planner(stage_of("full", meta=True), Mode(), SAMPLE).step(2)
    away = Planner(stage_of("full", meta=True, offload_vision=True), Mode(), SAMPLE).step(2)
    assert away.host_bytes == kept.breakdown[FROZEN] - away.breakdown[FROZEN] > 0
    assert away.bytes == kept.bytes - away.host_bytes


def test_cache_grows_with_new_tokens(stage_of: Callable) -> None:
    def peak(new_tokens: int) -> int:
        return Planner(stage_of("full", meta=True), Mode(), Sample(text_tokens=8)).answer(2, new_tokens).bytes

    # two moments of three layers, 128 wide, of two samples, in float32; the last layer's is there twice when it grows
    assert peak(3000) - peak(2000) == pytest.approx(2 * 3 * 128 * 4 * 2 * 1000 * 1.5, rel=0.02)


def test_dropout_keeps_bytes_on_a_gpu(stage_of: Callable) -> None:
    on_cpu = Planner(stage_of("lora", meta=True), Mode(), SAMPLE).step(2)
    on_gpu = Planner(stage_of("lora", meta=True), Mode(on_gpu=True), SAMPLE).step(2)
    assert on_gpu.bytes < on_cpu.bytes


def test_what_works_in_portions_does_not_mislead_the_search(stage_of: Callable, watched: Callable) -> None:
    """Chunks of the loss and portions of the tower grow up to their size only, so the peak is no straight line."""
    bent = {"loss_chunk": 32, "vision_batch": 3}
    planner = Planner(stage_of("full", meta=True, **bent), Mode(), SAMPLE)
    peaks = {size: planner.step(size).bytes for size in range(1, 8)}
    for limit in range(min(peaks.values()), peaks[7], (peaks[7] - peaks[1]) // 40):
        expected = max(size for size, peak in peaks.items() if peak <= limit)
        assert largest_batch(peaks.__getitem__, limit, 4, 7) == expected
    real = watched(stage_of("full", meta=False, **bent), Mode(), SAMPLE, 5)
    assert peaks[5] == real.bytes
