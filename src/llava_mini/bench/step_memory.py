"""Study of the memory of training steps on a GPU, against the plan: real shapes, under the memory of smaller cards.

It needs only torch, transformers (with its dependencies), peft and bitsandbytes, so that it runs on a machine where
nothing else of this project is installed. Weights are random: memory and speed do not depend on them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, cast

import torch
from torch import Tensor, nn

from llava_mini import finetune
from llava_mini.batch import VLMBatch
from llava_mini.bench.processes import NOT_RUN, Measuring, status_of
from llava_mini.bench.report import Report, markdown
from llava_mini.bench.subjects import card_gib, model_config
from llava_mini.bench.timing import elapsed
from llava_mini.finetune.quantization import Linear4bit, nf4_linear
from llava_mini.models import LlavaMiniForConditionalGeneration
from llava_mini.models.initialization import default_dtype
from llava_mini.models.memory_options import apply_memory_options
from llava_mini.plan.fakes import linear_4bit
from llava_mini.plan.ledger import Ledger, Watching
from llava_mini.plan.planner import Planner
from llava_mini.plan.sample import Sample, batch_of
from llava_mini.plan.step import Mode
from llava_mini.settings import Finetune, Lora, conf
from llava_mini.stages.optimizers import build_optimizer
from llava_mini.units import GIB, size_text

log = logging.getLogger("llava_mini")

Result = dict[str, Any]

_IN_FULL = ("projector", "compressor")  # whatever the fine-tuning
CLIP: float = conf("config")["trainer"]["gradient_clip_val"]
_MODEL_OPTIONS = ("activation_checkpointing", "loss_chunk", "vision_batch", "offload_vision")
_DEFAULTS = {name: conf("memory/manual")[name] for name in _MODEL_OPTIONS}
_SAVING = {**_DEFAULTS, "activation_checkpointing": True, "loss_chunk": 1024, "vision_batch": 4}
_WARM_UP, _STEPS = 2, 4


def _finetune(name: str) -> Finetune:
    preset = conf(f"finetune/{name}")
    return Finetune(**{**preset, "lora": preset["lora"] and Lora(**preset["lora"])})


FULL, LORA, QLORA, FROZEN = map(_finetune, ("full", "lora", "qlora", "frozen_llm"))


@dataclass(frozen=True)
class Steps:
    """Training steps of one config."""

    name: str  # in the report
    model: str  # preset of conf/model
    finetune: Finetune
    batch_size: int
    card: str | None = "rtx5090_32gb"  # of conf/hardware: memory and half precision; None: `limit_gib`, bfloat16
    limit_gib: float | None = None  # memory for the process where there is no card; None: all that there is
    optimizer: str = "adamw_8bit"  # as the config's `memory.optimizer`
    memory: Mapping[str, Any] | None = None  # the model's options, as the config's `memory`
    compressor: str = "query"  # file of conf/compressor
    fusion_layers: int | None = None  # N_fusion; None: the config's
    text_tokens: int = 300  # of a sample, without placeholders

    @property
    def limit(self) -> float | None:
        """GiB that the process may use; None: all that there is."""
        return self.limit_gib if self.card is None else card_gib(self.card)

    @property
    def half(self) -> torch.dtype:
        """Type of mixed precision and of frozen weights."""
        name = "bfloat16" if self.card is None else conf(f"hardware/{self.card}")["memory"]["frozen_dtype"]
        return {"bfloat16": torch.bfloat16, "float16": torch.float16}[name]


_7B = "llava_mini_vicuna_7b"
REAL = (
    Steps("7B QLoRA, batch 16 on 32 GB", _7B, QLORA, 16),
    Steps("7B QLoRA in float16, batch 16 on 32 GB (V100's way)", _7B, QLORA, 16, "v100_32gb"),
    Steps("7B QLoRA, batch 8 on 24 GB", _7B, QLORA, 8, "rtx4090_24gb"),
    Steps("7B QLoRA, pre-fusion by LoRA, batch 1 on 12 GB", _7B, replace(QLORA, prefusion="lora"), 1, None, 11.5),
    Steps("7B LoRA, batch 4 on 32 GB", _7B, LORA, 4),
    Steps(
        "7B LLaVA-v1.5 (576 tokens, no pre-fusion), LoRA, batch 1, nothing saved", _7B, LORA, 1, None,
        optimizer="adamw", memory=_DEFAULTS, compressor="none", fusion_layers=0,
    ),
    Steps("7B frozen language model, batch 4 on 32 GB", _7B, FROZEN, 4),
    Steps("8B (Llama-3.1) QLoRA, batch 8 on 32 GB", "llava_mini_llama31_8b", QLORA, 8),
    Steps("0.5B (Qwen2.5) full, batch 4 on 24 GB", "llava_mini_qwen25_0_5b", FULL, 4, "rtx4090_24gb"),
)  # fmt: skip
# The same methods at the size of the tiny model. They show on a CPU that the command works, and nothing about a GPU.
TINY = (
    Steps("tiny QLoRA", "tiny", replace(QLORA, prefusion="lora"), 2, None, text_tokens=40),
    Steps("tiny LoRA", "tiny", LORA, 2, None, text_tokens=40),
    Steps("tiny full", "tiny", FULL, 2, None, optimizer="adamw", memory=_DEFAULTS, text_tokens=40),
)


def study(seconds: float, tiny: bool) -> Iterator[Report]:
    """Measure and plan training steps, with a report after each; `tiny` shapes run on the CPU.

    After `seconds` nothing is started, and what runs is ended.
    """
    end, results = time.monotonic() + seconds, list[Result]()
    for steps in TINY if tiny else REAL:
        results.append({"name": steps.name, "limit_gib": steps.limit, **_both(steps, end, tiny)})
        log.info("%s: %s", steps.name, _line(results[-1]))
        yield report(results)


def _both(steps: Steps, end: float, tiny: bool) -> Result:
    """Measure and plan in parallel processes: the plan needs no GPU."""
    if time.monotonic() >= end:
        return {"status": NOT_RUN}
    running = (Measuring(measured, steps, "cpu" if tiny else "cuda"), Measuring(planned, steps, not tiny))
    (measurement, failed), (plan, why) = (each.results(max(end - time.monotonic(), 1)) for each in running)
    result = {"status": status_of(failed)} if failed else measurement[0]
    return {**result, "plan": status_of(why)} if why else {**plan[0], **result}


class PlainStage(nn.Module):
    """Stage 2 without Lightning: the part of the interface of `VLMStage` that a plan and a step need.

    Its model has its adapters and 4-bit layers in place.
    """

    betas = (0.9, 0.999)

    def __init__(self, model: LlavaMiniForConditionalGeneration, optimizer: str):
        super().__init__()
        self.model, self.optimizer = model, optimizer

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return one group with all trainable parameters."""
        return [{"params": [p for p in self.parameters() if p.requires_grad], "lr": 1e-5, "weight_decay": 0.0}]

    def forward_loss(self, batch: VLMBatch) -> tuple[Tensor, Tensor]:
        """Return loss and logits of a batch."""
        outputs = self.model(**batch.model_inputs())
        return outputs.loss, outputs.logits


def build_stage(steps: Steps, device: torch.device | str, linear_4bit: Linear4bit = nf4_linear) -> PlainStage:
    """Build a stage with random weights: trainable weights in float32, frozen weights in half precision or 4 bits."""
    half, how = steps.half, steps.finetune
    with torch.device(device), default_dtype(half):  # in float32 a 7B model alone would not fit
        model = LlavaMiniForConditionalGeneration(model_config(steps.model, steps.compressor, steps.fusion_layers))
    for part in (*_IN_FULL, *(p for p in ("language_model", "prefusion") if how.of(p) == "full")):
        model.get_submodule(part).float()
    finetune.apply(model, how, compute_dtype=half, frozen_dtype=half, linear_4bit=linear_4bit)
    apply_memory_options(model, **(_SAVING if steps.memory is None else steps.memory))
    stage = PlainStage(model, steps.optimizer).train()
    model.vision_tower.eval()
    return stage


def planned(steps: Steps, on_gpu: bool) -> Result:
    """Return the peak memory that the planner predicts, in bytes and by part; it needs no device."""
    started = time.monotonic()
    stage = build_stage(steps, "meta", linear_4bit)
    mode = Mode(autocast=steps.half, on_gpu=on_gpu, clip=CLIP)
    # PlainStage has all that the planner uses of a stage.
    peak = Planner(cast(Any, stage), mode, Sample(text_tokens=steps.text_tokens)).step(steps.batch_size)
    return {"planned_bytes": peak.bytes, "breakdown": peak.breakdown, "plan_seconds": time.monotonic() - started}


def measured(steps: Steps, device_type: str) -> Result:
    """Return peak memory and speed of real training steps.

    On a GPU, the peak is the allocator's, and the process is limited to the card's memory. On a CPU, the peak is the
    largest sum of all tensors' storages.
    """
    device, ledger = torch.device(device_type), Ledger()
    torch.manual_seed(0)
    if device.type == "cpu":
        with Watching(ledger):
            return _measured(steps, device, ledger)
    if steps.limit is not None:
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, steps.limit * GIB / total), device)
    return _measured(steps, device, ledger)


def _measured(steps: Steps, device: torch.device, ledger: Ledger) -> Result:
    stage = build_stage(steps, device)
    optimizer = build_optimizer(steps.optimizer, stage.parameter_groups(), stage.betas, device)
    scaler = torch.amp.GradScaler(device.type, enabled=steps.half == torch.float16)
    batch = batch_of(stage.model, Sample(text_tokens=steps.text_tokens), steps.batch_size).to(device)
    losses = list[float]()

    def step() -> None:
        """Run one step in Lightning's order: forward, clear, backward, clip, update."""
        with torch.autocast(device.type, dtype=steps.half):
            loss, _ = stage.forward_loss(batch)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_([p for p in stage.parameters() if p.requires_grad], CLIP)
        scaler.step(optimizer)
        scaler.update()
        losses.append(float(loss.detach()))

    for _ in range(_WARM_UP):
        step()
    ledger.begin()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = [elapsed(step, device)[0] for _ in range(_STEPS)]
    return {
        "status": "measured" if all(torch.isfinite(torch.tensor(losses))) else "loss is not finite",
        "peak_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else ledger.peak,
        "samples_per_s": steps.batch_size / median(seconds),
        "step_seconds": seconds,
        "losses": losses,
    }


def report(results: Sequence[Result]) -> Report:
    """Return the report of the results so far: name, limit_gib, status, and what was measured and planned."""
    head = ("trial", "limit, GiB", "peak, GiB", "planned, GiB", "error of the plan", "samples/s")
    complete = all(result["status"] == "measured" for result in results)
    return Report(markdown(head, map(_cells, results)), {"trials": list(results)}, complete=complete)


def _cells(result: Result) -> list[str]:
    limit = "all" if result["limit_gib"] is None else f"{result['limit_gib']:g}"
    plan, peak = result.get("planned_bytes"), result.get("peak_bytes")
    cells = [result["name"], limit, f"{peak / GIB:.2f}" if peak else result["status"]]
    cells.append(f"{plan / GIB:.2f}" if plan else "")
    cells.append(f"{100 * (plan / peak - 1):+.1f} %" if plan and peak else "")
    return [*cells, f"{result['samples_per_s']:.2f}" if peak else ""]


def _line(result: Result) -> str:
    if result["status"] != "measured":
        return str(result["status"])
    plan = result.get("planned_bytes")
    said = f", planned {size_text(plan)} ({100 * (plan / result['peak_bytes'] - 1):+.1f} %)" if plan else ""
    return f"peak {size_text(result['peak_bytes'])}{said}, {result['samples_per_s']:.2f} samples/s"
