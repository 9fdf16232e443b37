"""What a quantised cache costs in answers: validation questions with the cache in full precision, 8 and 4 bits.

    python experiments/006-efficiency/kv_bits.py RUN ... [--questions 480]

RUN is the folder of a run with independent turns (config.yaml, model/). Of every question the whole prompt but its last
token is frozen, image tokens and instruction alike, which is more than a session freezes; the answer is then decoded
greedily. Writes kv_bits.md beside this file.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llava_mini import assembly
from llava_mini.batch import VLMBatch
from llava_mini.config import load
from llava_mini.files import write_text
from llava_mini.inference.cache import SessionCache
from llava_mini.inference.long_context import prefill
from llava_mini.models import LlavaMiniForConditionalGeneration, LlavaMiniProcessor
from llava_mini.run.provenance import git_commit

BITS = (None, 8, 4)
HERE = Path(__file__).parent
TEXT = """\
# A quantised cache on the tiny world

    llava-mini train experiment=tiny_scenes compressor.C=1 run_dir=RUN1
    llava-mini train experiment=tiny_scenes compressor=none fusion.num_layers=0 run_dir=RUN2
    python experiments/006-efficiency/kv_bits.py RUN1 RUN2

Validation questions, asked one by one. All of the prompt but its last token is frozen in the language model's cache
(quantised per token and head; 4 bits: per 64 channels, where there are so many), the answer is decoded greedily. What
rounding costs in a long context, or a language model of billions of weights, is not measured here. Commit {commit}.
"""
Sample = tuple[dict[str, Tensor], Tensor, Tensor, Tensor, list[str]]  # frames, ids, labels, turns, kinds of questions
# Of every question its kind and the right answer's ids; and what was said with each kind of cache.
Asked = tuple[list[str], list[list[int]], dict[int | None, list[list[int]]]]
Question = tuple[str, Tensor, list[int]]  # its kind, the prompt's embeddings [1, T, D], the answer's ids


def samples(batches: Iterator[VLMBatch]) -> Iterator[Sample]:
    """Every sample by itself, without padding."""
    for batch in batches:
        assert batch.pixel_values is not None
        assert batch.turn_ids is not None
        first = 0
        for i, frames in enumerate(batch.num_frames.tolist()):
            seen = {
                "pixel_values": batch.pixel_values[first : first + frames],
                "num_frames": batch.num_frames[i : i + 1],
            }
            if batch.num_views is not None:
                seen["num_views"] = batch.num_views[first : first + frames]
            first += frames
            real = batch.attention_mask[i].bool()
            yield seen, batch.input_ids[i][real], batch.labels[i][real], batch.turn_ids[i][real], batch.kinds[i]


def questions(model: LlavaMiniForConditionalGeneration, batches: Iterator[VLMBatch]) -> Iterator[Question]:
    """Each question as it is asked alone, spliced and fused."""
    given: dict[str, Any] = {}
    decoder = model.language_model
    hook = decoder.register_forward_pre_hook(lambda _module, _args, kwargs: given.update(kwargs), with_kwargs=True)
    for seen, ids, labels, turns, kinds in samples(batches):
        for turn, kind in enumerate(kinds, start=1):
            prompt = ids[((turns == 0) | (turns == turn)) & (labels == -100)][None]
            model(input_ids=prompt, **(seen if len(seen["pixel_values"]) else {}), logits_to_keep=1)
            yield kind, given["inputs_embeds"], labels[(turns == turn) & (labels != -100)].tolist()
    hook.remove()


def answer(
    model: LlavaMiniForConditionalGeneration, embeds: Tensor, bits: int | None, length: int, end: int
) -> list[int]:
    """Greedy answer of at most `length` tokens behind a frozen prompt."""
    cache = SessionCache(model.config, bits)
    prefill(model.language_model, embeds[:, :-1], cache, chunk=embeds.shape[1])
    said: list[int] = []
    token = embeds[:, -1:]
    while len(said) < length and (not said or said[-1] != end):
        logits = model.language_model(inputs_embeds=token, past_key_values=cache).logits
        said.append(int(logits[0, -1].argmax()))
        token = model.get_input_embeddings()(torch.tensor([[said[-1]]]))
    return said


@torch.no_grad()
def ask(run: Path, count: int) -> tuple[Asked, float]:
    """The questions, and the mean length of a prompt."""
    config = load(run / "config.yaml").changed({"data": {"features": False}})  # images, as a user has them
    model = LlavaMiniForConditionalGeneration.from_pretrained(run / "model").eval()
    processor = LlavaMiniProcessor.from_pretrained(run / "model")
    datamodule = assembly.build_datamodule(config, model, processor)
    kinds, right, tokens = [], [], 0
    said: dict[int | None, list[list[int]]] = {bits: [] for bits in BITS}
    asked = questions(model, datamodule.evaluation_batches("val", "cpu"))
    for kind, embeds, expected in islice(asked, count):
        kinds.append(kind)
        right.append(expected)
        tokens += embeds.shape[1]
        for bits in BITS:
            said[bits].append(answer(model, embeds, bits, 2 * len(expected), processor.tokenizer.eos_token_id))
    return (kinds, right, said), tokens / len(kinds)


def table(asked: Asked) -> str:
    """Accuracy, by kind too, and the share of answers that are the same as in full precision."""
    kinds, right, said = asked
    places: dict[str, list[int]] = defaultdict(list)
    for i, kind in enumerate(kinds):
        places[kind].append(i)
    rows = {"all": list(range(len(kinds))), **dict(sorted(places.items()))}
    lines = ["| questions | number | full precision, % | 8 bits | 4 bits | same answer in 8 bits | 4 bits |"]
    lines.append("|---|---|---|---|---|---|---|")
    for name, chosen in rows.items():
        accuracy = [100 * sum(said[bits][i] == right[i] for i in chosen) / len(chosen) for bits in BITS]
        same = [100 * sum(said[bits][i] == said[None][i] for i in chosen) / len(chosen) for bits in BITS[1:]]
        lines.append(f"| {name} | {len(chosen)} | " + " | ".join(f"{x:.1f}" for x in (*accuracy, *same)) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--questions", type=int, default=480)
    options = parser.parse_args()
    text = TEXT.format(commit=git_commit()[:7])
    for run in options.runs:
        asked, tokens = ask(run, options.questions)
        text += f"\n{_title(run)}; {tokens:.0f} tokens a prompt on average:\n\n{table(asked)}\n"
    print(text)
    write_text(HERE / "kv_bits.md", text)


def _title(run: Path) -> str:
    config = LlavaMiniForConditionalGeneration.config_class.from_pretrained(run / "model")
    return f"`{config.compressor['_target_'].rsplit('.', 1)[1]}`, {config.num_fusion_layers} pre-fusion layers"


if __name__ == "__main__":
    main()
