"""Recipes: which one a model takes by itself, that it has no value of the toy world, and how its step is made up."""

import pytest
from tests.refusals import refuses

from llava_mini.config import options, resolve
from llava_mini.run.identity import config_hash

VICUNA = "model=llava_mini_vicuna_7b"


@pytest.mark.parametrize(
    ("overrides", "recipe"),
    [
        ([], "tiny"),
        (["model=tiny", "finetune=qlora"], "tiny"),
        ([VICUNA], "stage2"),
        ([VICUNA, "finetune=frozen_llm"], "stage2"),
        ([VICUNA, "finetune=lora"], "lora"),
        ([VICUNA, "finetune=dora"], "lora"),
        ([VICUNA, "finetune=qlora"], "qlora"),
        ([VICUNA, "stage=alignment"], "stage1"),
        ([VICUNA, "recipe=tiny_scenes"], "tiny_scenes"),
        (["model=parts", "model.vision_tower=a/b", "model.language_model=c/d"], "stage2"),
    ],
)
def test_a_model_takes_the_recipe_of_its_stage(overrides: list[str], recipe: str) -> None:
    config = resolve(overrides)
    chosen = dict(override.split("=") for override in overrides)
    assert config.choices["recipe"] == recipe
    assert config.choices["finetune"] == chosen.get("finetune", "full")


@pytest.mark.parametrize("recipe", [name for name in options("recipe") if not name.startswith(("tiny", "smoke"))])
@pytest.mark.parametrize("model", [name for name in options("model") if name not in ("tiny", "parts")])
def test_a_real_run_has_no_value_of_the_toy_world(model: str, recipe: str) -> None:
    config = resolve([f"model={model}", f"recipe={recipe}"])
    assert (config.data.world_seed, config.data.sizes, config.data.kinds, config.model.start) == (None, {}, [], None)
    assert (config.fusion.init, config.memory.fit, config.choices["data"]) == ("identity", True, "own")
    assert config.data.template == ("plain" if recipe == "stage1" else config.model.template) != "tiny"


def test_rates_and_batches_are_the_papers_and_llavas() -> None:
    """Table 9 for the stages; LLaVA-v1.5's own script for LoRA."""
    stage1, stage2, lora = (resolve([VICUNA, f"recipe={name}"]) for name in ("stage1", "stage2", "lora"))
    assert stage1.stage.get("learning_rates") == {"projector": 1e-3}
    others = {"projector": 1e-5, "compressor": 1e-5, "prefusion": 1e-5}
    assert stage2.stage.get("learning_rates") == {**others, "language_model": 1e-4}
    assert lora.stage.get("learning_rates") == {**dict.fromkeys(others, 2e-05), "language_model": 2e-4}
    assert lora.finetune.lora is not None and (lora.finetune.lora.rank, lora.finetune.lora.alpha) == (128, 256)
    of_each = [(each.trainer.epochs, each.trainer.global_batch) for each in (stage1, stage2, lora)]
    assert of_each == [(1, 256), (2, 256), (1, 128)]


def test_a_step_has_as_many_samples_whatever_is_computed_at_once() -> None:
    runs = [resolve([VICUNA, f"data.batch_size={size}", *more]) for size, more in
            ((4, []), (8, []), (2, ["trainer.devices=8"]), (4, ["trainer.accumulate_grad_batches=64"]))]  # fmt: skip
    assert [run.accumulate for run in runs] == [64, 32, 16, 64]
    assert len({config_hash(run) for run in runs}) == 1
    assert config_hash(resolve([VICUNA, "trainer.global_batch=128"])) != config_hash(runs[0])
    tiny = [resolve([f"data.batch_size={size}"]) for size in (8, 16)]
    assert len({config_hash(run) for run in tiny}) == 2 and [run.accumulate for run in tiny] == [1, 1]


def test_a_step_that_its_batches_do_not_make_up_is_refused() -> None:
    with refuses("data.batch_size", 5, "data.batch_size=1, 2, 3, 4, 6, 12"):
        resolve([VICUNA, "trainer.global_batch=12", "data.batch_size=5"])
    with refuses("data.batch_size", 4, "a multiple of 8"):
        resolve([VICUNA, "trainer.global_batch=12", "trainer.devices=8"])
    with refuses("trainer.accumulate_grad_batches", 2, "null, 64"):
        resolve([VICUNA, "trainer.accumulate_grad_batches=2"])
    with refuses("trainer.max_steps", None, "trainer.max_steps or trainer.epochs"):
        resolve(["trainer.max_steps=null"])
