"""Lightning trains on mixes of text, images and videos, and evaluates every sample once, whatever the ranks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from llava_mini.batch import VLMBatch
from llava_mini.data.features.store import FeatureRecipe, FeatureStore
from llava_mini.data.format.shard_set import ShardSet
from llava_mini.data.stream.datamodule import Mix, VLMDataModule
from llava_mini.data.stream.pixels import PixelTransform, normalized
from llava_mini.data.stream.samples import SampleReader
from llava_mini.data.text.labels import ConversationTokenizer
from llava_mini.errors import UserError

MakeModule = Callable[..., VLMDataModule]
MakeMembers = Callable[..., dict[str, bytes]]
NORMALIZE = ([0.5, 0.4, 0.3], [0.25, 0.2, 0.3])

pytestmark = pytest.mark.filterwarnings("ignore:The .*dataloader.* does not have many workers")


class Recorder(LightningModule):
    """Keeps the batches it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.trained: list[VLMBatch] = []
        self.validated: list[VLMBatch] = []

    def training_step(self, batch: VLMBatch, index: int) -> Tensor:
        self.trained.append(batch)
        return self.weight * batch.input_ids.float().mean()

    def validation_step(self, batch: VLMBatch, index: int) -> None:
        self.validated.append(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.fixture
def readers(
    make_shards: Callable[..., ShardSet],
    members: MakeMembers,
    clip: MakeMembers,
    tokenize: ConversationTokenizer,
    to_pixels: PixelTransform,
) -> dict[str, SampleReader]:
    """Sets of one kind each: 8 images, 5 texts, 4 videos of 6 frames of which 3 are shown."""
    text = {i: members(i, [("where is the star", "no")], image=False) for i in range(5)}
    videos = {i: clip(i, 6) for i in range(4)}
    return {
        "images": SampleReader(make_shards(8, name="images"), tokenize, transform=to_pixels),
        "texts": SampleReader(make_shards(5, text, name="texts"), tokenize, transform=to_pixels),
        "videos": SampleReader(make_shards(4, videos, name="videos"), tokenize, transform=to_pixels, max_frames=3),
    }


@pytest.fixture
def module(readers: dict[str, SampleReader]) -> MakeModule:
    """module(**changes): trains on 60 % images, 20 % texts, 20 % videos; validates on all, tests on the videos."""

    def make(**changes: Any) -> VLMDataModule:
        splits = {
            "train": Mix(list(readers.values()), [3, 1, 1]),
            "val": Mix(list(readers.values())),
            "test": Mix([readers["videos"]]),
        }
        arguments: dict[str, Any] = dict(
            splits=splits, batch_size=4, eval_batch_size=5, num_batches=6, normalize=NORMALIZE
        )
        return VLMDataModule(**{**arguments, **changes})

    return make


def keys(batches: Any) -> list[str]:
    return [key for batch in batches for key in batch.keys]


def test_a_mix_of_text_images_and_videos_is_trained_and_validated(
    module: MakeModule, fit: Callable[..., Trainer], tmp_path: Path
) -> None:
    recorder, data = Recorder(), module(batch_size=6, num_workers=1)
    fit(recorder, data, 6, [], val_check_interval=3)
    assert keys(recorder.trained) == keys(data.train_dataloader())
    assert len(recorder.trained) == 6
    counts = torch.cat([batch.num_frames for batch in recorder.trained]).tolist()
    assert set(counts) == {0, 1, 3}
    assert any(len(set(batch.num_frames.tolist())) == 3 for batch in recorder.trained), "all in one batch"
    for batch in recorder.trained:
        assert batch.pixel_values is None or len(batch.pixel_values) == batch.num_frames.sum()
    whole = [f"{name}/{i:02d}" for name, count in (("images", 8), ("texts", 5), ("videos", 4)) for i in range(count)]
    assert keys(recorder.validated) == whole * 2


def test_bytes_travel_and_are_normalized_where_the_model_runs(module: MakeModule, fit: Callable[..., Trainer]) -> None:
    recorder, data = Recorder(), module()
    fit(recorder, data, 6, [], limit_val_batches=0)
    loaded = list(data.train_dataloader())
    assert any(batch.pixel_values is not None for batch in loaded)
    for trained, raw in zip(recorder.trained, loaded, strict=True):
        if raw.pixel_values is None:
            assert trained.pixel_values is None
            continue
        assert raw.pixel_values.dtype == torch.uint8
        assert trained.pixel_values is not None
        assert torch.equal(trained.pixel_values, normalized(raw.pixel_values, *NORMALIZE))


def test_evaluation_passes_over_a_whole_split_ready_for_the_model(module: MakeModule) -> None:
    class Rank:
        global_rank, world_size = 1, 2

    data = module()
    data.trainer = Rank()  # type: ignore[assignment]
    batches = list(data.evaluation_batches("test", "cpu"))
    assert keys(batches) == ["00", "01", "02", "03"]
    assert [batch.pixel_values.dtype for batch in batches if batch.pixel_values is not None] == [torch.float32]
    assert keys(data.test_dataloader()) == [""], "for Lightning it is this rank's part"


@pytest.mark.parametrize("split", ["train", "val"])
def test_ranks_share_every_split(module: MakeModule, split: str) -> None:
    def loader(rank: int, world_size: int, **changes: Any) -> list[list[str]]:
        class Rank:
            global_rank = rank

        Rank.world_size = world_size  # type: ignore[attr-defined]
        data = module(**changes)
        data.trainer = Rank()  # type: ignore[assignment]
        batches = data.train_dataloader() if split == "train" else data.val_dataloader()
        return [batch.keys for batch in batches]

    alone = loader(0, 1, batch_size=4, eval_batch_size=6)
    ranks = [loader(rank, 2, batch_size=2, eval_batch_size=3) for rank in range(2)]
    together = [[key for keys in step for key in keys if key] for step in zip(*ranks, strict=True)]
    assert together == alone


def test_a_pool_is_one_set(module: MakeModule, readers: dict[str, SampleReader]) -> None:
    data = module(splits={"train": Mix(list(readers.values()))}, batch_size=1, num_batches=17)
    sizes = {"images": 8, "texts": 5, "videos": 4}
    whole = [f"{name}/{i:02d}" for name, size in sizes.items() for i in range(size)]
    assert sorted(keys(data.train_dataloader())) == whole


def test_the_plan_is_of_data_weights_and_seed_and_not_of_batches(
    module: MakeModule, readers: dict[str, SampleReader]
) -> None:
    same = {module().plan, module(batch_size=2, num_batches=9, num_workers=1).plan}
    assert len(same) == 1
    sets = list(readers.values())
    mixes = [Mix(sets, [3, 1, 2]), Mix(sets), Mix(sets[:2], [3, 1]), Mix([sets[1], sets[0], sets[2]], [3, 1, 1])]
    others = [module(seed=1).plan, *(module(splits={"train": mix}).plan for mix in mixes)]
    assert len({*same, *others}) == 6


def test_the_seed_orders_training(module: MakeModule) -> None:
    orders = [keys(module(seed=seed).train_dataloader()) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


def test_features_stand_for_pixels(
    readers: dict[str, SampleReader], tmp_path: Path, to_pixels: PixelTransform, tokenize: ConversationTokenizer
) -> None:
    shards = readers["images"].shards
    recipe = FeatureRecipe("mean", (1, 32, 32))
    store = FeatureStore.build(tmp_path / "features", shards, lambda pixels: pixels.float().mean(2), recipe, to_pixels)
    mix = Mix([SampleReader(shards, tokenize, features=store)])
    data = VLMDataModule(splits={"train": mix}, batch_size=4, eval_batch_size=4, num_batches=1, num_workers=1)
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    assert batch.pixel_values is None
    assert batch.image_features is not None
    assert batch.image_features.shape == (4, 1, 32, 32)


def test_a_split_that_was_not_given_is_named(module: MakeModule, readers: dict[str, SampleReader]) -> None:
    data = module(splits={"val": Mix([readers["texts"]])})
    with pytest.raises(UserError, match="data.train=null: this needs a shard set for train"):
        data.train_dataloader()


def test_pixels_without_their_normalizing_are_refused(module: MakeModule) -> None:
    with pytest.raises(ValueError, match="pixels need `normalize`"):
        module(normalize=None)
