"""A training step in parts, for every way that is compared: transformers' LLaVA in a plain loop, and ours.

A way makes a batch from shards, runs the model forward and backward, clips the gradients and updates the weights with
AdamW. The ways share the weights of the vision tower (frozen), projector, language model and pre-fusion. So a large
shape needs memory for one model and for the states of two optimizers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from llava_mini.batch import VLMBatch
from llava_mini.bench.made_data import make_data
from llava_mini.bench.subjects import OURS, TRANSFORMERS, UNCOMPRESSED, Models, changed, mid_size, on_meta
from llava_mini.bench.timing import Trial
from llava_mini.config import resolve
from llava_mini.data.features.store import FeatureRecipe, FeatureStore
from llava_mini.data.format.shard_set import ShardSet
from llava_mini.data.stream.datamodule import Mix, VLMDataModule
from llava_mini.data.stream.pixels import PixelTransform, normalized
from llava_mini.data.stream.samples import SampleReader
from llava_mini.data.text.labels import ConversationTokenizer, Turns
from llava_mini.data.text.templates import VICUNA, ConversationTemplate, template_named
from llava_mini.data.toyworld.make import make_world
from llava_mini.data.toyworld.tokenizer import build_tokenizer
from llava_mini.models import LlavaMiniConfig, LlavaMiniForConditionalGeneration
from llava_mini.models.compressors import build_compressor
from llava_mini.models.configuration import PARTS as MODEL_PARTS
from llava_mini.models.image_processor import build_image_processor
from llava_mini.models.tokenizer import load_tokenizer
from llava_mini.stages.optimizers import build_optimizer

DATA, FORWARD, BACKWARD, OPTIMIZER = PARTS = ("data", "forward", "backward", "optimizer")
SIDES = (1, 4)  # C of the query compressor
QUERY = {side: f"ours, query C={side}" for side in SIDES}
STORED = f"{QUERY[1]}, stored features"
WAYS = (TRANSFORMERS, UNCOMPRESSED, *QUERY.values(), STORED)

_RATE = 1e-5  # small, because what is learned does not matter but weights must stay finite
_CLIP = 1.0
_ENDLESS = 10**9  # batches
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Shape:
    """Model and samples of the training steps."""

    name: str  # in tables
    config: LlavaMiniConfig  # with query compression, C=1, and pre-fusion; the placeholder id is in the vocabulary
    shards: ShardSet  # as many samples as a batch, so that every step reads the same ones
    tokenizer: PreTrainedTokenizerBase
    template: ConversationTemplate
    turns: Turns  # transformers' LLaVA always reads one conversation


def tiny(folder: Path, samples: int | None = None) -> Shape:
    """Return the toy world as `make sweep` trains it: its model, and one batch of its samples, put into a folder."""
    spec = resolve(["recipe=tiny"])
    model, data, tokenizer = spec.model, spec.data, build_tokenizer()
    assert isinstance(data.template, str)
    template = template_named(data.template)
    config = LlavaMiniConfig(
        vision_config=model.vision_config,
        text_config={**model.text_config, "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id},
        image_token_id=tokenizer.get_vocab()[template.image_token],
        vision_feature_layer=model.vision_feature_layer,
        compressor=spec.compressor.spec(),
        num_fusion_layers=spec.fusion.num_layers,
        **asdict(spec.order),
    )
    name = str(data.splits["train"])
    world = make_world(folder, seed=0, sizes={name: samples or data.batch_size})
    return Shape("toy world", config, ShardSet(world / name), tokenizer, template, data.turns)


def mid(folder: Path, config: LlavaMiniConfig | None = None, samples: int = 2) -> Shape:
    """Return the shape of `bench latency`, with generated JPEGs and conversations like LLaVA's instruction mix."""
    data = make_data(folder, samples)
    tokenizer = load_tokenizer(str(data.tokenizer))
    config = mid_size() if config is None else config
    config.image_token_id = tokenizer.get_vocab()[VICUNA.image_token]
    return Shape("mid-size", config, ShardSet(data.shards), tokenizer, VICUNA, "conversation")


class Step:
    """A training step of one way, in parts that are called in turn.

    The optimizer may have parameters of other ways too: it skips them, as they have no gradient. `batches` never end,
    and `inputs` makes the model's arguments of a batch.
    """

    def __init__(
        self,
        way: str,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        batches: Iterator[VLMBatch],
        inputs: Callable[[VLMBatch], dict[str, Tensor]],
    ):
        self.way, self.model, self.optimizer = way, model, optimizer
        self._batches, self._inputs = batches, inputs
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.make_batch()

    def make_batch(self) -> None:
        """Read the samples and turn them into tensors."""
        self.inputs = self._inputs(next(self._batches))

    def forward(self) -> None:
        """Run the forward pass up to the loss."""
        self.loss: Tensor = self.model(**self.inputs).loss

    def backward(self) -> None:
        """Run the backward pass down to the gradients."""
        self.loss.backward()

    def update(self) -> None:
        """Clip the gradients, update the weights and clear the gradients."""
        nn.utils.clip_grad_norm_(self.parameters, _CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def trials(self) -> list[Trial]:
        """Return one trial for each of `PARTS`, in their order."""
        runs = (self.make_batch, self.forward, self.backward, self.update)
        return [Trial(self.way, part, run, self.samples) for part, run in zip(PARTS, runs, strict=True)]

    @property
    def samples(self) -> int:
        """Number of samples in a batch."""
        return len(self.inputs["input_ids"])

    @property
    def tokens(self) -> int:
        """Length of the language model's sequences, including padding and image placeholders."""
        return self.inputs["input_ids"].shape[1]


def build_steps(shape: Shape, folder: Path) -> list[Step]:
    """Return a step for each of `WAYS`, with random weights; features are stored in a folder."""
    models = Models(shape.config, _CPU, torch.float32)
    wider = _another(models.mini, SIDES[1])
    for model in (models.mini, wider, models.plain, models.llava):
        model.train().requires_grad_(True)
    models.mini.vision_tower.eval().requires_grad_(False)
    ours = _trained(models.mini, wider)
    optimizer = build_optimizer("adamw", [{"params": ours, "lr": _RATE}], (0.9, 0.999), _CPU, fused=True)
    theirs = torch.optim.AdamW(_trained(models.llava), lr=_RATE)
    mini, plain = models.of(OURS), models.of(UNCOMPRESSED)
    patches = _batches(shape, plain)
    return [
        Step(TRANSFORMERS, models.of(TRANSFORMERS), theirs, patches, _as_transformers_reads_it),
        Step(UNCOMPRESSED, plain, optimizer, patches, VLMBatch.model_inputs),
        Step(QUERY[SIDES[0]], mini, optimizer, _batches(shape, mini), VLMBatch.model_inputs),
        Step(QUERY[SIDES[1]], wider, optimizer, _batches(shape, wider), VLMBatch.model_inputs),
        Step(STORED, mini, optimizer, _batches(shape, mini, _features(shape, mini, folder)), VLMBatch.model_inputs),
    ]


def _another(mini: LlavaMiniForConditionalGeneration, side: int) -> LlavaMiniForConditionalGeneration:
    """Return a model with another C that shares everything but the compressor."""
    spec = {**mini.config.compressor, "C": side}
    model = on_meta(changed(mini.config, compressor=spec))
    for part in (name for name in MODEL_PARTS if name != "compressor"):
        setattr(model, part, mini.get_submodule(part))
    dim = mini.config.vision_config if mini.config.compress_before_projection else mini.config.text_config
    model.compressor = build_compressor(spec, dim.hidden_size, mini.side)
    return model


def _trained(*models: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that train; those that several models share are listed once."""
    found = {id(p): p for model in models for p in model.parameters() if p.requires_grad}
    return list(found.values())


def _as_transformers_reads_it(batch: VLMBatch) -> dict[str, Tensor]:
    """Return the inputs of transformers' LLaVA: one conversation per sample, one view per image."""
    assert batch.pixel_values is not None
    return {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
        "labels": batch.labels,
        "pixel_values": batch.pixel_values[:, 0],
    }


def _batches(
    shape: Shape, model: LlavaMiniForConditionalGeneration, features: FeatureStore | None = None
) -> Iterator[VLMBatch]:
    """Yield batches as our training runs make them, ready for the model."""
    tokenize = ConversationTokenizer(
        shape.tokenizer, shape.template, turns=shape.turns, layout=model.layout, max_length=2048
    )
    transform = _transform(shape) if features is None else None
    reader = SampleReader(shape.shards, tokenize, transform=transform, features=features)
    module = VLMDataModule(
        splits={"train": Mix([reader])},
        batch_size=len(shape.shards),
        eval_batch_size=1,
        num_batches=_ENDLESS,
        normalize=_normalize(shape),
    )
    batches: Iterable[VLMBatch] = module.train_dataloader()
    for batch in batches:
        yield module.on_after_batch_transfer(batch, 0)


def _features(shape: Shape, model: LlavaMiniForConditionalGeneration, folder: Path) -> FeatureStore:
    """Store the vision tower's features of all samples in files."""
    recipe = FeatureRecipe("bench", (1, model.side**2, model.config.vision_config.hidden_size), "float32")

    def encode(pixels: Tensor) -> Tensor:
        return model.encode(normalized(pixels, *_normalize(shape)))

    return FeatureStore.build(folder, shape.shards, encode, recipe, _transform(shape))


def _transform(shape: Shape) -> PixelTransform:
    return PixelTransform.from_image_processor(build_image_processor(shape.config.vision_config))


def _normalize(shape: Shape) -> tuple[list[float], list[float]]:
    processor = build_image_processor(shape.config.vision_config)
    return processor.image_mean, processor.image_std
