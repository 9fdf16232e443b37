"""Planned against measured peaks of training steps: `python experiments/004-memory/calibrate.py`, writes beside itself.

Every config has a process of its own, which trains one step on the CPU after gradients and optimiser state are there.
Measured are the storages that torch makes (`tracked`), and the growth of the process' resident memory to its highest
(`process`), which has all in it that kernels need inside and that malloc does not give back.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from llava_mini import finetune
from llava_mini.bench.processes import fresh, resident_memory, settled_memory
from llava_mini.bench.report import Report, circumstances, markdown
from llava_mini.bench.subjects import conf
from llava_mini.models import LlavaMiniConfig, LlavaMiniForConditionalGeneration
from llava_mini.models.memory_options import apply_memory_options
from llava_mini.plan.fakes import linear_4bit
from llava_mini.plan.ledger import FROZEN, QUANTIZED, TRAINED, Ledger, Watching
from llava_mini.plan.planner import Planner
from llava_mini.plan.sample import Sample, batch_of
from llava_mini.plan.step import Mode, settle, training_step
from llava_mini.settings import FULL, Finetune, Lora
from llava_mini.stages.instruction import InstructionStage
from llava_mini.stages.optimizers import build_optimizer

FOLDER = Path(__file__).parent
VOCAB = 8000
SAMPLE = Sample(text_tokens=64)
LORA = Lora(rank=16, alpha=32, dropout=0.05, dora=False)
FINETUNE = {
    "full": FULL,
    "lora": replace(FULL, language_model="lora", lora=LORA),
    "qlora": Finetune(language_model="lora", prefusion="lora", quantize="nf4", lora=LORA),
}
TRIALS = [
    {"finetune": how, "checkpointing": checkpointing, "batch": batch, "C": side}
    for how in FINETUNE
    for checkpointing, batch, side in ((False, 1, 1), (False, 3, 1), (True, 3, 1), (True, 4, 4))
]


def stage_of(trial: dict[str, Any], *, meta: bool) -> InstructionStage:
    """LLaVA-Mini with pictures of 576 patches, six decoder layers, 384 wide."""
    torch.manual_seed(0)
    config = LlavaMiniConfig(
        vision_config={
            "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 3, "num_attention_heads": 4,
            "patch_size": 14, "image_size": 336,
        },
        text_config={
            "model_type": "llama", "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6,
            "num_attention_heads": 6, "vocab_size": VOCAB,
        },
        image_token_id=VOCAB,
        num_fusion_layers=2,
        compressor={**conf("compressor/query"), "C": trial["C"]},
    )  # fmt: skip
    with torch.device("meta" if meta else "cpu"):
        model = LlavaMiniForConditionalGeneration(config)
    apply_memory_options(model, activation_checkpointing=trial["checkpointing"])
    how = FINETUNE[trial["finetune"]]
    stand_in = {"linear_4bit": linear_4bit} if meta else {}
    finetune.apply(model, how, compute_dtype=torch.float32, frozen_dtype=None, **stand_in)
    rates: dict[str, float | None] = dict.fromkeys(("projector", "compressor", "prefusion", "language_model"), 1e-4)
    return InstructionStage(model=model, learning_rates=rates, finetune=how)


def planned(trial: dict[str, Any]) -> dict[str, Any]:
    """The plan, and the seconds that it took."""
    start = time.monotonic()
    peak = Planner(stage_of(trial, meta=True), Mode(clip=1.0), SAMPLE).step(trial["batch"])
    return {"planned": peak.bytes, "breakdown": peak.breakdown, "plan_seconds": round(time.monotonic() - start, 1)}


def measured(trial: dict[str, Any]) -> dict[str, int]:
    """Peaks of a real step."""
    torch.set_num_threads(1)
    before = settled_memory()
    stage = stage_of(trial, meta=False)
    mode, ledger = Mode(clip=1.0), Ledger(VOCAB)
    for weight in (*stage.parameters(), *stage.buffers()):
        ledger.note(weight, TRAINED if weight.requires_grad else FROZEN)
    for module in stage.modules():
        if type(module).__name__ == "Linear4bit" and type(module).__module__.startswith("bitsandbytes"):
            layer: Any = module
            state = layer.weight.quant_state
            for tensor in (
                layer.weight.data,
                state.absmax,
                state.code,
                state.offset,
                state.state2.absmax,
                state.state2.code,
            ):
                ledger.note(tensor, QUANTIZED)
    optimizer = build_optimizer("adamw", stage.parameter_groups(), stage.betas, torch.device("cpu"))
    with Watching(ledger):
        settle(stage, optimizer, mode, ledger)
        batch = batch_of(stage.model, SAMPLE, trial["batch"])
        ledger.begin()
        training_step(stage, optimizer, batch, mode, ledger)
    return {"tracked": ledger.peak, "process": resident_memory()[1] - before}


def cells(row: dict[str, Any]) -> list[object]:
    """A row of the table."""
    sizes = [f"{row[name] / 2**20:.1f}" for name in ("planned", "tracked", "process")]
    error, ratio = row["planned"] / row["tracked"] - 1, row["planned"] / row["process"]
    flag = "yes" if row["checkpointing"] else "no"
    return [row["finetune"], flag, row["batch"], row["C"], *sizes[:2], f"{error:+.2%}", sizes[2], f"{ratio:.2f}"]


def main() -> None:
    """Run all trials and write results.json and table.md."""
    found = []
    for trial in TRIALS:
        found.append({**trial, **fresh(measured, trial), **fresh(planned, trial)})
        print(json.dumps({key: value for key, value in found[-1].items() if key != "breakdown"}), flush=True)
    head = ("finetune", "checkpointing", "batch", "C", "planned MiB", "tracked MiB", "error", "process MiB", "ratio")
    report = Report(markdown(head, map(cells, found)), {"sample": vars(SAMPLE), "trials": found})
    report.write(FOLDER, ("table.md", "results.json"), circumstances())


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
