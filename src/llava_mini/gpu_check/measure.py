"""Run one trial in this process: memory and speed of its step on a device, or its planned memory without a device."""

from __future__ import annotations

import time
from statistics import median
from typing import Any, cast

import torch

from llava_mini.finetune.packages import require
from llava_mini.gpu_check.setting import PlainStage, build_stage, half_type
from llava_mini.gpu_check.trials import Trial
from llava_mini.plan.fakes import linear_4bit
from llava_mini.plan.ledger import Ledger, Watching
from llava_mini.plan.planner import Planner
from llava_mini.plan.sample import Sample, batch_of
from llava_mini.plan.step import Mode
from llava_mini.stages.optimizers import build_optimizer

_WARM_UP, _STEPS = 2, 4
CLIP = 1.0  # trainer.gradient_clip_val


def planned(trial: Trial, *, on_gpu: bool) -> dict[str, Any]:
    """Return the peak memory that the planner predicts, in bytes and by part; it needs no device."""
    started = time.monotonic()
    stage = build_stage(trial, "meta", linear_4bit)
    mode = Mode(autocast=half_type(trial), on_gpu=on_gpu, clip=CLIP)
    # PlainStage has all that the planner uses of a stage.
    peak = Planner(cast(Any, stage), mode, Sample(text_tokens=trial.text_tokens)).step(trial.batch_size)
    return {"planned_bytes": peak.bytes, "breakdown": peak.breakdown, "plan_seconds": time.monotonic() - started}


def measured(trial: Trial, device: torch.device) -> dict[str, Any]:
    """Return peak memory and speed of real training steps.

    On a GPU, the peak is the allocator's, and the process is limited to the trial's memory. On a CPU, the peak is the
    largest sum of all tensors' storages.
    """
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        if trial.limit_gib is not None:
            torch.cuda.set_per_process_memory_fraction(min(1.0, trial.limit_gib * 2**30 / total), device)
    ledger = Ledger()
    torch.manual_seed(0)
    if device.type == "cuda":
        return _steps(trial, device, ledger)
    with Watching(ledger):
        return _steps(trial, device, ledger)


def _steps(trial: Trial, device: torch.device, ledger: Ledger) -> dict[str, Any]:
    stage = build_stage(trial, device)
    optimizer = build_optimizer(trial.optimizer, stage.parameter_groups(), stage.betas, device)
    scaler = torch.amp.GradScaler(device.type, enabled=trial.half == "float16")
    batch = batch_of(stage.model, Sample(text_tokens=trial.text_tokens), trial.batch_size).to(device)
    seconds, losses = [], []
    for number in range(_WARM_UP + _STEPS):
        if number == _WARM_UP:
            ledger.begin()
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
        started = time.monotonic()
        losses.append(_step(stage, optimizer, scaler, batch, device, trial))
        seconds.append(time.monotonic() - started)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else ledger.peak
    return {
        "status": "measured" if all(torch.isfinite(torch.tensor(losses))) else "loss is not finite",
        "peak_bytes": peak,
        "samples_per_s": trial.batch_size / median(seconds[_WARM_UP:]),
        "step_seconds": seconds[_WARM_UP:],
        "losses": losses,
    }


def _step(
    stage: PlainStage,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    batch: Any,
    device: torch.device,
    trial: Trial,
) -> float:
    """Run one step in Lightning's order (forward, clear, backward, clip, update) and return its loss."""
    with torch.autocast(device.type, dtype=half_type(trial)):
        loss, _ = stage.forward_loss(batch)
    optimizer.zero_grad()
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_([p for p in stage.parameters() if p.requires_grad], CLIP)
    scaler.step(optimizer)
    scaler.update()
    return float(loss.detach())  # waits for the device


def check_packages() -> None:
    """Check, before any trial, that the packages that the trials need are installed.

    Raises:
        UserError: peft or bitsandbytes is missing.
    """
    for package in ("peft", "bitsandbytes"):
        require(package, "training steps")
