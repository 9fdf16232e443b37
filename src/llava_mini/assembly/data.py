"""Build data from a config: shard sets wherever they are, tokens, pixels or stored features, and a run's loaders."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llava_mini.assembly.tokenizer import build_template
from llava_mini.assembly.trainer import num_ranks, uses_gpu
from llava_mini.config import Config
from llava_mini.config.rules import names_a_place, set_names
from llava_mini.data.features.codec import FeatureType
from llava_mini.data.features.store import FEATURES_VERSION, EncodeImages, FeatureRecipe, FeatureStore
from llava_mini.data.format.shard_set import ShardSet
from llava_mini.data.stream.datamodule import Mix, VLMDataModule
from llava_mini.data.stream.order import exact_quotas
from llava_mini.data.stream.pixels import PixelTransform, normalized
from llava_mini.data.stream.samples import SampleReader
from llava_mini.data.text.labels import ConversationTokenizer
from llava_mini.data.toyworld.make import make_world
from llava_mini.errors import UserError, refused
from llava_mini.files import is_url
from llava_mini.media.images import WHITE, color_of
from llava_mini.models import LlavaMiniForConditionalGeneration, LlavaMiniProcessor
from llava_mini.views import NUM_VIEWS

log = logging.getLogger("llava_mini")


def prepare_data(config: Config) -> None:
    """Make the toy world's sets that this config reads and that do not exist yet; a user's own data are left alone."""
    data = config.data
    if data.world_seed is None:
        return
    names = [name for _, name in _all_sets(config) if not names_a_place(name)]
    make_world(data.folder, seed=data.world_seed, sizes={name: data.sizes[name] for name in names})


def with_steps(config: Config) -> Config:
    """Return the config with the optimizer steps that its epochs take, if it does not give steps itself.

    An epoch is as many samples as the training sets have together, each set in its share of the mix.

    Raises:
        UserError: there is no training set, or it cannot be read.
    """
    if config.trainer.max_steps is not None:
        return config
    assert config.trainer.epochs is not None
    if config.data.train is None:
        raise refused("data.train", None, "needed is a shard set, as `llava-mini data build` makes one")
    prepare_data(config)
    samples = sum(len(_shard_set(config, name)) for name in set_names(config.data.train))
    step = config.data.batch_size * num_ranks(config) * config.accumulate
    return config.changed({"trainer": {"max_steps": math.ceil(config.trainer.epochs * samples / step)}})


def build_datamodule(
    config: Config, model: LlavaMiniForConditionalGeneration, processor: LlavaMiniProcessor
) -> VLMDataModule:
    """Build training, validation and test data, with stored features if the config requests them."""
    data, trainer = config.data, config.trainer
    _check_weights(data.splits.get("train"))
    prepare_data(config)
    tokenize = ConversationTokenizer(
        processor.tokenizer,
        build_template(config, processor.tokenizer),
        turns=data.turns,
        layout=processor.layout,
        max_length=data.max_length,
    )
    readers = _readers(config, model, processor, tokenize)
    images = processor.image_processor
    return VLMDataModule(
        splits={
            split: Mix([readers[name] for name in set_names(sets)], _weights(sets))
            for split, sets in data.splits.items()
            if sets is not None
        },
        batch_size=data.batch_size,
        eval_batch_size=data.eval_batch_size,
        num_batches=trainer.steps * config.accumulate,
        seed=config.seed,
        num_workers=data.num_workers,
        normalize=None if data.features else (images.image_mean, images.image_std),
        pin_memory=uses_gpu(config),
        transport=data.worker_transport,
    )


def _all_sets(config: Config) -> Iterator[tuple[str, str]]:
    """Yield split and name of every shard set of the config."""
    for split, sets in config.data.splits.items():
        for name in set_names(sets):
            yield split, name


def _check_weights(sets: str | list[str] | dict[str, float] | None) -> None:
    """Refuse impossible shares at once, and not after data and features were made."""
    if isinstance(sets, dict):
        try:
            exact_quotas(list(sets.values()))
        except UserError as error:
            raise UserError(
                f"data.train={sets}: {error}", key="data.train", value=sets, allowed=error.allowed
            ) from None


def _weights(sets: str | list[str] | dict[str, float]) -> list[float] | None:
    return list(sets.values()) if isinstance(sets, dict) else None


def _readers(
    config: Config,
    model: LlavaMiniForConditionalGeneration,
    processor: LlavaMiniProcessor,
    tokenize: ConversationTokenizer,
) -> dict[str, SampleReader]:
    """Return a reader for every shard set, by name; a set that is in several splits is opened once."""
    data = config.data
    transform = _transform(config, processor)
    readers: dict[str, SampleReader] = {}
    for _, name in _all_sets(config):
        if name in readers:
            continue
        shards = _shard_set(config, name)
        store = _feature_store(config, model, shards, processor) if data.features else None
        readers[name] = SampleReader(
            shards,
            tokenize,
            transform=transform if store is None else None,
            features=store,
            max_frames=data.max_frames,
            shuffle_frames=data.shuffle_frames,
        )
    return readers


def _shard_set(config: Config, name: str) -> ShardSet:
    cache_dir = None if config.data.cache_dir is None else Path(config.data.cache_dir)
    return ShardSet(set_location(config.data.folder, name), cache_dir=cache_dir)


def _transform(config: Config, processor: LlavaMiniProcessor) -> PixelTransform:
    """Return the transform to the pixels that the processor makes."""
    background = color_of(config.data.background)
    return PixelTransform.from_image_processor(processor.image_processor, config.data.views, background)


def set_location(folder: str, name: str) -> str:
    """Return the location of a shard set: a path or URL is used unchanged, a name is a folder in `folder`."""
    return name if names_a_place(name) else f"{folder.rstrip('/')}/{name}"


def _feature_store(
    config: Config, model: LlavaMiniForConditionalGeneration, shards: ShardSet, processor: LlavaMiniProcessor
) -> FeatureStore:
    """Return a shard set's features, computed by the first run that needs them; next to the data or as configured.

    Features that `llava-mini data features` stored in a smaller type are read in that type.
    """
    data = config.data
    if data.features is True and is_url(data.folder):
        raise refused("data.features", True, f"with data.folder={data.folder} name the local folder for features")
    root = Path(data.folder) / "features" if data.features is True else Path(str(data.features))

    def log_shard(shard: int) -> None:
        log.info("features in %s: shard %d of %d", root, shard, shards.num_shards)

    return store_features(config, model, processor, shards, root, "float32", on_shard=log_shard)


def store_features(
    config: Config,
    model: LlavaMiniForConditionalGeneration,
    processor: LlavaMiniProcessor,
    shards: ShardSet,
    root: Path,
    dtype: FeatureType,
    **options: Any,
) -> FeatureStore:
    """Return the features of a shard set, in their own folder in `root`; computed as `dtype` if they do not exist.

    `root` may have features of any number of sets and vision towers. The options are those of `FeatureStore.build`.
    """
    shape = (NUM_VIEWS[config.data.views], model.side**2, model.config.vision_config.hidden_size)
    recipe = FeatureRecipe(tower_fingerprint(config, model), shape, dtype)
    folder = root / recipe.fingerprint(shards)[:16]
    transform = _transform(config, processor)
    with _encoder(config, model, processor) as encode:
        transport = config.data.worker_transport
        return FeatureStore.build(folder, shards, encode, recipe, transform, transport=transport, **options)


@contextmanager
def _encoder(
    config: Config, model: LlavaMiniForConditionalGeneration, processor: LlavaMiniProcessor
) -> Iterator[EncodeImages]:
    """Yield a function from pixels as bytes to features; it uses the GPU if a run of this config would train there."""
    images = processor.image_processor
    device = torch.device("cuda" if uses_gpu(config) else "cpu")

    def encode(pixels: Tensor) -> Tensor:
        return model.encode(normalized(pixels.to(device), images.image_mean, images.image_std))

    model.vision_tower.eval().to(device)
    try:
        yield encode
    finally:
        model.vision_tower.cpu()


def tower_fingerprint(config: Config, model: LlavaMiniForConditionalGeneration) -> str:
    """Return a hash of all that determines features: the vision tower, its weights, the layer read, and the pixels.

    Weights alone are not enough: another activation or number of heads has the same tensors.
    """
    # these say who wrote the config and in which type; the types of the weights are hashed below
    unrelated = {"transformers_version", "_name_or_path", "architectures", "dtype"}
    shape = {key: value for key, value in model.config.vision_config.to_dict().items() if key not in unrelated}
    facts = {
        "version": FEATURES_VERSION,
        "vision_config": shape,
        "layer": model.config.vision_feature_layer,
        "image_processor": config.model.image_processor,
        "views": config.data.views,
    }
    if (background := color_of(config.data.background)) != WHITE:  # which it was before there was a choice
        facts["background"] = background
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, tensor in sorted(model.vision_tower.state_dict().items()):
        digest.update(f"{name} {tensor.dtype}".encode())
        digest.update(tensor.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()
