"""The usual loader: what LLaVA-style training code does for every sample.

A map-style data set stores the whole JSON in memory. An image is a file that Pillow opens and CLIP's processor turns
into floats. Labels come from tokenizing every round and every question again and counting the tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset
from transformers import AutoTokenizer, CLIPImageProcessorPil, PreTrainedTokenizerBase

from llava_mini.bench.made_data import RESIZED, MadeData
from llava_mini.data.text.conversation import IMAGE_PLACEHOLDER, Conversation, conversation_of
from llava_mini.data.text.labels import IGNORE
from llava_mini.data.text.templates import VICUNA

Labelled = tuple[Tensor, Tensor]  # input_ids [T], labels [T]
Label = Callable[[Conversation], Labelled]


def usual_batches(data: MadeData, images: Path, label: Label, batch_size: int) -> Iterator[dict[str, Tensor]]:
    """Yield batches of the generated data in random order, endlessly.

    Args:
        data: Generated data to read.
        images: Folder of the images.
        label: Function that turns a conversation into token ids and labels.
        batch_size: Number of samples in a batch.
    """
    dataset = _UsualDataset(data.records, images, label)
    pad = AutoTokenizer.from_pretrained(str(data.tokenizer)).pad_token_id

    def collate(samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        ids = pad_sequence([sample["input_ids"] for sample in samples], batch_first=True, padding_value=pad)
        return {
            "input_ids": ids,
            "attention_mask": ids.ne(pad),
            "labels": pad_sequence([sample["labels"] for sample in samples], batch_first=True, padding_value=IGNORE),
            "pixel_values": torch.stack([sample["pixel_values"] for sample in samples]),
        }

    loader = DataLoader(dataset, batch_size, shuffle=True, drop_last=True, collate_fn=collate)
    while True:
        yield from loader


class _UsualDataset(Dataset[dict[str, Tensor]]):
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
