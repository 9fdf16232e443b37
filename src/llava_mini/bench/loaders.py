"""Compared data loaders: LLaVA-style, plain WebDataset, and our stream. Each makes batches of the same samples.

All turn the same images into 336x336 pixels and tokenize the same conversations with the same tokenizer. All run in
the calling process, so that its CPU time is the cost of a batch.

The LLaVA-style loader does what such training code does for every sample. A map-style data set stores all JSON in
memory. An image is a file that Pillow opens and CLIP's processor turns into floats. Labels come from tokenizing every
round and every question again and counting the tokens.
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
from transformers import AutoTokenizer, CLIPImageProcessorPil, PreTrainedTokenizerBase

from llava_mini.batch import IGNORE, VLMBatch
from llava_mini.bench.made_data import RESIZED, MadeData
from llava_mini.data.format.shard_set import ShardSet
from llava_mini.data.stream.order import ShuffledOrder
from llava_mini.data.stream.pixels import PixelTransform
from llava_mini.data.stream.samples import Sample, SampleReader, collate
from llava_mini.data.stream.stream import BatchLoader, PlannedStream
from llava_mini.data.text.conversation import Conversation, conversation_of, parse_record
from llava_mini.data.text.forms import IMAGE_PLACEHOLDER
from llava_mini.data.text.labels import ConversationTokenizer
from llava_mini.data.text.templates import VICUNA
from llava_mini.token_layout import TokenLayout

BATCH_SIZE = 16
SHUFFLE_BUFFER = 1000  # samples, as in webdataset's documentation
_ENDLESS = 10**9  # batches

Batches = Iterator[Any]
Loader = Callable[[MadeData], Batches]
Labelled = tuple[Tensor, Tensor]  # input_ids [T], labels [T]
Label = Callable[[Conversation], Labelled]


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


def llava_style(images: Path, data: MadeData) -> Iterator[dict[str, Tensor]]:
    """Return batches of the LLaVA-style loader over the files in `images`."""
    label = CountedLabels(AutoTokenizer.from_pretrained(str(data.tokenizer)))
    return _llava_batches(data, images, label)


def llava_with_our_labels(images: Path, data: MadeData) -> Iterator[dict[str, Tensor]]:
    """Return batches of the LLaVA-style loader with our labels, tokenized once: only files and pixels differ."""
    tokenize = _tokenize(data)

    def label(conversation: Conversation) -> Labelled:
        tokens = tokenize(conversation, [1])
        return tokens.input_ids, tokens.labels

    return _llava_batches(data, images, label)


def pixel_difference(data: MadeData, shards: Path, samples: int) -> tuple[float, float]:
    """Return how far our pixels are from the LLaVA-style loader's at most and on average, in units of 1/255."""
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


def _llava_batches(data: MadeData, images: Path, label: Label) -> Iterator[dict[str, Tensor]]:
    """Yield batches of the generated data in random order, endlessly."""
    dataset = _LlavaDataset(data.records, images, label)
    pad = AutoTokenizer.from_pretrained(str(data.tokenizer)).pad_token_id

    def collate(samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        ids = pad_sequence([sample["input_ids"] for sample in samples], batch_first=True, padding_value=pad)
        return {
            "input_ids": ids,
            "attention_mask": ids.ne(pad),
            "labels": pad_sequence([sample["labels"] for sample in samples], batch_first=True, padding_value=IGNORE),
            "pixel_values": torch.stack([sample["pixel_values"] for sample in samples]),
        }

    loader = DataLoader(dataset, BATCH_SIZE, shuffle=True, drop_last=True, collate_fn=collate)
    while True:
        yield from loader


class _LlavaDataset(Dataset[dict[str, Tensor]]):
    def __init__(self, records: Path, images: Path, label: Label) -> None:
        self.records: list[dict[str, Any]] = json.loads(records.read_text())
        self.images, self.label, self.processor = images, label, clip_processor()

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        record = self.records[index]
        with Image.open(self.images / record["image"]) as image:
            pixels = self.processor(image.convert("RGB"), return_tensors="pt")["pixel_values"][0]
        ids, labels = self.label(conversation_of(record))
        return {"input_ids": ids, "labels": labels, "pixel_values": pixels}


class CountedLabels:
    """Labels from counting the tokens of pieces, for the Vicuna template and conversations that begin with an image.

    They are right as long as a piece alone has as many tokens as within the whole text. This is true for the generated
    data (tested).
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.image_id: int = tokenizer.get_vocab()[VICUNA.image_token]

    def __call__(self, conversation: Conversation) -> Labelled:
        text = VICUNA.render(conversation).text
        ids = torch.tensor(self._ids(text))
        labels = ids.clone()
        labels[0] = IGNORE
        place = 1
        for dialogue in text.split(VICUNA.assistant_suffix)[:-1]:
            question = dialogue[: dialogue.index(VICUNA.assistant_prefix) + len(VICUNA.assistant_prefix)]
            # The count also includes the first token, and the space that is a separate token only at a text's end.
            labels[place : place + len(self._ids(question)) - 2] = IGNORE
            place += len(self._ids(dialogue))  # the first token counts for the end token
        return ids, labels

    def _ids(self, text: str) -> list[int]:
        """Return the tokens of the pieces between images, joined by the image token."""
        first, *others = (self.tokenizer(piece)["input_ids"] for piece in text.split(IMAGE_PLACEHOLDER))
        return [*first, *(token for piece in others for token in [self.image_id, *piece[1:]])]


def clip_processor() -> CLIPImageProcessorPil:
    """Return CLIP's own preprocessing for images of 336 pixels."""
    return CLIPImageProcessorPil(size={"shortest_edge": RESIZED}, crop_size={"height": RESIZED, "width": RESIZED})
