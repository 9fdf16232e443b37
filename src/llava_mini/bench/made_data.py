"""Generated data for benchmarks: JPEGs with the statistics of photographs, conversations about them, and a tokenizer.

The spectrum of the images falls off as 1/f like that of natural images, with a few flat shapes on top. So they compress
and decode like photographs: 640x480 pixels take about 100 KB. Words are made of syllables, and their frequencies follow
Zipf's law.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from llava_mini.data.building.run import build_set
from llava_mini.data.format.shard_set import ShardSet
from llava_mini.data.text.templates import VICUNA

SIZE = (640, 480)
RESIZED = 336  # pixels of the shorter side

_FIELD = 1024  # pixels per side of the noise fields from which images are cut
_QUALITY = 88
_SPECIAL = ["<s>", "</s>", "<image>", "<pad>"]
_SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprst" for vowel in "aeiou"]


class MadeData:
    """Paths of the generated data in a folder, in the forms that the loaders need."""

    def __init__(self, folder: Path):
        self.records = folder / "records.json"  # one array, as in LLaVA's files
        self.images = folder / "images"
        self.small_images = folder / "images-336"  # the same images with a shorter side of 336 pixels
        self.shards = folder / "shards"
        self.small_shards = folder / "shards-336"  # built with `resize=336`
        self.tokenizer = folder / "tokenizer"


def make_data(folder: Path, count: int) -> MadeData:
    """Generate `count` samples in `folder`, the same ones each time."""
    data = MadeData(folder)
    rng = np.random.default_rng(0)
    _make_images(data.images, count, rng)
    words = ["".join(rng.choice(_SYLLABLES, rng.integers(1, 5))) for _ in range(5000)]
    records = [_record(number, words, rng) for number in range(count)]
    data.records.write_text(json.dumps(records))
    _make_tokenizer(records).save_pretrained(str(data.tokenizer))
    build_set([data.records], out=data.shards, images=data.images)
    _unpack(build_set([data.records], out=data.small_shards, images=data.images, resize=RESIZED), data.small_images)
    return data


def _make_images(folder: Path, count: int, rng: np.random.Generator) -> None:
    folder.mkdir(parents=True)
    luminance = 50 * _field(1.25, rng)
    colors = np.stack([luminance + 15 * _field(1.5, rng) for _ in range(3)], -1).astype(np.float32)
    for number in range(count):
        _drawn(colors, rng).save(folder / f"{number:07d}.jpg", quality=_QUALITY)


def _field(slope: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return noise [1024, 1024] with standard deviation 1 whose amplitude falls with frequency as f^-slope."""
    frequencies = np.hypot(np.fft.fftfreq(_FIELD)[:, None], np.fft.rfftfreq(_FIELD)[None])
    frequencies[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.normal(size=(_FIELD, _FIELD))) / frequencies**slope
    field = np.fft.irfft2(spectrum, s=(_FIELD, _FIELD))
    return np.asarray(field / field.std())


def _drawn(colors: NDArray[np.float32], rng: np.random.Generator) -> Image.Image:
    width, height = SIZE
    top, left = rng.integers(_FIELD - height), rng.integers(_FIELD - width)
    pixels = colors[top : top + height, left : left + width] * rng.uniform(0.8, 1.1) + rng.integers(90, 160, 3)
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(6):
        x, y, radius = rng.integers((0, 0, 8), (width, height, 80)).tolist()
        shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        red, green, blue = rng.integers(0, 256, 3).tolist()
        shape([x - radius, y - radius, x + radius, y + radius], fill=(red, green, blue))
    return image


def _record(number: int, words: list[str], rng: np.random.Generator) -> dict[str, Any]:
    """Return a record with one to five turns of short questions and answers, as in LLaVA's instruction mix.

    Answers have up to 80 words.
    """

    def text(most: int) -> str:
        chosen = np.minimum(rng.zipf(1.3, rng.integers(4, most)), len(words)) - 1
        return " ".join(words[word] for word in chosen)

    conversations = []
    for _ in range(rng.integers(1, 6)):
        conversations += [{"from": "human", "value": f"{text(16)}?"}, {"from": "gpt", "value": f"{text(80)}."}]
    conversations[0]["value"] = "<image>\n" + conversations[0]["value"]
    return {"id": f"{number:07d}", "image": f"{number:07d}.jpg", "source": "made", "conversations": conversations}


def _make_tokenizer(records: list[dict[str, Any]]) -> PreTrainedTokenizerFast:
    """Return a tokenizer with byte-level subwords, like those of language models."""
    texts = [message["value"] for record in records[:2000] for message in record["conversations"]]
    texts += [VICUNA.fixed_text] * len(texts)  # the prompt's words are tokens
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=4000, special_tokens=_SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in _SPECIAL])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def _unpack(shards: ShardSet, folder: Path) -> None:
    """Write the images of a shard set as files with the names in their records."""
    folder.mkdir()
    for index in range(len(shards)):
        members = shards.read(index)
        (folder / json.loads(members["json"])["image"]).write_bytes(members["jpg"])
