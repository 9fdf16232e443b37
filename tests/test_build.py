"""Config to objects: every shipped choice builds, misfit weights are named, a seed says everything that is random."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from llava_mini import build
from llava_mini.config import instantiate, options, resolve
from llava_mini.data.feature_store import FEATURES_VERSION
from llava_mini.data.toyworld.tokenizer import build_tokenizer
from llava_mini.errors import UserError
from llava_mini.models import LlavaMiniForConditionalGeneration
from llava_mini.models.vision_tower import HD_VIEWS
from llava_mini.stages.base import PARTS
from llava_mini.stages.callbacks import Clock
from llava_mini.sweep.launcher import LocalLauncher

SMALL = ["model.text_config.num_hidden_layers=2", "fusion.num_layers=2", "model.vision_config.num_hidden_layers=1"]
Resolve = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer().save_pretrained(str(folder))
    return folder


@pytest.fixture
def config_of(tokenizer_dir: Path, tmp_path: Path) -> Resolve:
    """config_of("key=value", ...): a small model without weights, data in tmp_path."""

    def make(*overrides: str) -> dict[str, Any]:
        places = ["model.weights=[]", f"model.tokenizer={tokenizer_dir}", f"data.folder={tmp_path / 'world'}"]
        return resolve(["experiment=smoke", *SMALL, *places, f"run_dir={tmp_path / 'run'}", *overrides])

    return make


def model_of(config: dict[str, Any]) -> LlavaMiniForConditionalGeneration:
    build.seed_run(config)
    return build.build_model(config, build.build_tokenizer(config))


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("order", options("order"))
@pytest.mark.parametrize("compressor", options("compressor"))
def test_every_compressor_builds_in_every_order_and_learns(config_of: Resolve, compressor: str, order: str):
    config = config_of(f"compressor={compressor}", f"order={order}")
    model = model_of(config)
    processor = build.build_processor(config, model, build.build_tokenizer(config))
    build.check_model(config)
    assert {key: model.config.compressor[key] for key in config["compressor"]} == config["compressor"]
    assert (model.config.compress_before_projection, model.config.fuse_compressed_tokens) == (
        (True, True) if order == "release" else (False, False)
    )
    inputs = processor(text="<image> what color is the circle <answer> red </s>", images=Image.new("RGB", (64, 64)))
    loss = model(**inputs, labels=inputs["input_ids"].masked_fill(inputs["input_ids"] < 6, -100)).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert all(p.grad is not None for p in model.compressor.parameters())


@pytest.mark.parametrize("name", [name for name in options("stage") if name != "vision_pretraining"])
def test_every_stage_builds(config_of: Resolve, name: str):
    plain = ["experiment=tiny_stage1", "fusion.num_layers=0"]  # what alignment is for
    config = config_of(f"stage={name}", *(plain if name == "alignment" else []))
    model = model_of(config)
    stage = build.build_stage(config, model)
    assert stage.model is model
    rates = {part: rate for part, rate in config["stage"]["learning_rates"].items() if rate is not None}
    assert stage.trained_parts == [part for part in PARTS if part in rates] != []


def test_stage_0_builds_for_a_tower_alone(config_of: Resolve):
    config, tower = resolve(["experiment=tiny_stage0"]), model_of(config_of()).vision_tower
    assert config["choices"]["stage"] == "vision_pretraining"
    stage = instantiate(
        config["stage"], "stage", vision_tower=tower, feature_layer=-1, target_classes={"kind": 2, "digit": 11}
    )
    assert stage.vision_tower is tower and stage.heads["digit"].out_features == 11


@pytest.mark.parametrize("name", options("launcher"))
def test_every_launcher_builds(name: str):
    assert isinstance(instantiate(resolve([f"launcher={name}"])["launcher"], "launcher"), LocalLauncher)


def test_the_model_speaks_the_tokenizers_ids(config_of: Resolve):
    config = config_of()
    tokenizer, model = build.build_tokenizer(config), model_of(config)
    assert model.config.image_token_id == tokenizer.convert_tokens_to_ids("<image>")
    assert model.get_input_embeddings().num_embeddings == len(tokenizer)
    text = model.config.text_config
    assert [text.pad_token_id, text.bos_token_id, text.eos_token_id] == [0, 1, 2]
    with pytest.raises(UserError, match=r"model\.tokenizer=nowhere: no tokenizer_config\.json there"):
        build.build_tokenizer(config_of("model.tokenizer=nowhere"))


@pytest.mark.parametrize("layers", [1, 2])
def test_fusion_starts_as_the_first_layers_or_at_random(config_of: Resolve, layers: int):
    copied = model_of(config_of(f"fusion.num_layers={layers}"))
    first = copied.language_model.get_decoder().layers
    assert len(copied.prefusion.layers) == layers
    for number, layer in enumerate(copied.prefusion.layers):
        assert same(layer.state_dict(), first[number].state_dict())
    drawn = model_of(config_of(f"fusion.num_layers={layers}", "fusion.init=random"))
    assert same(drawn.language_model.state_dict(), copied.language_model.state_dict())
    weights = dict(drawn.prefusion.layers[0].named_parameters())
    assert not torch.equal(weights["mlp.up_proj.weight"], first[0].mlp.up_proj.weight)


def test_fusion_is_copied_from_loaded_weights(config_of: Resolve, tmp_path: Path):
    source = model_of(config_of("seed=5")).half().float()  # as it will be stored
    folder = save(source.state_dict(), tmp_path / "weights", "language_model")
    model = model_of(config_of(f"model.weights=[{folder}]"))
    assert same(model.language_model.state_dict(), source.language_model.state_dict())
    layers = source.language_model.get_decoder().layers
    assert all(same(layer.state_dict(), layers[i].state_dict()) for i, layer in enumerate(model.prefusion.layers))


def save(state: dict[str, torch.Tensor], folder: Path, *parts: str) -> Path:
    """The tensors of some parts, in half precision as they are shipped."""
    folder.mkdir(parents=True)
    kept = {name: tensor.half() for name, tensor in state.items() if name.split(".")[0] in parts}
    save_file(kept, folder / "model.safetensors")
    return folder


def test_weights_of_several_folders_are_loaded_in_order(config_of: Resolve, tmp_path: Path):
    one, two = model_of(config_of("seed=1")).state_dict(), model_of(config_of("seed=2")).state_dict()
    folders = [
        save(one, tmp_path / "one", "vision_tower", "projector"),
        save(two, tmp_path / "two", "projector", "language_model"),
    ]
    config = config_of(f"model.weights=[{folders[0]},{folders[1]}]", "fusion.init=random")
    loaded, fresh = model_of(config).state_dict(), model_of({**config, "model": {**config["model"], "weights": []}})
    for name, tensor in loaded.items():
        part = name.split(".")[0]
        source = {"vision_tower": one, "projector": two, "language_model": two}.get(part, fresh.state_dict())
        expected = source[name] if part in ("compressor", "prefusion") else source[name].half().float()
        assert tensor.dtype == torch.float32 and torch.equal(tensor, expected), name


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"model\.weights: .*weights/model\.safetensors is missing; `make world`"),
        (b"no tensors", r"model\.weights: .*model\.safetensors is no safetensors file"),
        (
            {"projector.linear_1.weight": torch.zeros(3, 5)},
            r"projector\.linear_1\.weight has shape \[3, 5\], the model",
        ),
        ({"projector.linear_9.weight": torch.zeros(3)}, r"projector\.linear_9\.weight .* the model has no such tensor"),
    ],
)
def test_weights_that_do_not_fit_are_named(config_of: Resolve, tmp_path: Path, content: Any, message: str):
    folder = tmp_path / "weights"
    folder.mkdir()
    if isinstance(content, bytes):
        (folder / "model.safetensors").write_bytes(content)
    elif content is not None:
        save_file(content, folder / "model.safetensors")
    with pytest.raises(UserError, match=message) as caught:
        model_of(config_of(f"model.weights=[{folder}]"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["compressor.C=0"], r"compressor\.C=0"),
        (["compressor.num_heads=7"], r"compressor\.num_heads=7"),
        (["fusion.num_layers=3"], r"fusion\.num_layers=3: init 'copy' allows at most the language model's 2 layers"),
    ],
)
def test_impossible_models_are_found_without_building_one(config_of: Resolve, overrides: list[str], message: str):
    with pytest.raises(UserError, match=message):
        build.check_model(config_of(*overrides))
    build.check_model(config_of("fusion.num_layers=3", "fusion.init=random"))


@pytest.mark.parametrize(
    ("overrides", "single", "hd"),
    [
        (["compressor.C=1"], 1, 1),
        (["compressor.C=3"], 9, 9),
        (["compressor=none"], 64, 256),
        (["compressor=zero"], 0, 0),
        (["compressor=avg_pool", "compressor.C=2", "data.high_resolution=true"], 4, 4),
    ],
)
def test_the_processor_knows_the_models_tokens(config_of: Resolve, overrides: list[str], single: int, hd: int):
    config = config_of(*overrides)
    model = model_of(config)
    processor = build.build_processor(config, model, build.build_tokenizer(config))
    assert (processor.num_image_tokens, processor.num_hd_image_tokens) == (single, hd)
    assert (model.tokens_per_frame(), model.tokens_per_frame(HD_VIEWS)) == (single, hd)
    assert processor.high_resolution == config["data"]["high_resolution"]
    inputs = processor(text="<image> what color is the circle <answer>", images=Image.new("RGB", (64, 64), "red"))
    assert inputs["pixel_values"].shape == (1, 5 if processor.high_resolution else 1, 3, 64, 64)
    placeholders = int((inputs["input_ids"] == model.config.image_token_id).sum())
    assert placeholders == (hd if processor.high_resolution else single)
    with torch.no_grad():
        assert model(**inputs).logits.shape[1] == inputs["input_ids"].shape[1]


def test_one_seed_builds_one_model_and_another_seed_another(config_of: Resolve):
    first, again, other = (model_of(config_of(f"seed={seed}", "fusion.init=random")).state_dict() for seed in (3, 3, 4))
    assert same(first, again)
    for part in PARTS:
        assert any(not torch.equal(first[n], other[n]) for n in first if n.split(".")[0] == part), part


def test_the_towers_fingerprint_is_of_all_that_makes_features(config_of: Resolve):
    def fingerprint(*overrides: str) -> str:
        config = config_of(*overrides)
        return build.tower_fingerprint(config, model_of(config))

    first = fingerprint()
    same_features = [fingerprint(), fingerprint("compressor.C=2"), fingerprint("fusion.num_layers=0")]
    assert same_features == [first] * 3
    others = [
        fingerprint("seed=1"),
        fingerprint("model.vision_feature_layer=0"),
        fingerprint("data.high_resolution=true"),
        fingerprint("model.image_processor.crop_size.width=63"),
        fingerprint("model.vision_config.hidden_act=relu"),  # the same tensors, other features
        fingerprint("model.vision_config.num_attention_heads=2"),
    ]
    assert len({first, *others}) == 7
    config = config_of()
    model = model_of(config)
    with torch.no_grad():
        model.language_model.lm_head.weight.add_(1.0)
        assert build.tower_fingerprint(config, model) == first
        model.vision_tower.get_parameter("embeddings.class_embedding")[0].add_(1e-3)
    assert build.tower_fingerprint(config, model) != first


def test_the_towers_fingerprint_is_of_the_code_that_makes_features_and_not_of_who_wrote_the_config(
    config_of: Resolve, monkeypatch: pytest.MonkeyPatch
):
    config = config_of()
    model = model_of(config)
    first = build.tower_fingerprint(config, model)
    told = model.config.vision_config.to_dict()
    written = {**told, "transformers_version": "4.0", "_name_or_path": "elsewhere", "architectures": ["CLIP"]}
    monkeypatch.setattr(model.config.vision_config, "to_dict", lambda: written)
    assert build.tower_fingerprint(config, model) == first
    monkeypatch.setattr(build, "FEATURES_VERSION", FEATURES_VERSION + 1)
    assert build.tower_fingerprint(config, model) != first


def test_runs_share_features_of_one_tower_and_not_of_another(config_of: Resolve, tmp_path: Path):
    def stored(*overrides: str) -> set[str]:
        config = config_of(*overrides)
        model = model_of(config)
        processor = build.build_processor(config, model, build.build_tokenizer(config))
        build.build_datamodule(config, model, processor)
        return {path.name for path in (tmp_path / "world" / "features").iterdir()}

    first = stored()
    assert len(first) == 3  # one for each split
    assert stored("compressor=none") == first
    assert len(stored("seed=1") - first) == 3


def test_a_trainer_is_as_the_config_says(config_of: Resolve):
    trainer = build.build_trainer(
        config_of("trainer.max_steps=7", "trainer.accumulate_grad_batches=3", "trainer.val_every=2"), Clock(), []
    )
    assert (trainer.max_steps, trainer.accumulate_grad_batches, trainer.val_check_interval) == (7, 3, 6)
    assert trainer.gradient_clip_val == 1.0 and trainer.logger is None
    assert (
        build.build_trainer(config_of("trainer.max_steps=7", "trainer.val_every=99"), Clock(), []).val_check_interval
        == 7
    )
