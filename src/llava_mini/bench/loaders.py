"""The contestants: the usual loader, plain WebDataset, and our stream. Each makes batches of the same samples.

All read the same pictures, turn them into 336x336 pixels, and tokenise the same conversations with the same tokenizer;
all work in the calling process, so that its CPU time is what a batch costs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset as wds
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset
from transformers import AutoTokenizer, CLIPImageProcessorPil

from llava_mini.batch import VLMBatch
from llava_mini.bench.made_data import RESIZED, MadeData
from llava_mini.data.collate import collate
from llava_mini.data.conversation import conversation_of, parse_record
from llava_mini.data.labels import IGNORE, ConversationTokenizer
from llava_mini.data.order import ShuffledOrder
from llava_mini.data.pixels import PixelTransform
from llava_mini.data.samples import Sample, SampleReader
from llava_mini.data.shards import ShardSet
from llava_mini.data.stream import BatchLoader, PlannedStream
from llava_mini.data.templates import VICUNA

BATCH_SIZE = 16
SHUFFLE_BUFFER = 1000  # samples, what webdataset's documentation uses
_ENDLESS = 10**9  # batches

Batches = Iterator[Any]
Loader = Callable[[MadeData], Batches]


def own(shards: Path, data: MadeData) -> Iterator[VLMBatch]:
    """Our stream from a shard set: global shuffle, uint8 pixels that the device normalises."""
    read = ShardSet(shards)
    reader = SampleReader(read, _tokenize(data), transform=PixelTransform(RESIZED))
    stream = PlannedStream([reader], ShuffledOrder([read], seed=0), batch_size=BATCH_SIZE, num_batches=_ENDLESS)
    yield from BatchLoader(stream)


def plain_webdataset(shuffle: int, data: MadeData) -> Batches:
    """WebDataset over the same shards with our decoding; `shuffle` samples are held to mix them (0: stored order)."""
    tokenize, transform = _tokenize(data), PixelTransform(RESIZED)

    def sample(members: dict[str, Any]) -> Sample:
        tokens = tokenize(parse_record(members["json"]), [1])
        return Sample(members["__key__"], tokens, [], transform([members["jpg"]]))

    files = [str(path) for path in sorted(data.shards.glob("*.tar"))]
    dataset = wds.WebDataset(files, shardshuffle=len(files) if shuffle else False)
    dataset = dataset.shuffle(shuffle) if shuffle else dataset
    dataset = dataset.map(sample).batched(
        BATCH_SIZE, collation_fn=partial(collate, pad_token_id=tokenize.pad_token_id), partial=False
    )
    while True:
        yield from dataset


def usual(images: Path, data: MadeData) -> Iterator[dict[str, Tensor]]:
    """A map-style data set as LLaVA's training code has it: the whole JSON in memory, a file an image, floats."""
    dataset = _UsualDataset(data.records, images, _tokenize(data))
    loader = DataLoader(dataset, BATCH_SIZE, shuffle=True, drop_last=True, collate_fn=dataset.collate)
    while True:
        yield from loader


class _UsualDataset(Dataset[dict[str, Tensor]]):
    def __init__(self, records: Path, images: Path, tokenize: ConversationTokenizer) -> None:
        self.records: list[dict[str, Any]] = json.loads(records.read_text())
        self.images, self.tokenize = images, tokenize
        self.processor = usual_processor()

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        record = self.records[index]
        with Image.open(self.images / record["image"]) as image:
            pixels = self.processor(image.convert("RGB"), return_tensors="pt")["pixel_values"][0]
        tokens = self.tokenize(conversation_of(record), [1])
        return {"input_ids": tokens.input_ids, "labels": tokens.labels, "pixel_values": pixels}

    def collate(self, samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Texts padded, pictures stacked."""
        pad = self.tokenize.pad_token_id
        ids = pad_sequence([sample["input_ids"] for sample in samples], batch_first=True, padding_value=pad)
        return {
            "input_ids": ids,
            "attention_mask": ids.ne(pad),
            "labels": pad_sequence([sample["labels"] for sample in samples], batch_first=True, padding_value=IGNORE),
            "pixel_values": torch.stack([sample["pixel_values"] for sample in samples]),
        }


def usual_processor() -> CLIPImageProcessorPil:
    """CLIP's own preprocessing for pictures of 336 pixels."""
    return CLIPImageProcessorPil(size={"shortest_edge": RESIZED}, crop_size={"height": RESIZED, "width": RESIZED})


def pixel_difference(data: MadeData, shards: Path, samples: int) -> tuple[float, float]:
    """How far our pixels are from the usual loader's, in 1/255 of a colour.

    Args:
        data: Where the originals lie, which the usual loader reads.
        shards: What ours are read from.
        samples: How many samples are compared.

    Returns:
        The largest difference, and the mean.
    """
    processor, transform, read = usual_processor(), PixelTransform(RESIZED), ShardSet(shards)
    scale = 255 * np.array(processor.image_std)[:, None, None]
    shift = 255 * np.array(processor.image_mean)[:, None, None]
    largest, total = 0.0, 0.0
    for index in range(samples):
        members = read.read(index)
        with Image.open(data.images / json.loads(members["json"])["image"]) as image:
            floats = processor(image.convert("RGB"), return_tensors="np")["pixel_values"][0]
        difference = np.abs(transform([members["jpg"]])[0, 0].numpy() - (floats * scale + shift))
        largest, total = max(largest, float(difference.max())), total + float(difference.mean())
    return largest, total / samples


def _tokenize(data: MadeData) -> ConversationTokenizer:
    tokenizer = AutoTokenizer.from_pretrained(str(data.tokenizer))
    return ConversationTokenizer(tokenizer, VICUNA, num_image_tokens=1, max_length=2048)
