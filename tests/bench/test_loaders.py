"""The contestants do the same work: the same samples, tokens and pixels."""

import json
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from llava_mini.bench.loaders import (
    BATCH_SIZE,
    Loader,
    llava_style,
    llava_with_our_labels,
    own,
    pixel_difference,
    plain_webdataset,
)
from llava_mini.bench.made_data import MadeData
from llava_mini.data.format.shard_set import ShardSet
from llava_mini.data.stream.pixels import normalized

# CLIP's
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def contestants(data: MadeData) -> dict[str, Loader]:
    return {
        "own": partial(own, data.shards),
        "webdataset": partial(plain_webdataset, 0),
        "webdataset shuffled": partial(plain_webdataset, 20),
        "LLaVA-style": partial(llava_style, data.images),
        "LLaVA-style with our labels": partial(llava_with_our_labels, data.images),
    }


def rows(batch: Any) -> list[tuple[tuple[int, ...], tuple[int, ...], torch.Tensor]]:
    """Tokens, learned tokens and pixels of each sample."""
    fields = batch if isinstance(batch, dict) else batch.__dict__
    found = []
    for ids, mask, labels, pixels in zip(
        *(fields[name] for name in ("input_ids", "attention_mask", "labels", "pixel_values")), strict=True
    ):
        kept = mask.bool()
        found.append((tuple(ids[kept].tolist()), tuple(labels[labels != -100].tolist()), pixels))
    return found


def test_all_loaders_make_the_same_samples(data: MadeData) -> None:
    """Three batches of 16 of 40 samples: nearly every one occurs in two loaders' batches."""
    found = {
        name: {ids: (labels, pixels) for batch in islice(loader(data), 3) for ids, labels, pixels in rows(batch)}
        for name, loader in contestants(data).items()
    }
    ours = found.pop("own")
    assert len(ours) > BATCH_SIZE
    for name, theirs in found.items():
        common = ours.keys() & theirs.keys()
        assert len(common) > BATCH_SIZE, name
        for ids in common:
            assert ours[ids][0] == theirs[ids][0], name
            pixels = theirs[ids][1]
            if pixels.dtype == torch.uint8:
                assert torch.equal(ours[ids][1], pixels)
            else:
                difference = (normalized(ours[ids][1][0], MEAN, STD) - pixels).abs()
                assert difference.max() <= 2.01 / 255 / min(STD)


def test_every_loader_continues_for_ever_with_full_batches(data: MadeData) -> None:
    for loader in contestants(data).values():
        sizes = [len(rows(batch)) for batch in islice(loader(data), 6)]
        assert sizes == [BATCH_SIZE] * 6


def test_only_the_plain_reader_keeps_the_stored_order(data: MadeData) -> None:
    stored = ShardSet(data.shards)
    keys = [stored.key(index) for index in range(BATCH_SIZE)]
    first = {
        name: next(iter(contestants(data)[name](data))).keys for name in ("own", "webdataset", "webdataset shuffled")
    }
    assert first["webdataset"] == keys
    assert first["own"] != keys and first["webdataset shuffled"] != keys


def test_pixels_of_originals_equal_clips_and_those_of_small_pictures_are_near(data: MadeData) -> None:
    largest, mean = pixel_difference(data, data.shards, 8)
    assert 0 < mean < 0.1 and largest < 2.01
    largest, mean = pixel_difference(data, data.small_shards, 8)
    assert 0.5 < mean < 3 and largest > 3


def test_the_usual_loader_reads_the_files(data: MadeData, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=json.loads(data.records.read_text())[0]["image"][:3]):
        next(llava_style(tmp_path, data))
