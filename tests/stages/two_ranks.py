"""Trains a small model on two ranks, on batches that are told for each, and writes what came of it: `FOLDER/RANK.json`.

Arguments: the folder, batches a step, for every batch of each rank what it shows, and the strategy. A batch is `image`,
`text`, `short` (a text with one supervised token instead of three), `bad` (nothing that can be used) or `nan`, or
several of them as one, like `image+short`. Ranks are forked, so that the code is loaded once; there may also be one.
"""

import itertools
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

import torch
from lightning import Callback
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader
from transformers import AutoConfig, CLIPVisionConfig, get_cosine_schedule_with_warmup

from llava_mini import assembly
from llava_mini.batch import VLMBatch
from llava_mini.config import resolve
from llava_mini.models import LlavaMiniConfig, LlavaMiniForConditionalGeneration
from llava_mini.stages.base import NonFiniteLossError
from llava_mini.stages.instruction import InstructionStage

assert get_cosine_schedule_with_warmup  # it loads 800 modules, else in every rank again
torch.set_num_threads(1)
BASE = resolve([])


def model(seed: int) -> LlavaMiniForConditionalGeneration:
    """Four patches, one token an image, one pre-fusion layer."""
    torch.manual_seed(seed)
    shape = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    text = AutoConfig.for_model("llama", vocab_size=32, max_position_embeddings=32, pad_token_id=0, **shape)
    query = {"_target_": "llava_mini.models.compressors.query.QueryCompressor", "C": 1, "num_heads": 2}
    config = LlavaMiniConfig(
        vision_config=CLIPVisionConfig(image_size=12, patch_size=6, **shape), text_config=text, image_token_id=31,
        compressor=query, num_fusion_layers=1, vision_feature_layer=-1,
    )  # fmt: skip
    return LlavaMiniForConditionalGeneration(config)


def batch(kind: str, number: int) -> VLMBatch:
    """Two samples of one image each, or of none."""
    ids = torch.randint(3, 30, (2, 6), generator=torch.Generator().manual_seed(number))
    ids[:, 0] = 31 if kind in ("image", "nan") else 2
    labels = ids.masked_fill(torch.arange(6) < (5 if kind == "short" else 3), -100)
    shown = kind in ("image", "nan")
    return VLMBatch(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        labels=torch.full_like(ids, -100) if kind == "bad" else labels,
        num_frames=torch.full((2,), int(shown)),
        pixel_values=torch.full((2, 1, 3, 12, 12), torch.nan if kind == "nan" else 0.5) if shown else None,
        keys=[f"{kind}-{number}-{i}" for i in range(2)],
        kinds=[[], []],
    )


def joined(batches: list[VLMBatch]) -> VLMBatch:
    """All samples in one batch."""
    pixels = [each.pixel_values for each in batches if each.pixel_values is not None]
    return VLMBatch(
        input_ids=torch.cat([each.input_ids for each in batches]),
        attention_mask=torch.cat([each.attention_mask for each in batches]),
        labels=torch.cat([each.labels for each in batches]),
        num_frames=torch.cat([each.num_frames for each in batches]),
        pixel_values=torch.cat(pixels) if pixels else None,
        keys=[key for each in batches for key in each.keys],
        kinds=[[] for each in batches for _ in each.kinds],
    )


class Gradients(Callback):
    """Notes what the optimizer has been given last."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        given = {name: p.grad for name, p in pl_module.named_parameters() if p.grad is not None}
        self.seen = {n: (g.full_tensor() if isinstance(g, DTensor) else g).tolist() for n, g in given.items()}


def train(folder: Path, accumulate: int, kinds: list[str], ranks: int, strategy: str) -> None:
    """What one rank does."""
    rank = int(os.environ["LOCAL_RANK"])
    rates: dict[str, float | None] = dict.fromkeys(("projector", "compressor", "prefusion", "language_model"), 1e-2)
    seed = 0 if strategy == "fsdp" else rank  # DDP gives all ranks rank 0's weights, FSDP deals those of each
    stage = InstructionStage(model=model(seed), learning_rates=rates, warmup_ratio=0.0, report_dir=folder)
    spec = {
        "max_steps": len(kinds) // accumulate, "accumulate_grad_batches": accumulate, "gradient_clip_val": 1.0,
        "precision": "32-true", "strategy": strategy, "accelerator": "cpu", "devices": ranks, "num_nodes": 1,
        "rank_timeout": 60,
    }  # fmt: skip
    options = {"logger": False, "enable_checkpointing": False, "val_check_interval": None}
    trainer = assembly.make_trainer(BASE.changed({"trainer": spec}), callbacks=[gradients := Gradients()], **options)
    losses: list[float] = []
    stage.log = lambda name, value, **_: losses.append(float(value))  # type: ignore[method-assign]
    error = ""
    try:
        numbers = itertools.count(rank, ranks)  # one rank that trains on all batches of two has the same
        batches = [joined([batch(kind, next(numbers)) for kind in each.split("+")]) for each in kinds]
        trainer.fit(stage, DataLoader(batches, batch_size=None))
    except NonFiniteLossError as stop:
        error = str(stop)
    state = {} if strategy == "fsdp" else stage.model.state_dict()
    weights = {name: tensor.flatten().tolist() for name, tensor in state.items()}
    seen = {"weights": weights, "gradients": gradients.seen, "losses": losses, "error": error}
    (folder / f"{rank}.json").write_text(json.dumps(seen))


def main(folder: Path, accumulate: int, kinds: list[list[str]], strategy: str) -> None:
    """Fork the ranks and wait for them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    os.environ["WORLD_SIZE"] = str(len(kinds))
    pids = []
    for rank in range(len(kinds)):
        pids.append(os.fork())
        if pids[-1] == 0:
            os.environ["LOCAL_RANK"] = str(rank)
            train(folder, accumulate, kinds[rank], len(kinds), strategy)
            os._exit(0)
    for pid in pids:
        if os.waitpid(pid, 0)[1]:
            sys.exit("a rank failed")


for line in sys.stdin:
    main(Path(json.loads(line)[0]), *json.loads(line)[1:])
    print("done", flush=True)
