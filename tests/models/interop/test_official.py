"""The official release: its recorded outputs, case by case, and what is said about checkpoints that do not fit.

The recordings (weights, inputs, outputs) and the comparison itself are in tests/golden.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.golden import check
from transformers import CLIPVisionConfig

from llava_mini.errors import UserError
from llava_mini.models import LlavaMiniForConditionalGeneration
from llava_mini.models.interop.convert import convert_official
from llava_mini.models.interop.export import convert_to_official
from llava_mini.models.interop.parts import CLIP_ID

Factory = Callable[..., Any]
CASES = [
    "a_image_c1",
    "b_image_c2_batch2",
    "c_hd_c4",
    "d_video3_c1",
    "e_gqa_llama3",
    "f_prefusion1_c1",
    "h_prefusion0_c2",
    "i_mixed_list_c1",
    "j_pad199_token0_c1",
]
PREFIXES = {  # ours -> the release's
    "vision_tower.": "model.vision_tower.vision_tower.vision_model.",
    "compressor.attention.": "model.compressor.attn.",
    "compressor.norm_query.": "model.compressor.ln_q.",
    "compressor.norm_patches.": "model.compressor.ln_kv.",
    "compressor.position": "model.compressor.pos_embed",
    "compressor.query": "model.compressor.query",
    "projector.linear_1.": "model.mm_projector.0.",
    "projector.linear_2.": "model.mm_projector.2.",
    "prefusion.layers.": "model.prefusion_layers.",
    "language_model.model.": "model.",
    "language_model.lm_head.": "lm_head.",
}


@pytest.mark.parametrize("case", CASES)
def test_agrees_with_the_official_release(case: str) -> None:
    assert check.check_case(case) == []


@pytest.mark.parametrize("case", ["a_image_c1", "c_hd_c4", "e_gqa_llama3", "h_prefusion0_c2"])
def test_converted_folders_agree_with_the_official_release(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recorded weights in the release's layout, through folders to ours and back."""

    def through_folders(config: dict[str, Any], state: dict[str, Any], clip: dict[str, Any]) -> Any:
        source, tower = tmp_path / "release", tmp_path / "tower"
        source.mkdir()
        config = {**config, "model_type": "llava_mini", "mm_vision_tower": str(tower)}
        (source / "config.json").write_text(json.dumps(config))
        CLIPVisionConfig(**clip).save_pretrained(tower)
        names = sorted(state)
        for number, part in enumerate((names[::2], names[1::2]), start=1):
            kept = {name: state[name] for name in part}
            if case == "a_image_c1":
                torch.save(kept, source / f"pytorch_model-{number:05d}-of-00002.bin")
            else:
                save_file(kept, source / f"model-{number:05d}-of-00002.safetensors")
        convert_official(source, tmp_path / "ours", str(tower))
        convert_to_official(tmp_path / "ours", tmp_path / "back")
        back = load_file(tmp_path / "back" / "model.safetensors")
        assert back.keys() == state.keys() and all(torch.equal(back[name], state[name]) for name in state)
        again = json.loads((tmp_path / "back" / "config.json").read_text())
        fields = {
            key: value for key, value in config.items() if key.startswith(("mm_", "compressor", "prefusion", "resol"))
        }
        assert {key: again[key] for key in fields} == {**fields, "mm_vision_tower": CLIP_ID}
        assert again["rope_theta"] == config["rope_theta"]
        return LlavaMiniForConditionalGeneration.from_pretrained(tmp_path / "ours")

    monkeypatch.setattr(check, "from_official", through_folders)
    assert check.check_case(case) == []


def test_no_recorded_case_is_left_out() -> None:
    assert check.CASES == CASES


def test_the_comparison_names_what_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that are not the recorded ones: logits, loss, generated tokens and gradients are all said to differ."""
    original = check.from_official

    def scaled(config: dict[str, Any], state: dict[str, Any], clip: dict[str, Any]) -> Any:
        state["model.mm_projector.2.weight"] *= 2
        return original(config, state, clip)

    monkeypatch.setattr(check, "from_official", scaled)
    wrong = check.check_case("b_image_c2_batch2")
    assert [line.partition(":")[0] for line in wrong] == [
        "infer logits", "train logits", "loss", "row 0", "row 1",
        "gradient of compressor", "gradient of mm_projector", "gradient of prefusion_layers",
    ]  # fmt: skip


def test_the_command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "argv", ["check.py", "a_image_c1"])
    assert (check.main(), capsys.readouterr().out) == (0, "a_image_c1: agrees\n1 of 1 cases agree\n")
    assert sys.path[0] == str(Path(__file__).parents[3] / "src"), "the code of this clone is checked"
    monkeypatch.setattr(check, "check_case", lambda name: ["loss: off by 1"] if name == CASES[-1] else [])
    monkeypatch.setattr(sys, "argv", ["check.py"])
    assert check.main() == 1
    assert capsys.readouterr().out.endswith(f"{CASES[-1]}: loss: off by 1\n8 of 9 cases agree\n")
    monkeypatch.setattr(sys, "argv", ["check.py", "k"])
    with pytest.raises(SystemExit, match="2"):
        check.main()
    assert f"k: allowed are {', '.join(CASES)}" in capsys.readouterr().err


@pytest.fixture
def official(make_model: Factory, make_text_config: Factory) -> tuple[Any, dict[str, Any], dict[str, Any], Any]:
    """(a model of ours, the release's config, its state dict, CLIP's config) of the same small model."""
    model = make_model(vision_feature_layer=-2)
    state = {}
    for name, tensor in model.state_dict().items():
        ours = next(prefix for prefix in PREFIXES if name.startswith(prefix))
        state[PREFIXES[ours] + name[len(ours) :]] = tensor
    config = {
        **make_text_config().to_dict(),
        "model_type": "llava_mini",
        "mm_vision_select_layer": -2,
        "mm_hidden_size": 32,
        "compressor_size": 2,
        "prefusion_layer_num": 2,
        "resolution_ratio": 1,
    }
    return model, config, state, model.config.vision_config.to_dict()


@torch.no_grad()
def test_names_and_config_are_translated(official: Any, make_sample: Factory, collate: Factory) -> None:
    model, config, state, clip = official
    again = check.from_official(config, state, clip).eval()
    batch = collate(model, [make_sample(1)])
    assert torch.equal(again(**batch).logits, model(**batch).logits)
    assert again.config.image_token_id == again.config.text_config.vocab_size  # beyond the vocabulary: never embedded


def test_half_precision_checkpoint_makes_one_working_dtype(
    official: Any, make_sample: Factory, collate: Factory
) -> None:
    """The published config says bfloat16, which must not leave parts in different dtypes."""
    _, config, state, clip = official
    half = {name: tensor.bfloat16() for name, tensor in state.items()}
    again = check.from_official({**config, "torch_dtype": "bfloat16"}, half, clip)
    assert {parameter.dtype for parameter in again.parameters()} == {torch.float32}
    assert torch.isfinite(again(**collate(again, [make_sample(1)])).loss)


def converted(official: Any, folder: Path) -> None:
    _, config, state, clip = official
    for name in ("release", "tower"):
        (folder / name).mkdir()
    (folder / "release" / "config.json").write_text(json.dumps(config))
    save_file(state, folder / "release" / "model.safetensors")
    CLIPVisionConfig(**clip).save_pretrained(folder / "tower")
    convert_official(folder / "release", folder / "ours", str(folder / "tower"))


def test_missing_and_unexpected_tensors_are_named(official: Any, tmp_path: Path) -> None:
    state = official[2]
    del state["model.mm_projector.2.bias"]
    state["model.layers.9.mlp.up_proj.weight"] = torch.zeros(1)
    with pytest.raises(UserError, match=r"missing.*model\.mm_projector\.2\.bias.*unexpected.*layers\.9"):
        converted(official, tmp_path)


def test_misshapen_tensor_is_named_with_both_shapes(official: Any, tmp_path: Path) -> None:
    official[2]["model.mm_projector.0.weight"] = torch.zeros(48, 31)
    with pytest.raises(UserError, match=r"model\.mm_projector\.0\.weight: shape \[48, 31\].*\[48, 32\]"):
        converted(official, tmp_path)


def test_foreign_tensor_is_named(official: Any, tmp_path: Path) -> None:
    official[2]["visual.proj"] = torch.zeros(1)
    with pytest.raises(UserError, match=r"visual\.proj"):
        converted(official, tmp_path)


@pytest.mark.parametrize("key", ["mm_vision_select_layer", "compressor_size", "prefusion_layer_num"])
def test_config_of_another_model(official: Any, tmp_path: Path, key: str) -> None:
    del official[1][key]
    with pytest.raises(UserError, match=f"no {key}"):
        converted(official, tmp_path)


def test_inputs_are_spliced_as_in_the_release(official: Any) -> None:
    """-200 becomes the placeholders of all frames; padding goes; a row without -200 loses its dummy image."""
    model = official[0]
    ids = torch.tensor([[1, -200, 5, 6, 0], [1, 7, 0, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]])
    labels = torch.tensor([[-100, -200, -100, 6, -100], [-100, 7, -100, -100, -100]])
    video, dummy = torch.ones(2, 1, 3, 24, 24), torch.zeros(1, 3, 24, 24)
    batch = check.official_batch(model, ids, mask, [video, dummy], labels)
    placeholder = model.config.image_token_id
    assert batch["input_ids"].tolist() == [[1, *[placeholder] * 8, 5, 6], [1, 7, *[0] * 9]]
    assert batch["attention_mask"].sum(1).tolist() == [11, 2]
    assert batch["labels"].tolist() == [[-100] * 10 + [6], [-100, 7] + [-100] * 9]
    assert batch["instruction_mask"].long().tolist() == [[1] * 10 + [0], [1] + [0] * 10]
    assert batch["num_frames"].tolist() == [2, 0] and torch.equal(batch["pixel_values"], video)


def test_two_images_in_a_row_are_refused(official: Any) -> None:
    ids = torch.tensor([[1, -200, 5, -200]])
    with pytest.raises(ValueError, match="row 0.*2"):
        check.official_batch(official[0], ids, torch.ones_like(ids), torch.zeros(1, 1, 3, 24, 24))
