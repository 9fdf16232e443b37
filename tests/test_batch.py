"""A batch moves between devices whole, and survives what Lightning does to batches."""

import torch
from lightning.pytorch.plugins import HalfPrecision
from lightning.pytorch.utilities import move_data_to_device

from llava_mini.batch import BadSample, VLMBatch

BAD = BadSample("b", "shards/shard-000000.tar", "broken", 7)


def batch() -> VLMBatch:
    ids = torch.tensor([[5, 6], [0, 0], [7, 0]])
    return VLMBatch(
        input_ids=ids,
        attention_mask=ids.clamp(max=1),
        labels=torch.tensor([[-100, 6], [-100, -100], [7, -100]]),
        num_frames=torch.tensor([1, 0, 0]),
        pixel_values=torch.ones(1, 1, 3, 4, 4, dtype=torch.uint8),
        image_features=torch.ones(1, 1, 2, 8),
        keys=["a", "b", "c"],
        kinds=[["color"], [], []],
        position=9,
        truncated=1,
        skipped=[BAD],
    )


def test_rows_with_a_label_are_counted() -> None:
    assert (len(batch()), batch().num_supervised()) == (3, 2)


def test_every_tensor_goes_to_the_device_and_all_else_stays() -> None:
    for moved in (batch().to("meta"), move_data_to_device(batch(), torch.device("meta"))):
        assert {tensor.device.type for tensor in moved.model_inputs().values()} == {"meta"}
        assert moved.model_inputs().keys() == batch().model_inputs().keys()
        assert (moved.keys, moved.kinds, moved.skipped) == (["a", "b", "c"], [["color"], [], []], [BAD])
        assert (moved.position, moved.truncated) == (9, 1)


def test_half_precision_leaves_bytes_and_facts_alone() -> None:
    half = HalfPrecision("bf16-true").convert_input(batch())  # as Lightning does with every batch
    assert half.image_features.dtype == torch.bfloat16
    assert half.pixel_values.dtype == torch.uint8
    assert half.skipped == [BAD]
