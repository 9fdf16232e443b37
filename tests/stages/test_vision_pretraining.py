"""Stage 0: steps make the tower's features say more of what stands in the patches; background is not scored."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import CLIPVisionConfig

from llava_mini.batch import IGNORE
from llava_mini.models.vision_tower import build_vision_tower
from llava_mini.stages.vision_pretraining import VisionPretrainingStage

CLASSES = {"kind": 3, "color": 4, "digit": 5, "center_x": 2}
Factory = Callable[..., Any]


@pytest.fixture
def stage() -> VisionPretrainingStage:
    """For pictures of 3 x 3 patches."""
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=12, patch_size=4
    )
    return VisionPretrainingStage(
        vision_tower=build_vision_tower(config), feature_layer=-1, target_classes=CLASSES, learning_rate=3e-3,
        warmup_ratio=0.0,
    )  # fmt: skip


def pictures(count: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(count, 3, 12, 12, generator=generator)
    targets = {name: torch.randint(0, classes, (count, 9), generator=generator) for name, classes in CLASSES.items()}
    targets["center_x"][:, ::2] = IGNORE
    return pixels, targets


def test_every_patch_has_logits_for_every_target(stage: VisionPretrainingStage):
    logits = stage(pictures(2)[0])
    assert {name: tuple(each.shape) for name, each in logits.items()} == {n: (2, c, 9) for n, c in CLASSES.items()}


def test_a_step_lowers_the_loss_and_moves_tower_and_heads(stage: VisionPretrainingStage, fit: Factory):
    batch = pictures(4)
    before = {name: parameter.clone() for name, parameter in stage.named_parameters()}
    first = fit(stage, [batch]).callback_metrics["train/loss"]  # of before its step
    last = fit(stage, [batch] * 5).callback_metrics["train/loss"]
    assert last < 0.95 * first
    unmoved = {name for name, parameter in stage.named_parameters() if torch.equal(parameter, before[name])}
    # The last layer is read before the tower's own pooling, which therefore learns nothing.
    assert all(name.startswith("vision_tower.post_layernorm") for name in unmoved), unmoved


def test_the_supervised_features_are_those_that_the_model_will_read(stage: VisionPretrainingStage):
    pixels, _ = pictures(2)
    read = stage.vision_tower(pixel_values=pixels, output_hidden_states=True).hidden_states[-1][:, 1:]
    torch.testing.assert_close(stage(pixels)["kind"], stage.heads["kind"](read).transpose(1, 2))


def test_patches_without_a_target_do_not_count(stage: VisionPretrainingStage, fit: Factory):
    pixels, targets = pictures(2)
    loss = fit(stage, [(pixels, targets)], [(pixels, targets)]).callback_metrics["val/loss"]
    alone = {name: each for name, each in targets.items() if name != "center_x"}
    scored = targets["center_x"] != IGNORE
    logits = stage(pixels)
    expected = sum(torch.nn.functional.cross_entropy(logits[name], each) for name, each in alone.items())
    chosen = logits["center_x"].transpose(1, 2)[scored]
    expected = expected + torch.nn.functional.cross_entropy(chosen, targets["center_x"][scored])
    torch.testing.assert_close(loss, expected)


def test_background_is_not_scored(stage: VisionPretrainingStage, fit: Factory, monkeypatch: pytest.MonkeyPatch):
    pixels, _ = pictures(1)
    says = {
        "kind": [0, 1, 1, 0, 2, 0, 0, 0, 0],
        "color": [0, 1, 2, 0, 3, 0, 0, 0, 0],
        "digit": [0, 0, 0, 0, 4, 0, 0, 0, 0],
        "center_x": [0, 0, 1, 0, 1, 0, 0, 0, 0],
    }
    targets = {
        "kind": [0, 1, 2, 1, 2, 0, 0, 0, 0],  # four objects: two right, one wrong, one not seen
        "color": [0, 1, 2, 1, 1, 0, 0, 0, 0],  # two of four
        "digit": [0, 0, 0, 0, 4, 0, 0, 0, 3],  # two digits, one right
        "center_x": [IGNORE, 0, 0, 1, 1, IGNORE, IGNORE, IGNORE, IGNORE],  # class 0 is a place here: two of four
    }
    logits = {
        name: torch.nn.functional.one_hot(torch.tensor([each]), CLASSES[name]).float().transpose(1, 2)
        for name, each in says.items()
    }
    batch = (pixels, {name: torch.tensor([each]) for name, each in targets.items()})
    training_batch = pictures(2)
    forward = stage.forward
    monkeypatch.setattr(stage, "forward", lambda images: logits if len(images) == 1 else forward(images))
    metrics = fit(stage, [training_batch], [batch]).callback_metrics
    found = {name: float(metrics[f"val/{name}"]) for name in CLASSES}
    assert found == pytest.approx({"kind": 0.5, "color": 0.5, "digit": 0.5, "center_x": 0.5})
