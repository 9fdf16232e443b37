"""Config to model: every shipped choice builds, misfit weights are named, a seed says everything that is random."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tests.refusals import refuses
from transformers import AutoProcessor

from llava_mini import assembly
from llava_mini.config import Config, options
from llava_mini.errors import UserError
from llava_mini.models.configuration import PARTS
from llava_mini.token_layout import HD_VIEWS

Resolve = Callable[..., Config]
ModelOf = Callable[[dict[str, Any]], Any]


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("order", options("order"))
@pytest.mark.parametrize("compressor", options("compressor"))
def test_every_compressor_builds_in_every_order_and_learns(
    config_of: Resolve, model_of: ModelOf, compressor: str, order: str
):
    config = config_of(f"compressor={compressor}", f"order={order}")
    model = model_of(config)
    processor = assembly.build_processor(config, model, assembly.build_tokenizer(config))
    assembly.check_model(config)
    assert {key: model.config.compressor[key] for key in config.compressor.spec()} == config.compressor.spec()
    assert (model.config.compress_before_projection, model.config.fuse_compressed_tokens) == (
        (True, True) if order == "release" else (False, False)
    )
    inputs = processor(text="<image> what color is the circle <answer> red </s>", images=Image.new("RGB", (64, 64)))
    loss = model(**inputs, labels=inputs["input_ids"].masked_fill(inputs["input_ids"] < 6, -100)).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert all(p.grad is not None for p in model.compressor.parameters())


def test_the_model_speaks_the_tokenizers_ids(config_of: Resolve, model_of: ModelOf):
    config = config_of()
    tokenizer, model = assembly.build_tokenizer(config), model_of(config)
    assert model.config.image_token_id == tokenizer.convert_tokens_to_ids("<image>")
    assert model.get_input_embeddings().num_embeddings == len(tokenizer)
    text = model.config.text_config
    assert [text.pad_token_id, text.bos_token_id, text.eos_token_id] == [0, 1, 2]
    with refuses("model.tokenizer", "nowhere"):
        assembly.build_tokenizer(config_of("model.tokenizer=nowhere"))


@pytest.mark.parametrize("layers", [1, 2])
def test_fusion_starts_as_the_first_layers_or_at_random(config_of: Resolve, model_of: ModelOf, layers: int):
    copied = model_of(config_of(f"fusion.num_layers={layers}"))
    first = copied.language_model.get_decoder().layers
    assert len(copied.prefusion.layers) == layers
    for number, layer in enumerate(copied.prefusion.layers):
        assert same(layer.state_dict(), first[number].state_dict())
    drawn = model_of(config_of(f"fusion.num_layers={layers}", "fusion.init=random"))
    assert same(drawn.language_model.state_dict(), copied.language_model.state_dict())
    weights = dict(drawn.prefusion.layers[0].named_parameters())
    assert not torch.equal(weights["mlp.up_proj.weight"], first[0].mlp.up_proj.weight)


@torch.no_grad()
@pytest.mark.parametrize("overrides", [[], ["finetune=qlora", "trainer.precision=bf16-mixed"]])
def test_as_an_identity_fusion_leaves_the_language_model_alive(
    config_of: Resolve, model_of: ModelOf, tmp_path: Path, overrides: list[str]
):
    folder = save(model_of(config_of("seed=5")).state_dict(), tmp_path / "w", "language_model", "projector")
    given = [f"model.weights=[{folder}]", *overrides]
    fused = model_of(config_of(*given, "fusion.init=identity", "fusion.num_layers=2")).eval()
    plain = model_of(config_of(*given, "fusion.num_layers=0")).eval()
    copies = model_of(config_of(*given, "fusion.init=copy", "fusion.num_layers=2"))
    fused.vision_tower.load_state_dict(plain.vision_tower.state_dict())
    fused.compressor.load_state_dict(plain.compressor.state_dict())
    for layer, copied in zip(fused.prefusion.layers, copies.prefusion.layers, strict=True):
        for (name, own), theirs in zip(layer.named_parameters(), copied.parameters(), strict=True):
            assert not own.any() if name.endswith(("o_proj.weight", "down_proj.weight")) else torch.equal(own, theirs)
    if overrides:
        return  # the base waits in its files until `fine_tune` packs it
    image = torch.randn(1, 1, 3, plain.config.vision_config.image_size, plain.config.vision_config.image_size)
    tokens = torch.tensor([[plain.config.image_token_id, 5, 7, 9]])
    inputs = {"input_ids": tokens, "pixel_values": image, "num_frames": torch.tensor([1])}
    torch.testing.assert_close(fused(**inputs).logits, plain(**inputs).logits, rtol=0, atol=1e-6)
    assert (copies(**inputs).logits - plain(**inputs).logits).abs().max() > 0.1


def test_fusion_is_copied_from_loaded_weights(config_of: Resolve, model_of: ModelOf, tmp_path: Path):
    source = model_of(config_of("seed=5")).half().float()  # as it will be stored
    folder = save(source.state_dict(), tmp_path / "weights", "language_model")
    model = model_of(config_of(f"model.weights=[{folder}]"))
    assert same(model.language_model.state_dict(), source.language_model.state_dict())
    layers = source.language_model.get_decoder().layers
    assert all(same(layer.state_dict(), layers[i].state_dict()) for i, layer in enumerate(model.prefusion.layers))


@pytest.mark.parametrize("finetune", ["full", "qlora"])
def test_a_trained_fusion_is_kept(config_of: Resolve, model_of: ModelOf, tmp_path: Path, finetune: str):
    source = model_of(config_of("seed=5", "fusion.init=random")).half().float()
    folder = save(source.state_dict(), tmp_path / "weights", "language_model", "prefusion")
    precision = ["trainer.precision=bf16-mixed"] if finetune == "qlora" else []
    model = model_of(config_of(f"model.weights=[{folder}]", f"finetune={finetune}", *precision))
    assert same(model.prefusion.state_dict(), source.prefusion.state_dict())


def save(state: dict[str, torch.Tensor], folder: Path, *parts: str) -> Path:
    """The tensors of some parts, in half precision as they are shipped."""
    folder.mkdir(parents=True)
    kept = {name: tensor.half() for name, tensor in state.items() if name.split(".")[0] in parts}
    save_file(kept, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["finetune=full"], "language_model.model.layers.1.mlp.up_proj.weight"),
        (["finetune=qlora", "trainer.precision=bf16-mixed"], "language_model.model.layers.1.mlp.up_proj.weight"),
        (["finetune=full"], "vision_tower.post_layernorm.bias"),
        (["finetune=qlora", "trainer.precision=bf16-mixed"], "projector.linear_2.bias"),
        (["finetune=full", "fusion.init=random"], "prefusion.layers.0.mlp.up_proj.weight"),
        (["finetune=full"], "compressor.query"),
    ],
)
def test_a_part_that_is_partly_there_is_refused(
    config_of: Resolve, model_of: ModelOf, tmp_path: Path, overrides: list[str], named: str
):
    state = model_of(config_of()).state_dict()
    shape = list(state.pop(named).shape)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=f"missing tensors: {re.escape(f'{named} {shape}')}") as caught:
        model_of(config_of(f"model.weights=[{tmp_path}]", *overrides))
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_a_part_may_lie_in_two_folders(config_of: Resolve, model_of: ModelOf, tmp_path: Path):
    state = model_of(config_of("seed=1")).state_dict()
    for place, names in (("one", list(state)[::2]), ("two", list(state)[1::2])):
        (tmp_path / place).mkdir()
        save_file({name: state[name] for name in names}, tmp_path / place / "model.safetensors")
    both = f"model.weights=[{tmp_path / 'one'},{tmp_path / 'two'}]"
    assert same(model_of(config_of(both, "fusion.init=random")).state_dict(), state)


def test_a_vision_tower_that_is_partly_there_makes_no_features(config_of: Resolve, model_of: ModelOf, tmp_path: Path):
    state = model_of(config_of()).state_dict()
    del state["vision_tower.post_layernorm.bias"]
    save_file(state, tmp_path / "model.safetensors")
    config = config_of(f"model.weights=[{tmp_path}]")
    with pytest.raises(UserError, match=r"missing tensors: vision_tower\.post_layernorm\.bias \["):
        assembly.build_vision_model(config, assembly.build_tokenizer(config))


@pytest.mark.parametrize(
    "overrides",
    [
        ["finetune=full"],
        ["finetune=qlora", "trainer.precision=bf16-mixed"],
        ["finetune=full", "compressor=none", "fusion.num_layers=0"],
    ],
)
def test_what_is_wholly_left_out_is_said_in_one_line(
    config_of: Resolve, model_of: ModelOf, tmp_path: Path, overrides: list[str], caplog: pytest.LogCaptureFixture
):
    state = model_of(config_of()).state_dict()
    folder = save(state, tmp_path / "weights", "language_model", "projector")
    with caplog.at_level("INFO", "llava_mini"):
        model_of(config_of(f"model.weights=[{folder}]", *overrides))
    (said,) = [line for line in caplog.messages if line.startswith("initialized")]
    if "compressor=none" in overrides:  # neither part has a tensor
        assert said == "initialized, not loaded: vision_tower"
    else:
        assert said.startswith("initialized, not loaded: compressor, prefusion, vision_tower (prefusion from")


def test_weights_of_several_folders_are_loaded_in_order(config_of: Resolve, model_of: ModelOf, tmp_path: Path):
    one, two = model_of(config_of("seed=1")).state_dict(), model_of(config_of("seed=2")).state_dict()
    folders = [
        save(one, tmp_path / "one", "vision_tower", "projector"),
        save(two, tmp_path / "two", "projector", "language_model"),
    ]
    config = config_of(f"model.weights=[{folders[0]},{folders[1]}]", "fusion.init=random")
    loaded, fresh = model_of(config).state_dict(), model_of(config.changed({"model": {"weights": []}}))
    for name, tensor in loaded.items():
        part = name.split(".")[0]
        source = {"vision_tower": one, "projector": two, "language_model": two}.get(part, fresh.state_dict())
        expected = source[name] if part in ("compressor", "prefusion") else source[name].half().float()
        assert tensor.dtype == torch.float32 and torch.equal(tensor, expected), name


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"model\.weights: .*weights/model\.safetensors is missing; `make world`"),
        ({}, r"model\.weights: .*weights: model\.safetensors contains no tensor"),
        (b"no tensors", r"model\.weights: .*model\.safetensors is a text and no weights"),
        (
            {"projector.linear_1.weight": torch.zeros(3, 5)},
            r"projector\.linear_1\.weight has shape \[3, 5\], the model",
        ),
        ({"projector.linear_9.weight": torch.zeros(3)}, r"projector\.linear_9\.weight .* the model has no such tensor"),
    ],
)
def test_weights_that_do_not_fit_are_named(
    config_of: Resolve, model_of: ModelOf, tmp_path: Path, content: Any, message: str
):
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
        (["compressor.C=9"], r"compressor\.C=9: allowed are 1 to 8, the side of the vision tower's grid of patches"),
        (["compressor=avg_pool", "compressor.C=9"], r"compressor\.C=9: allowed are 1 to 8"),
        (["compressor.num_heads=7"], r"compressor\.num_heads=7"),
        (["stage.learning_rates.projector=-1"], r"stage\.learning_rates\.projector=-1: .* greater than or equal to 0"),
        (["stage.learning_rates.projector=nan"], r"stage\.learning_rates\.projector=nan: .* finite number"),
        (["stage.learning_rates.projector=inf"], r"stage\.learning_rates\.projector=inf: .* finite number"),
        (["stage.weight_decay=-0.1"], r"stage\.weight_decay=-0\.1: .* greater than or equal to 0"),
        (["stage.betas=[0.9,1]"], r"stage\.betas=1: .* less than 1"),
        (["stage.warmup_ratio=2"], r"stage\.warmup_ratio=2: .* less than or equal to 1"),
        (["stage.min_lr_ratio=-1"], r"stage\.min_lr_ratio=-1: .* greater than or equal to 0"),
        (
            ["fusion.num_layers=3"],
            r"fusion\.num_layers=3: init 'copy' and 'identity' allow at most the .* 2 layers",
        ),
    ],
)
def test_impossible_models_are_found_without_building_one(config_of: Resolve, overrides: list[str], message: str):
    with pytest.raises(UserError, match=message):
        assembly.check_model(config_of(*overrides))
    assembly.check_model(config_of("fusion.num_layers=3", "fusion.init=random"))


def test_a_rate_may_be_text_of_a_number(config_of: Resolve) -> None:
    config = config_of('stage.learning_rates.projector="1e-4"')
    assert config.stage.arguments["learning_rates"]["projector"] == "1e-4"  # as yaml has it without a dot
    assembly.check_model(config)


@pytest.mark.parametrize(
    ("overrides", "single", "hd"),
    [
        (["compressor.C=1"], 1, 1),
        (["compressor.C=3"], 9, 9),
        (["compressor=none"], 64, 256),
        (["compressor=zero"], 0, 0),
        (["compressor=avg_pool", "compressor.C=2", "data.views=hd"], 4, 4),
    ],
)
def test_the_processor_knows_the_models_tokens(
    config_of: Resolve, model_of: ModelOf, overrides: list[str], single: int, hd: int
):
    config = config_of(*overrides)
    model = model_of(config)
    processor = assembly.build_processor(config, model, assembly.build_tokenizer(config))
    assert (processor.num_image_tokens, processor.num_hd_image_tokens) == (single, hd)
    assert (model.layout.frame(), model.layout.frame(HD_VIEWS)) == (single, hd)
    assert processor.views == config.data.views
    inputs = processor(text="<image> what color is the circle <answer>", images=Image.new("RGB", (64, 64), "red"))
    assert inputs["pixel_values"].shape == (1, 5 if processor.views == "hd" else 1, 3, 64, 64)
    placeholders = int((inputs["input_ids"] == model.config.image_token_id).sum())
    assert placeholders == (hd if processor.views == "hd" else single)
    with torch.no_grad():
        assert model(**inputs).logits.shape[1] == inputs["input_ids"].shape[1]


def test_one_seed_builds_one_model_and_another_seed_another(config_of: Resolve, model_of: ModelOf):
    first, again, other = (model_of(config_of(f"seed={seed}", "fusion.init=random")).state_dict() for seed in (3, 3, 4))
    assert same(first, again)
    for part in PARTS:
        assert any(not torch.equal(first[n], other[n]) for n in first if n.split(".")[0] == part), part


def test_the_vision_tower_can_be_built_alone(config_of: Resolve, model_of: ModelOf, tmp_path: Path):
    whole = model_of(config_of())
    save_file(whole.state_dict(), tmp_path / "model.safetensors")
    config = config_of(f"model.weights=[{tmp_path}]")
    alone = assembly.build_vision_model(config, assembly.build_tokenizer(config))
    assert same(alone.vision_tower.state_dict(), whole.vision_tower.state_dict())
    assert assembly.tower_fingerprint(config, alone) == assembly.tower_fingerprint(config, whole)
    in_memory = {name.split(".")[0] for name, parameter in alone.named_parameters() if not parameter.is_meta}
    assert in_memory == {"vision_tower"}
    pixels = torch.rand(2, 1, 3, 64, 64)
    assert torch.equal(alone.eval().encode(pixels), whole.eval().encode(pixels))
    with refuses("model.weights"):
        assembly.build_vision_model(config_of(), assembly.build_tokenizer(config))


def test_the_processor_asks_as_the_data_are_written(config_of: Resolve, model_of: ModelOf, tmp_path: Path):
    config = config_of()
    assembly.build_processor(config, model_of(config), assembly.build_tokenizer(config)).save_pretrained(tmp_path)
    asked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is here"}]}]
    processor = AutoProcessor.from_pretrained(tmp_path)
    prompt = processor.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    assert prompt == "<image>\nwhat is here <answer>"
