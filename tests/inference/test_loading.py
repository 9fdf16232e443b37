"""A model is loaded from where users have it, or one line says what is there instead."""

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.refusals import refuses
from transformers import AutoConfig, CLIPImageProcessorPil

from llava_mini.data.text.templates import LLAMA3, PLAIN, TINY
from llava_mini.errors import UserError
from llava_mini.inference.loading import device_named, load
from llava_mini.inference.prompts import check_question, end_of_answer, prompt_of, user_message
from llava_mini.models import LlavaMiniProcessor
from llava_mini.models.prepacked import PrepackedLinear


@pytest.fixture
def folder(model_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(model_folder, tmp_path / "run" / "model")


def test_a_saved_model_is_ready_to_answer(model_folder: Path) -> None:
    model, processor = load(str(model_folder))
    assert (model.training, model.dtype, model.device.type) == (False, torch.float32, "cpu")
    assert model.generation_config.eos_token_id == [2] and model.generation_config.pad_token_id == 0
    assert prompt_of(processor, [user_message("what", ["image", "video"])]) == "<image>\n<video>\nwhat <answer>"
    assert isinstance(model.get_output_embeddings(), PrepackedLinear)
    half, _ = load(str(model_folder), device="cpu", dtype="bfloat16")
    assert half.dtype == torch.bfloat16 and type(half.get_output_embeddings()) is torch.nn.Linear


def write_text_model(folder: Path) -> None:
    AutoConfig.for_model("llama").save_pretrained(folder)


def damage_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:1000])


def drop_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["compressor.query"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def other_shape(folder: Path) -> None:
    fields = json.loads((folder / "config.json").read_text())
    fields["text_config"]["intermediate_size"] = 32
    (folder / "config.json").write_text(json.dumps(fields))


def impossible_shape(folder: Path) -> None:
    fields = json.loads((folder / "config.json").read_text())
    fields["compressor"]["C"] = 0
    (folder / "config.json").write_text(json.dumps(fields))


def foreign_compressor(folder: Path) -> None:
    fields = json.loads((folder / "config.json").read_text())
    fields["compressor"]["_target_"] = "max_pool.MaxPoolCompressor"
    (folder / "config.json").write_text(json.dumps(fields))


def no_processor(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name not in ("config.json", "model.safetensors", "generation_config.json"):
            path.unlink()


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


def only_adapters(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "base.json").write_text("{}")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (write_text_model, r"a model of type 'llama', which this program gives no images to; allowed is 'llava_mini'"),
        (damage_weights, "the model cannot be loaded"),
        (drop_a_tensor, r"1 tensors are missing, compressor\.query for one"),
        (other_shape, "the model cannot be loaded"),
        (impossible_shape, "compressor.C=0"),
        (foreign_compressor, "add its folder with --config-dir"),
        (no_processor, "no processor that can be loaded"),
        (only_adapters, "`llava-mini merge` makes a model of the run"),
        (lambda folder: (folder / "chat_template.jinja").unlink(), "its processor has no chat template"),
        (lambda folder: (folder / "config.json").write_text("{"), "no config.json can be read there"),
        (lambda folder: (folder / "config.json").unlink(), "no model, it has no config.json"),
        (lambda folder: cut_off(folder / "generation_config.json"), r"generation_config\.json: no JSON"),
        (lambda folder: cut_off(folder / "tokenizer.json"), r"tokenizer\.json: no JSON"),
        (lambda folder: cut_off(folder / "model.safetensors"), r"model\.safetensors: "),
    ],
)
def test_what_is_no_model_of_ours_is_named_in_one_line(
    folder: Path, change: Callable[[Path], Any], reason: str
) -> None:
    change(folder)
    with pytest.raises(UserError, match=reason) as error:
        load(str(folder))
    assert str(error.value).startswith(f"{folder}: ") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"]
)
def test_a_file_that_may_not_be_read_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Safetensors calls it missing, and transformers leaves some out."""
    opened = Path.open

    def refused(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.name == name:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    (folder / name).write_bytes(b"{\xff")
    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(UserError, match=rf"{folder}/{name}: Permission denied$"):
        load(str(folder))


def test_a_folder_that_may_not_be_looked_into(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path, **_: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "stat", refused)
    with pytest.raises(UserError, match=f"^{folder}: Permission denied$"):
        load(str(folder))


def test_places_that_hold_nothing(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"run: no model, it has no config\.json; {folder} is one"):
        load(str(folder.parent))
    for place in (str(tmp_path / "none"), "./none", "none", str(folder / "config.json")):
        with pytest.raises(UserError, match="no such folder, and no Hub id"):
            load(place)
    with pytest.raises(UserError, match=r"nobody/nothing: no config\.json can be read there"):
        load("nobody/nothing")


@pytest.mark.parametrize("name", ["gpu", "meta", "mps", "cuda:99", ""])
def test_devices_that_are_not_there(name: str) -> None:
    with refuses("device", name):
        device_named(name)


def test_types_that_there_are_not(model_folder: Path) -> None:
    assert device_named("cpu") == torch.device("cpu")
    with refuses("dtype", "int8", "float32, float16, bfloat16"):
        load(str(model_folder), dtype="int8")


def test_answers_end_as_the_chat_template_ends_them(make_asked: Callable[..., Any]) -> None:
    _, processor = make_asked()
    assert end_of_answer(processor) == 2
    _, captions = make_asked(chat_template=PLAIN.chat_template())
    assert end_of_answer(captions) is None
    _, broken = make_asked(chat_template="{{ raise_exception('no') }}")
    assert end_of_answer(broken) is None
    processor.tokenizer.add_special_tokens({"additional_special_tokens": ["<|eot_id|>"]})
    llama = LlavaMiniProcessor(CLIPImageProcessorPil(), processor.tokenizer, chat_template=LLAMA3.chat_template())
    assert end_of_answer(llama) == processor.tokenizer.convert_tokens_to_ids("<|eot_id|>")


def test_the_end_of_an_answer_is_added_to_the_ends_of_texts(folder: Path) -> None:
    own = {"assistant_suffix": "<answer>"}
    (folder / "chat_template.jinja").write_text(type(TINY)(**own).chat_template())
    model, processor = load(str(folder))
    assert model.generation_config.eos_token_id == [2, processor.tokenizer.convert_tokens_to_ids("<answer>")]


@pytest.mark.parametrize(
    ("question", "reason"),
    [("", "empty"), (" \n", "empty"), ("a <video>", "<video>"), ("<pad>", "<pad>"), ("x</s>y", "</s>")],
)
def test_questions_that_cannot_be_asked(make_asked: Callable[..., Any], question: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        check_question(question, make_asked()[1])


def test_a_template_that_cannot_write_a_question_is_one_line(make_asked: Callable[..., Any]) -> None:
    _, processor = make_asked(chat_template="{{ raise_exception('roles must alternate') }}")
    with pytest.raises(UserError, match="roles must alternate"):
        prompt_of(processor, [user_message("what")])
