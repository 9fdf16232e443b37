"""Whole folders: a converted model answers as its source, a round trip loses nothing, a misfit writes nothing."""

import errno
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tests.models.interop.conftest import IMAGE_ID, VISION, to_new_layout, to_old_layout, to_original_layout
from tests.refusals import refuses
from transformers import AutoModelForImageTextToText, AutoProcessor, CLIPVisionConfig, CLIPVisionModel

from llava_mini.errors import UserError
from llava_mini.models.interop.convert import convert_llava, convert_official
from llava_mini.models.interop.export import convert_to_official
from llava_mini.models.interop.parts import CLIP_ID

Factory = Callable[..., Any]
NONE = {"_target_": "llava_mini.models.compressors.none.NoCompressor"}
QUERY = {"_target_": "llava_mini.models.compressors.query.QueryCompressor", "C": 2, "num_heads": 8}
PATCHES = 16
LAYOUTS = {
    "as transformers saves it": lambda _folder: None,
    "as published": to_old_layout,
    "as its modules are named": to_new_layout,
    "as first released": to_original_layout,
}


def plain(source: Path, target: Path, **changes: Any) -> None:
    """LLaVA as it is: every patch, no pre-fusion."""
    convert_llava(source, target, **{"compressor": NONE, "num_fusion_layers": 0, "init": "copy", **changes})


@pytest.fixture
def tower(tmp_path: Path) -> Path:
    """A vision tower's folder."""
    folder = tmp_path / "tower"
    CLIPVisionModel(CLIPVisionConfig(**VISION)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_without_compression_it_is_the_same_llava(
    make_llava: Factory, tower: Path, tmp_path: Path, layout: str
) -> None:
    source_model, source = make_llava()
    LAYOUTS[layout](source)
    plain(source, tmp_path / "ours", vision_tower=str(tower) if layout == "as first released" else None)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "ours").eval()
    pixels = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(3))
    ids = torch.tensor([[0, 5, *[IMAGE_ID] * PATCHES, 7, 9, 11], [0, 6, *[IMAGE_ID] * PATCHES, 8, 3, 4]])
    expected = source_model(input_ids=ids, pixel_values=pixels, attention_mask=torch.ones_like(ids)).logits
    logits = model(input_ids=ids, pixel_values=pixels[:, None], num_frames=torch.tensor([1, 1])).logits
    torch.testing.assert_close(logits, expected, rtol=0, atol=2e-5)  # the same sums, in the same order but for masks
    text = torch.tensor([[0, 5, 7, 9, 11, 59]])
    only_text = model(input_ids=text).logits
    assert only_text.shape[-1] == 64  # padded rows of the vocabulary stay
    torch.testing.assert_close(only_text, source_model(input_ids=text).logits, rtol=0, atol=2e-5)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2"])
@pytest.mark.parametrize("original", [False, True])
@torch.no_grad()
def test_llava_next_gives_language_model_and_projector(
    make_llava: Factory, tower: Path, tmp_path: Path, family: str, original: bool, caplog: pytest.LogCaptureFixture
) -> None:
    source_model, source = make_llava("llava_next", family)
    if original:
        to_original_layout(source)
    with caplog.at_level(logging.INFO, "llava_mini"):
        plain(source, tmp_path / "ours", vision_tower=str(tower) if original else None)
    assert "image_newline [48]" in caplog.text
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "ours").eval()
    text = torch.tensor([[0, 5, 7, 9]])
    torch.testing.assert_close(model(input_ids=text).logits, source_model(input_ids=text).logits, rtol=0, atol=2e-5)
    features = torch.randn(1, 4, 32)
    theirs = source_model.model.multi_modal_projector(features)
    assert torch.equal(model.projector(features), theirs)
    assert model.config.text_config.model_type == family


@pytest.mark.parametrize("init", ["identity", "copy", "random"])
def test_compressor_and_prefusion_are_new(
    make_llava: Factory, tmp_path: Path, init: str, caplog: pytest.LogCaptureFixture
) -> None:
    _, source = make_llava()
    with caplog.at_level(logging.INFO, "llava_mini"):
        convert_llava(source, tmp_path / "ours", compressor=QUERY, num_fusion_layers=2, init=init)
    said = [line.split(": ")[0] + line.partition("tensors")[2] for line in caplog.messages if "tensors" in line]
    assert sorted(said) == [
        "compressor initialized", f"language_model from {source}", f"prefusion initialized ({init})",
        f"projector from {source}", f"vision_tower from {source}",
    ]  # fmt: skip
    model, info = AutoModelForImageTextToText.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(model.compressor.attention.out_proj.weight, torch.eye(32))
    assert model.compressor.query.abs().max() > 0
    for layer, own in zip(model.prefusion.layers, model.language_model.get_decoder().layers, strict=False):
        pairs = zip(layer.named_parameters(), own.parameters(), strict=True)
        same = {name: torch.equal(a, b) for (name, a), b in pairs}
        if init == "identity":
            outputs = [name for name in same if name.endswith(("o_proj.weight", "down_proj.weight"))]
            assert len(outputs) == 2 and not any(same.pop(name) for name in outputs)
            assert not any(layer.get_parameter(name).any() for name in outputs)
        assert not any(same.values()) if init == "random" else all(same.values())
    if init == "random":
        assert 0.01 < model.prefusion.layers[0].mlp.up_proj.weight.std() < 0.03  # the config's initializer_range
        assert torch.equal(model.prefusion.layers[0].input_layernorm.weight, torch.ones(48))
    again = tmp_path / "again"
    convert_llava(source, again, compressor=QUERY, num_fusion_layers=2, init=init)
    assert (again / "model.safetensors").read_bytes() == (tmp_path / "ours" / "model.safetensors").read_bytes()


@torch.no_grad()
def test_processor_and_model_are_one(make_llava: Factory, tmp_path: Path, tower: Path) -> None:
    """A tokenizer with <image> keeps its id; one without gets an id behind the vocabulary."""
    _, source = make_llava()
    convert_llava(source, tmp_path / "known", compressor=QUERY, num_fusion_layers=1, init="copy")
    to_original_layout(source)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (source / name).read_text().replace("<image>", "<other>")
        (source / name).write_text(text)
    convert_llava(source, tmp_path / "new", compressor=QUERY, num_fusion_layers=1, init="copy", vision_tower=str(tower))
    for name, image_id, views in (("known", 60, "square"), ("new", 64, "pad")):
        model = AutoModelForImageTextToText.from_pretrained(tmp_path / name).eval()
        processor = AutoProcessor.from_pretrained(tmp_path / name)
        assert model.config.image_token_id == image_id and processor.views == views
        inputs = processor(images=torch.zeros(24, 30, 3).byte().numpy(), text="<image> word7 word9")
        assert inputs["input_ids"].tolist() == [[*[image_id] * 4, 7, 9]]
        assert torch.isfinite(model(**inputs).logits).all()
        processor.batch_decode(model.generate(**inputs, max_new_tokens=2))


def test_half_precision_stays_and_is_one_type(make_llava: Factory, tmp_path: Path) -> None:
    _, source = make_llava()
    path = source / "model.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})
    convert_llava(source, tmp_path / "ours", compressor=QUERY, num_fusion_layers=2, init="random")
    assert {tensor.dtype for tensor in load_file(tmp_path / "ours" / "model.safetensors").values()} == {torch.bfloat16}
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "ours")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


@pytest.fixture
def official(make_model: Factory, tmp_path: Path) -> tuple[Any, Path]:
    """(a model of ours, its folder in the release's layout)."""
    model = make_model(vision_feature_layer=-2, compressor={**QUERY, "num_heads": 8})
    model.save_pretrained(tmp_path / "ours")
    convert_to_official(tmp_path / "ours", tmp_path / "official")
    return model, tmp_path / "official"


def test_official_round_trip_keeps_every_tensor(official: tuple[Any, Path], tower: Path, tmp_path: Path) -> None:
    model, folder = official
    names = load_file(folder / "model.safetensors")
    assert "model.mm_projector.0.weight" in names and "model.prefusion_layers.1.mlp.up_proj.weight" in names
    convert_official(folder, tmp_path / "back", str(tower))
    own, back = load_file(tmp_path / "ours" / "model.safetensors"), load_file(tmp_path / "back" / "model.safetensors")
    assert own.keys() == back.keys() and all(torch.equal(own[name], back[name]) for name in own)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "back").config.to_dict()
    assert again["compressor"] == model.config.compressor and again["num_fusion_layers"] == 2
    written = ("architectures", "dtype", "transformers_version")  # who wrote it, and how
    ours = {key: value for key, value in model.config.text_config.to_dict().items() if key not in written}
    assert {key: again["text_config"][key] for key in ours} == ours


def test_a_vision_tower_that_was_not_trained_comes_from_its_own_folder(
    official: tuple[Any, Path], tower: Path, tmp_path: Path
) -> None:
    _, folder = official
    path = folder / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(path).items() if ".vision_tower." not in name}
    save_file(kept, path, metadata={"format": "pt"})
    convert_official(folder, tmp_path / "back", str(tower))
    back, own = load_file(tmp_path / "back" / "model.safetensors"), load_file(tower / "model.safetensors")
    assert all(torch.equal(back[f"vision_tower.{name}"], tensor) for name, tensor in own.items())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "mm_vision_tower": "./somewhere"}))
    with refuses("vision_tower", "./somewhere"):
        convert_official(folder, tmp_path / "other")


def test_a_tower_that_is_named_and_not_there_is_asked_for(official: tuple[Any, Path], tmp_path: Path) -> None:
    """The release's own CLIP is not on this machine."""
    _, folder = official
    path = folder / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(path).items() if ".vision_tower." not in name}
    save_file(kept, path, metadata={"format": "pt"})
    with pytest.raises(
        UserError, match=r"clip-vit-large-patch14-336: .*official holds none: vision_tower names its folder"
    ):
        convert_official(folder, tmp_path / "back")


def test_another_tower_than_the_releases_is_reported(
    make_model: Factory, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_model(vision_feature_layer=-2, compressor={**QUERY, "num_heads": 8}).save_pretrained(tmp_path / "ours")
    with caplog.at_level(logging.WARNING, "llava_mini"):
        convert_to_official(tmp_path / "ours", tmp_path / "official")
    (said,) = [each for each in caplog.messages if "vision tower" in each]
    assert "is no CLIP ViT-L/14-336 (hidden_size=32, " in said and f"read its shape from {CLIP_ID}: vision_" in said
    assert "\n" not in said


def test_a_tower_that_the_user_names_is_looked_at_where_it_is_here(
    official: tuple[Any, Path], tower: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in (str(tower), "my/tower"):
        caplog.clear()
        convert_to_official(tmp_path / "ours", tmp_path / f"as-{Path(name).name}-{len(name)}", name)
        said = [each for each in caplog.messages if "vision tower" in each]
        assert not any("vision_tower names a place" in each for each in said)
        assert len(said) == (name == "my/tower")
    assert "my/tower, which was not read; needed is hidden_size=32, " in said[0]
    CLIPVisionConfig(**{**VISION, "image_size": 30}).save_pretrained(tower)
    with refuses("vision_tower", str(tower)):
        convert_to_official(tmp_path / "ours", tmp_path / "other", str(tower))


def test_a_vision_tower_for_a_folder_that_has_its_own(make_llava: Factory, tower: Path, tmp_path: Path) -> None:
    _, source = make_llava()
    for place in ("nowhere-at-all", str(tower)):
        with refuses("vision_tower", place):
            plain(source, tmp_path / "ours", vision_tower=place)
    assert not (tmp_path / "ours").exists()


def test_the_types_that_are_written_are_reported(
    make_llava: Factory, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, source = make_llava()
    path = source / "model.safetensors"
    mixed = {name: each.half() if "language" in name else each for name, each in load_file(path).items()}
    save_file(mixed, path, metadata={"format": "pt"})
    with caplog.at_level(logging.INFO, "llava_mini"):
        plain(source, tmp_path / "ours")
    assert f"{tmp_path / 'ours'}: written in float16 and float32" in caplog.messages


@pytest.mark.parametrize(
    ("said", "views", "back"),
    [
        ({"resolution_ratio": 2}, "hd", (2, "pad")),
        ({"image_aspect_ratio": "pad"}, "pad", (1, "pad")),
        ({}, "square", (1, "square")),
    ],
)
def test_views_survive_without_a_tokenizer(
    official: tuple[Any, Path], tower: Path, tmp_path: Path, said: dict[str, Any], views: str, back: tuple[int, str]
) -> None:
    _, folder = official
    path = folder / "config.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps({**fields, "resolution_ratio": 1, "image_aspect_ratio": "square", **said}))
    convert_official(folder, tmp_path / "back", str(tower))
    assert json.loads((tmp_path / "back" / "processor_config.json").read_text())["views"] == views
    convert_to_official(tmp_path / "back", tmp_path / "again")
    again = json.loads((tmp_path / "again" / "config.json").read_text())
    assert (again["resolution_ratio"], again["image_aspect_ratio"]) == back


@pytest.mark.usefixtures("official")
def test_a_folder_that_does_not_say_how_pictures_are_cut_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    convert_to_official(tmp_path / "ours", tmp_path / "other")
    assert "ours: has no processor_config.json: written is a model that was trained with views=square" in caplog.text


def test_a_vision_tower_with_numbers_that_are_not_finite_is_refused(
    official: tuple[Any, Path], tower: Path, tmp_path: Path
) -> None:
    _, folder = official
    path = folder / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(path).items() if ".vision_tower." not in name}
    save_file(kept, path, metadata={"format": "pt"})
    state = load_file(tower / "model.safetensors")
    state["post_layernorm.bias"][3] = float("inf")
    save_file(state, tower / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"tower: contains NaN or infinity in post_layernorm\.bias"):
        convert_official(folder, tmp_path / "back", str(tower))
    assert not (tmp_path / "back").exists()


def test_what_the_release_cannot_express_is_named(make_model: Factory, tmp_path: Path, orders: Any) -> None:
    model = make_model(**orders["paper"])
    model.save_pretrained(tmp_path / "ours")
    with refuses("compress_before_projection", False, "True"):
        convert_to_official(tmp_path / "ours", tmp_path / "official")
    assert not (tmp_path / "official").exists()


def leave_out(folder: Path, *names: str, **more: torch.Tensor) -> None:
    path = folder / "model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(path).items() if name not in names}
    save_file({**tensors, **more}, path, metadata={"format": "pt"})


def in_config(folder: Path, part: str | None, **values: Any) -> None:
    """Values of a part in config.json, changed; None: of its top."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    (config if part is None else config[part]).update(values)
    path.write_text(json.dumps(config))


LINEAR = "multi_modal_projector.linear_1.weight"
SPOILT = torch.full((48, 32), float("nan"))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: leave_out(f, LINEAR), rf"missing tensors: {LINEAR} \[48, 32\]$"),
        (lambda f: leave_out(f, **{"new.tensor": torch.zeros(2)}), r"unexpected tensors: new\.tensor \[2\]$"),
        (
            lambda f: leave_out(f, LINEAR, **{LINEAR: torch.zeros(48, 31)}),
            rf"misshapen tensors: {LINEAR}: shape \[48, 31\], the config says \[48, 32\]$",
        ),
        (
            lambda f: leave_out(f, *[name for name in load_file(f / "model.safetensors") if "layers.2" in name]),
            r"missing tensors: vision_tower\.\S+ \[[\d, ]+\], .* and \d+ more$",
        ),
        (
            lambda f: (f / "config.json").write_text('{"model_type": "gpt2"}'),
            "llava-llama: config of another architecture.*'gpt2'",
        ),
        (
            lambda f: in_config(f, "text_config", hidden_size="abc"),
            "llava-llama: no model can be built of .*hidden_size",
        ),
        (lambda f: in_config(f, "text_config", num_attention_heads=0), r"text_config\.num_attention_heads=0: allow"),
        (lambda f: in_config(f, "text_config", model_type="nonsense"), "llava-llama: no model can be built .*nonsense"),
        (
            lambda f: in_config(f, "vision_config", patch_size=0),
            r"llava-llama: config\.json: vision_config\.patch_size=0: al",
        ),
        (
            lambda f: in_config(f, "vision_config", model_type="dinov2"),
            "another architecture .*'dinov2'.; allowed are c",
        ),
        (lambda f: in_config(f, None, vision_feature_layer=[-2, -1]), r"llava-llama: vision_feature_layer=\[-2, -1\]"),
        (lambda f: in_config(f, None, vision_feature_layer=9), "llava-llama: vision_feature_layer=9: the vision tow"),
        (lambda f: leave_out(f, LINEAR, **{LINEAR: SPOILT}), rf"model\.safetensors: {LINEAR} contains NaN or infinity"),
        (
            lambda f: leave_out(f, LINEAR, **{LINEAR: torch.ones(48, 32).to(torch.int8)}),
            rf"model\.safetensors: {LINEAR} is stored as I8, as in a quantized checkpoint; allowed are weights in",
        ),
        (
            lambda f: in_config(f, "text_config", quantization_config={"quant_method": "gptq"}),
            r"a quantized checkpoint \(quantization_config: gptq\); allowed are weights in float64, float32",
        ),
        (lambda f: (f / "config.json").unlink(), r"config\.json: cannot be read: No such file"),
        (lambda f: (f / "model.safetensors").unlink(), r"contains no model\*\.safetensors"),
    ],
)
def test_what_does_not_fit_writes_nothing(make_llava: Factory, tmp_path: Path, spoil: Any, message: str) -> None:
    _, source = make_llava()
    spoil(source)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(UserError, match=message) as caught:
        plain(source, tmp_path / "ours")
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O error: No space left on device")],
)
def test_a_failure_while_writing_leaves_nothing(
    make_llava: Factory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    _, source = make_llava()

    def full(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("llava_mini.models.tensor_files.save_file", full)
    with pytest.raises(UserError, match=r"ours: cannot be written \(.*No space left"):
        plain(source, tmp_path / "ours")
    assert [path.name for path in tmp_path.iterdir()] == [source.name]
