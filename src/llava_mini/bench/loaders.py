"""Compared data loaders: the usual loader, plain WebDataset, and our stream. Each makes batches of the same samples.

All turn the same images into 336x336 pixels and tokenize the same conversations with the same tokenizer. All run in
the calling process, so that its CPU time is the cost of a batch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import webdataset as wds
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer

from llava_mini.batch import VLMBatch
from llava_mini.bench.llava_loader import CountedLabels, Labelled, clip_processor, usual_batches
from llava_mini.bench.made_data import RESIZED, MadeData
from llava_mini.data.format.shards import ShardSet
from llava_mini.data.stream.collate import collate
from llava_mini.data.stream.order import ShuffledOrder
from llava_mini.data.stream.pixels import PixelTransform
from llava_mini.data.stream.samples import Sample, SampleReader
from llava_mini.data.stream.stream import BatchLoader, PlannedStream
from llava_mini.data.text.conversation import Conversation, parse_record
from llava_mini.data.text.labels import ConversationTokenizer
from llava_mini.data.text.templates import VICUNA
from llava_mini.token_layout import TokenLayout

BATCH_SIZE = 16
SHUFFLE_BUFFER = 1000  # samples, as in webdataset's documentation
_ENDLESS = 10**9  # batches

Batches = Iterator[Any]
Loader = Callable[[MadeData], Batches]


def own(shards: Path, data: MadeData) -> Iterator[VLMBatch]:
    """Yield batches of our stream from a shard set: global shuffle, uint8 pixels that are normalized on the device."""
    read = ShardSet(shards)
    reader = SampleReader(read, _tokenize(data), transform=PixelTransform(RESIZED))
    stream = PlannedStream([reader], ShuffledOrder([read], seed=0), batch_size=BATCH_SIZE, num_batches=_ENDLESS)
    yield from BatchLoader(stream)


def plain_webdataset(shuffle: int, data: MadeData) -> Batches:
    """Yield batches of WebDataset from the same shards with our decoding; `shuffle` is its buffer (0: stored order)."""
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
    """Return batches of the usual loader over the files in `images`."""
    label = CountedLabels(AutoTokenizer.from_pretrained(str(data.tokenizer)))
    return usual_batches(data, images, label, BATCH_SIZE)


def usual_with_our_labels(images: Path, data: MadeData) -> Iterator[dict[str, Tensor]]:
    """Return batches of the usual loader with our labels, tokenized once: only files and pixels differ from ours."""
    tokenize = _tokenize(data)

    def label(conversation: Conversation) -> Labelled:
        tokens = tokenize(conversation, [1])
        return tokens.input_ids, tokens.labels

    return usual_batches(data, images, label, BATCH_SIZE)


def pixel_difference(data: MadeData, shards: Path, samples: int) -> tuple[float, float]:
    """Return how far our pixels are from the usual loader's, in units of 1/255.

    Args:
        data: Generated data with the original images, which the usual loader reads.
        shards: Shard set from which our pixels are read.
        samples: Number of samples that are compared.

    Returns:
        The largest difference, and the mean.
    """
    processor, transform, read = clip_processor(), PixelTransform(RESIZED), ShardSet(shards)
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
    return ConversationTokenizer(tokenizer, VICUNA, layout=TokenLayout(1, 1), max_length=2048)
