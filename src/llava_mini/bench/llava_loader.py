"""The usual loader: what training code in the manner of LLaVA does for every sample.

A map-style data set holds the whole JSON; an image is a file, opened by Pillow and made floats by CLIP's processor;
labels come from tokenising every round and every question once more and counting.
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
from llava_mini.data.conversation import IMAGE_PLACEHOLDER, Conversation, conversation_of
from llava_mini.data.labels import IGNORE
from llava_mini.data.templates import VICUNA

Labelled = tuple[Tensor, Tensor]  # input_ids [T], labels [T]
Label = Callable[[Conversation], Labelled]


def usual_batches(data: MadeData, images: Path, label: Label, batch_size: int) -> Iterator[dict[str, Tensor]]:
    """Batches of the made data in random order.

    Args:
        data: What is read.
        images: Folder of the pictures.
        label: What makes tokens of a conversation.
        batch_size: Samples of a batch.
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
    """Labels by counting the tokens of pieces, for the Vicuna template and conversations that begin with an image.

    Right as long as pieces have as many tokens as they have in the whole, which holds for the made data (tested).
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
            # Counted besides are the first token, and the space that is a token of its own only at the end of a text.
            labels[place : place + len(self._ids(question)) - 2] = IGNORE
            place += len(self._ids(dialogue))  # the first token counts for the end token
        return ids, labels

    def _ids(self, text: str) -> list[int]:
        """Tokens of the pieces between images, with the image's in between."""
        first, *others = (self.tokenizer(piece)["input_ids"] for piece in text.split(IMAGE_PLACEHOLDER))
        return [*first, *(token for piece in others for token in [self.image_id, *piece[1:]])]


def clip_processor() -> CLIPImageProcessorPil:
    """CLIP's own preprocessing for pictures of 336 pixels."""
    return CLIPImageProcessorPil(size={"shortest_edge": RESIZED}, crop_size={"height": RESIZED, "width": RESIZED})
