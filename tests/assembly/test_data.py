"""Config to data: sets by name, place and weight, templates, views; features that belong to one tower."""

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.refusals import refuses

from llava_mini import assembly
from llava_mini.assembly.data import set_location
from llava_mini.config import Config
from llava_mini.data.features.store import FEATURES_VERSION
from llava_mini.data.format.shards import write_shards
from llava_mini.data.stream.datamodule import VLMDataModule
from llava_mini.data.stream.pixels import normalized
from llava_mini.data.text.templates import CHATML, LLAMA3, MISTRAL, TINY, VICUNA, ConversationTemplate

Resolve = Callable[..., Config]
ModelOf = Callable[[dict[str, Any]], Any]


@pytest.fixture
def datamodule_of(model_of: ModelOf) -> Callable[[dict[str, Any]], VLMDataModule]:
    """datamodule_of(config): the config's data."""

    def make(config: dict[str, Any]) -> VLMDataModule:
        model = model_of(config)
        return assembly.build_datamodule(
            config, model, assembly.build_processor(config, model, assembly.build_tokenizer(config))
        )

    return make


def write_set(folder: Path, count: int) -> Path:
    """A set of so many texts, whose keys begin with the folder's name."""
    talk = [{"from": "human", "value": "how many star objects"}, {"from": "gpt", "value": "two"}]
    record = {"json": json.dumps({"id": "0", "conversations": talk}).encode()}
    write_shards([(f"{folder.name}-{number}", record) for number in range(count)], folder)
    return folder


def test_splits_name_sets_pool_them_and_mix_them(config_of: Resolve, datamodule_of: Callable, tmp_path: Path):
    for name, count in (("one", 4), ("two", 6)):
        write_set(tmp_path / "world" / name, count)
    far = write_set(tmp_path / "far", 3)
    splits = [f"data.train={{one: 3, {far}: 1}}", "data.val=[one, two]", f"data.test={far}"]
    data = datamodule_of(config_of("data.world_seed=null", "data.features=false", *splits, "data.batch_size=8"))
    keys = {split: [reader.shards.key(0) for reader in mix.readers] for split, mix in data.splits.items()}
    assert keys == {"train": ["one-0", "far-0"], "val": ["one-0", "two-0"], "test": ["far-0"]}
    assert [data.splits[split].weights for split in ("train", "val", "test")] == [[3.0, 1.0], None, None]
    assert data.splits["train"].readers[1] is data.splits["test"].readers[0]
    assert len([key for batch in data.evaluation_batches("val", "cpu") for key in batch.keys]) == 10
    trained = [key.split("/")[0] for batch in data.train_dataloader() for key in batch.keys]
    assert set(trained) == {"one", "far"}


@pytest.mark.parametrize(
    ("folder", "name", "place"),
    [
        ("data/mine", "train", "data/mine/train"),
        ("data/mine/", "train", "data/mine/train"),
        ("data/mine", "/elsewhere/train", "/elsewhere/train"),
        ("data/mine", "s3://bucket/train", "s3://bucket/train"),
        ("https://host/sets", "train", "https://host/sets/train"),
    ],
)
def test_a_set_is_a_name_a_path_or_a_url(folder: str, name: str, place: str):
    assert set_location(folder, name) == place


def test_pictures_and_clips_are_read_as_the_config_says(config_of: Resolve, datamodule_of: Callable, tmp_path: Path):
    write_set(tmp_path / "world" / "one", 2)
    splits = ["data.train=one", "data.val=one", "data.test=null"]
    own = ["data.world_seed=null", "data.features=false", *splits, "compressor=none", "fusion.num_layers=0"]
    plain = datamodule_of(config_of(*own)).splits["train"].readers[0]
    assert (plain.transform.mode, plain.max_frames, plain.shuffle_frames) == ("square", None, False)
    hd = ["data.views=hd", "data.max_frames=3", "data.shuffle_frames=true"]
    data = datamodule_of(config_of(*own, *hd))
    reader = data.splits["val"].readers[0]
    assert (reader.transform.mode, reader.max_frames, reader.shuffle_frames) == ("hd", 3, True)
    assert reader.tokenize.layout.hd == 4 * reader.tokenize.layout.single_view == 256
    assert data.normalize == (
        pytest.approx([0.481, 0.458, 0.408], abs=1e-3),
        pytest.approx([0.269, 0.261, 0.276], abs=1e-3),
    )


def picture(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8))


def sample_of(question: str, pictures: Sequence[Image.Image], **media: Any) -> dict[str, bytes]:
    """The members of a sample."""
    talk = [{"from": "human", "value": question}, {"from": "gpt", "value": "two"}]
    members = {"json": json.dumps({"id": "0", "conversations": talk, **media}).encode()}
    for number, image in enumerate(pictures):
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        members[f"{number:06d}.png"] = buffer.getvalue()
    return members


def test_high_resolution_images_videos_and_text_are_trained_in_one_batch(
    config_of: Resolve, datamodule_of: Callable, model_of: ModelOf, tmp_path: Path
):
    """From pixels and from stored features alike, and as the processor gives them at inference."""
    one, two, clip = [picture(90, 70)], [picture(64, 64), picture(31, 99)], [picture(40 + i, 75) for i in range(3)]
    texts = ["<image>\nhow many star objects", "<image> <image>\nhow many star", "<video>\nhow many star", "how many"]
    media = [{"image": "a.png"}, {"image": ["b.png", "c.png"]}, {"video": "d.mp4"}, {}]
    shown = zip(texts, [one, two, clip, []], media, strict=True)
    write_shards([(f"s{i}", sample_of(*given, **named)) for i, (*given, named) in enumerate(shown)], tmp_path / "mixed")
    splits = [f"data.train={tmp_path / 'mixed'}", f"data.val={tmp_path / 'mixed'}", "data.test=null"]
    own = ["data.world_seed=null", *splits, "data.views=hd", "data.batch_size=4", "trainer.max_steps=2"]
    small = ["model.vision_config.patch_size=16", "compressor=none"]  # 16 patches and tokens of a view
    logits = {}
    for features in ("false", f"{tmp_path / 'features'}"):
        config = config_of(*own, *small, "data.kinds=[]", f"data.features={features}")
        model, data = model_of(config).eval(), datamodule_of(config)
        (batch,) = data.evaluation_batches("val", "cpu")
        assert (batch.pixel_values is None) == (features != "false")
        assert batch.num_frames.tolist() == [1, 2, 3, 0]
        assert batch.num_views is not None and batch.num_views.tolist() == [5, 5, 5, 1, 1, 1]
        placeholders = (batch.input_ids == model.config.image_token_id).sum(1)
        assert placeholders.tolist() == [64, 2 * 64, 3 * 16, 0]
        with torch.no_grad():
            logits[features] = model(**batch.model_inputs()).logits
        if features == "false":
            processor = assembly.build_processor(config, model, assembly.build_tokenizer(config))
            seen = processor(text=texts, images=[*one, *two], videos=[clip])
            assert seen["num_views"].tolist() == batch.num_views.tolist()
            assert (seen["input_ids"] == model.config.image_token_id).sum(1).tolist() == placeholders.tolist()
            real = torch.arange(5) < batch.num_views[:, None]
            difference = (seen["pixel_values"] - batch.pixel_values)[real].abs().amax((0, 2, 3))
            assert (difference * torch.tensor(data.normalize[1]) * 255).max() <= 2 + 1e-3
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        trainer = assembly.make_trainer(config, logger=False, enable_checkpointing=False, val_check_interval=2)
        trainer.fit(assembly.build_stage(config, model), data)
        assert trainer.global_step == 2 and torch.isfinite(trainer.callback_metrics["val/loss"])
        assert any(not torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    with_pixels, with_features = logits.values()
    torch.testing.assert_close(with_features, with_pixels, rtol=1e-5, atol=1e-5)


def test_epochs_are_as_many_steps_as_their_samples_take(config_of: Resolve, tmp_path: Path):
    sets = [write_set(tmp_path / name, count) for name, count in (("one", 7), ("two", 3))]
    length = ["trainer.max_steps=null", "trainer.epochs=1.5", "data.batch_size=2", "trainer.accumulate_grad_batches=2"]
    config = config_of("data.world_seed=null", f"data.train=[{sets[0]},{sets[1]}]", *length)
    assert assembly.with_steps(config).trainer.steps == 4  # 15 samples in steps of 4
    given = config_of("trainer.max_steps=9", "trainer.epochs=2")
    assert assembly.with_steps(given) == given
    with refuses("data.train"):
        assembly.with_steps(config_of("data.train=null", *length))


SMOLLM = (  # SmolLM2-135M-Instruct's
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nYou "
    "are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\\n' }}{% endif %}{{'<|im_start|>' + "
    "message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}"
)


def test_the_tokenizers_own_template_is_found(config_of: Resolve):
    config = config_of("data.template=tokenizer")
    tokenizer = assembly.build_tokenizer(config)
    tokenizer.chat_template = SMOLLM
    system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    assert assembly.build_template(config, tokenizer) == replace(CHATML, system=system)
    tokenizer.bos_token = "<|im_start|>"  # as SmolLM2 has it, whose tokenizer does not add it
    assert assembly.build_template(config, tokenizer) == replace(CHATML, system=system)
    for template in (VICUNA, LLAMA3, MISTRAL, CHATML):
        tokenizer.chat_template = template.chat_template()
        assert assembly.build_template(config, tokenizer) == template
    for chat_template in (None, TINY.chat_template(), "{{ messages[7].content.x }}", "{% for %}"):
        tokenizer.chat_template = chat_template
        with refuses("data.template", "tokenizer"):
            assembly.build_template(config, tokenizer)


def test_a_template_is_named_or_written_out(config_of: Resolve):
    def template(config: Config) -> ConversationTemplate:
        return assembly.build_template(config, assembly.build_tokenizer(config))

    assert template(config_of()) == TINY
    assert template(config_of("data.template=chatml")) == CHATML
    own = template(config_of("data.template={user_suffix: ' ', strip: true}"))
    assert own == ConversationTemplate(user_suffix=" ", strip=True)
    with refuses("data.template", "vicuna"):
        template(config_of("data.template=vicuna"))
    with refuses("data.template.user"):
        template(config_of("data.template={user: ' '}"))


@pytest.mark.parametrize("color", [(255, 255, 255), (0, 0, 0), (10, 200, 30)])
def test_training_sees_transparent_parts_as_the_processor_does(
    config_of: Resolve, model_of: ModelOf, tmp_path: Path, color: tuple[int, int, int]
) -> None:
    drawing = np.random.default_rng(0).integers(0, 256, (64, 64, 4), dtype=np.uint8)
    drawing[:32, :, 3] = 0
    raw = io.BytesIO()
    Image.fromarray(drawing).save(raw, "PNG")
    talk = [{"from": "human", "value": "<image>\nhow many star objects"}, {"from": "gpt", "value": "two"}]
    record = json.dumps({"id": "0", "image": "a.png", "conversations": talk}).encode()
    write_shards([("a", {"json": record, "png": raw.getvalue()})], tmp_path / "drawings")
    config = config_of(
        "data.world_seed=null", "data.features=false", f"data.background=[{color[0]},{color[1]},{color[2]}]",
        f"data.train={tmp_path / 'drawings'}", "data.val=null", "data.test=null",
    )  # fmt: skip
    model = model_of(config)
    processor = assembly.build_processor(config, model, assembly.build_tokenizer(config))
    reader = assembly.build_datamodule(config, model, processor).splits["train"].readers[0]
    seen = reader(0).pixels
    assert seen is not None and tuple(seen[0, 0, :, 5, 5].tolist()) == color
    mine = normalized(seen, processor.image_processor.image_mean, processor.image_processor.image_std)
    torch.testing.assert_close(mine[0], processor.pixels(Image.fromarray(drawing)), rtol=0, atol=1e-5)


def test_the_towers_fingerprint_is_of_all_that_makes_features(config_of: Resolve, model_of: ModelOf):
    def fingerprint(*overrides: str) -> str:
        config = config_of(*overrides)
        return assembly.tower_fingerprint(config, model_of(config))

    first = fingerprint()
    same_features = [fingerprint(), fingerprint("compressor.C=2"), fingerprint("fusion.num_layers=0")]
    assert same_features == [first] * 3
    others = [
        fingerprint("seed=1"),
        fingerprint("model.vision_feature_layer=0"),
        fingerprint("data.views=hd"),
        fingerprint("data.views=pad"),
        fingerprint("data.background=[0,0,0]"),
        fingerprint("model.image_processor.crop_size.width=63"),
        fingerprint("model.vision_config.hidden_act=relu"),  # the same tensors, other features
        fingerprint("model.vision_config.num_attention_heads=2"),
    ]
    assert len({first, *others}) == 9
    config = config_of()
    model = model_of(config)
    with torch.no_grad():
        model.language_model.lm_head.weight.add_(1.0)
        assert assembly.tower_fingerprint(config, model) == first
        model.vision_tower.get_parameter("embeddings.class_embedding")[0].add_(1e-3)
    assert assembly.tower_fingerprint(config, model) != first


def test_the_towers_fingerprint_is_of_the_code_that_makes_features_and_not_of_who_wrote_the_config(
    config_of: Resolve, model_of: ModelOf, monkeypatch: pytest.MonkeyPatch
):
    config = config_of()
    model = model_of(config)
    first = assembly.tower_fingerprint(config, model)
    told = model.config.vision_config.to_dict()
    written = {**told, "transformers_version": "4.0", "_name_or_path": "elsewhere", "architectures": ["CLIP"]}
    monkeypatch.setattr(model.config.vision_config, "to_dict", lambda: written)
    assert assembly.tower_fingerprint(config, model) == first
    monkeypatch.setattr(assembly.data, "FEATURES_VERSION", FEATURES_VERSION + 1)
    assert assembly.tower_fingerprint(config, model) != first


def test_runs_share_features_of_one_tower_and_not_of_another(config_of: Resolve, model_of: ModelOf, tmp_path: Path):
    def stored(*overrides: str) -> set[str]:
        config = config_of(*overrides)
        model = model_of(config)
        processor = assembly.build_processor(config, model, assembly.build_tokenizer(config))
        assembly.build_datamodule(config, model, processor)
        return {path.name for path in (tmp_path / "world" / "features").iterdir()}

    first = stored()
    assert len(first) == 3  # one for each split
    assert stored("compressor=none") == first
    assert len(stored("seed=1") - first) == 3
