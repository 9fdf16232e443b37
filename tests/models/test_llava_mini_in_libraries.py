"""As transformers' Trainer and PEFT call the model: a step's loss is over all its tokens, no keyword goes unread."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from peft import LoraConfig, get_peft_model
from transformers import LlavaForConditionalGeneration, Trainer, TrainingArguments

ANSWERS = (1, 9, 2, 4, 1, 7, 3, 3)  # supervised tokens of every sample
Train = Callable[..., tuple[float, float]]


@pytest.fixture
def plain(make_model, compressors) -> Any:
    """Ours as plain LLaVA."""
    return make_model(compressor=compressors["none"], num_fusion_layers=0, image_token_id=98)


@pytest.fixture
def train(plain, make_sample, collate, tmp_path: Path) -> Train:
    """train(model, size, times): loss and gradient norm that transformers' Trainer logs for one step of 8 samples."""
    samples = [make_sample(seed, answer=tokens) for seed, tokens in enumerate(ANSWERS)]

    def run(model: Any, size: int, times: int) -> tuple[float, float]:
        def collated(chosen: list[Any]) -> dict[str, torch.Tensor]:
            batch = collate(plain, chosen)
            if isinstance(model, LlavaForConditionalGeneration):
                del batch["num_frames"]
                batch["pixel_values"] = batch["pixel_values"][:, 0]
            return batch

        arguments = TrainingArguments(
            str(tmp_path), per_device_train_batch_size=size, gradient_accumulation_steps=times, max_steps=1,
            logging_steps=1, learning_rate=0.0, max_grad_norm=1e9, use_cpu=True, report_to=[], save_strategy="no",
            remove_unused_columns=False, disable_tqdm=True,
        )  # fmt: skip
        trainer = Trainer(model=model, args=arguments, train_dataset=samples, data_collator=collated)
        trainer.train()
        logged = trainer.state.log_history[0]
        return float(logged["loss"]), float(logged["grad_norm"])

    return run


def test_transformers_trainer_gets_what_its_own_llava_gives(train: Train, plain, transformers_llava) -> None:
    theirs = transformers_llava(plain)
    whole = train(plain, 8, 1)
    assert min(whole) > 0.1, "there is something to compare"
    assert whole == pytest.approx(train(theirs, 8, 1), rel=1e-4)
    for size, times in ((2, 4), (1, 8)):
        assert train(plain, size, times) == pytest.approx(whole, rel=1e-4)
        assert train(theirs, size, times) == pytest.approx(whole, rel=1e-4)


def _stepped(make: Callable[[], Any], samples: list[Any], collate: Any, path: Path, size: int, *, rank: int) -> None:
    """Save a model's weights after a step of transformers' Trainer with `size` samples in this process, if rank 0."""
    AcceleratorState._reset_state(reset_partial_state=True)  # of the process that this one is a fork of
    model = make()
    arguments = TrainingArguments(
        str(path.parent), per_device_train_batch_size=size, max_steps=1, learning_rate=0.1, optim="sgd",
        lr_scheduler_type="constant", max_grad_norm=1e9, use_cpu=True, report_to=[], save_strategy="no",
        remove_unused_columns=False, disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(
        model=model, args=arguments, train_dataset=samples, data_collator=lambda chosen: collate(model, chosen)
    )
    trainer.train()
    if rank == 0:
        torch.save({"ranks": arguments.world_size, **model.state_dict()}, path)


def _as_rank(rank: int, ranks: int, port: int, *what: Any) -> None:
    facts = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in facts.items()} if ranks > 1 else {})
    _stepped(*what, rank=rank)


def test_a_step_of_two_ranks_is_that_of_one(make_model, make_sample, collate, tmp_path: Path) -> None:
    """2 ranks x 4 samples and 8 x 1 give the same weights, by gloo, however many supervised tokens each has."""
    samples = [make_sample(seed, frames=seed % 3, answer=tokens) for seed, tokens in enumerate(ANSWERS)]
    fork = multiprocessing.get_context("fork")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for ranks in (1, 2):
        what = (make_model, samples, collate, tmp_path / f"{ranks}.pt", 8 // ranks)
        processes = [fork.Process(target=_as_rank, args=(rank, ranks, port, *what)) for rank in range(ranks)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(120)
            process.kill()
        assert [process.exitcode for process in processes] == [0] * ranks
    one, two = (torch.load(tmp_path / f"{ranks}.pt") for ranks in (1, 2))
    assert (one.pop("ranks"), two.pop("ranks")) == (1, 2)
    before = make_model().state_dict()
    moved = [name for name in before if not torch.equal(before[name], one[name])]
    assert any("projector" in name for name in moved) and any("lm_head" in name for name in moved)
    for name in before:
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("task", [None, "CAUSAL_LM"])
def test_peft_wraps_it_for_any_task(train: Train, plain, make_sample, collate, task: str | None) -> None:
    batch = collate(plain, [make_sample(1), make_sample(2, answer=7)])
    prompt = collate(plain, [make_sample(1)], answers=False)
    with torch.no_grad():
        expected, answer = plain(**batch).loss, plain.generate(**prompt, max_new_tokens=4, do_sample=False)
    adapted = get_peft_model(plain, LoraConfig(r=4, target_modules=["q_proj"], task_type=task))
    assert torch.equal(adapted(**batch).loss, expected)  # fresh adapters add nothing
    assert torch.equal(adapted.generate(**prompt, max_new_tokens=4, do_sample=False), answer)
    assert train(adapted, 2, 4) == pytest.approx(train(adapted, 8, 1), rel=1e-4)


@pytest.mark.parametrize("training", [True, False])
def test_the_loss_is_the_sum_over_the_items_that_are_reported(make_model, make_sample, collate, training: bool) -> None:
    model = make_model().train(training)
    batch = collate(model, [make_sample(1, answer=2), make_sample(2, answer=5)])
    mean = model(**batch).loss
    for items in (14, torch.tensor(14)):
        torch.testing.assert_close(model(**batch, num_items_in_batch=items).loss, mean / 2)
    assert torch.equal(model(**batch, num_items_in_batch=None).loss, mean)
    model.loss_chunk = 3
    torch.testing.assert_close(model(**batch, num_items_in_batch=14).loss, mean / 2)


@pytest.mark.parametrize("training", [True, False])
def test_an_unknown_keyword_is_named(make_model, make_sample, collate, training: bool) -> None:
    model = make_model().train(training)
    batch = collate(model, [make_sample(1)])
    with pytest.raises(TypeError, match=r"takes no keyword 'pixel_value'; besides its own .* takes .*is_causal"):
        model(**batch, pixel_value=batch["pixel_values"])
    with pytest.raises(ValueError, match="inputs_embeds: input_ids are needed"):
        model(**batch, inputs_embeds=torch.zeros(1, 3, 48))
    assert model(**batch, inputs_embeds=None, output_attentions=None, return_dict=None).loss > 0


@pytest.mark.parametrize("training", [True, False])
def test_outputs_are_given_as_asked(make_model, make_sample, collate, training: bool) -> None:
    model = make_model().train(training)
    batch = collate(model, [make_sample(1)])
    whole = model(**batch, output_hidden_states=True)
    assert len(whole.hidden_states) == 4  # embeddings and three layers
    in_order = model(**batch, return_dict=False)
    assert isinstance(in_order, tuple)
    assert torch.equal(in_order[0], whole.loss)


@pytest.fixture
def trainer(make_model, make_sample, collate, tmp_path: Path) -> Callable[..., Trainer]:
    """trainer(**TrainingArguments): one step over two samples, by transformers' Trainer."""

    def make(**arguments: Any) -> Trainer:
        model, samples = make_model(), [make_sample(1), make_sample(2, answer=5)]
        given = dict(
            output_dir=str(tmp_path / "run"), per_device_train_batch_size=2, max_steps=1, logging_steps=1, use_cpu=True,
            report_to=[], save_strategy="no", remove_unused_columns=False, disable_tqdm=True,
        )  # fmt: skip
        return Trainer(
            model=model,
            args=TrainingArguments(**{**given, **arguments}),
            train_dataset=samples,
            eval_dataset=samples,
            data_collator=lambda chosen: collate(model, chosen),
        )

    return make


def test_trainer_evaluates_and_predicts(trainer) -> None:
    own = trainer()
    with torch.no_grad():
        expected = own.model(**own.data_collator(own.eval_dataset))
    assert own.evaluate()["eval_loss"] == pytest.approx(float(expected.loss))
    torch.testing.assert_close(torch.from_numpy(own.predict(own.eval_dataset).predictions), expected.logits)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
def test_trainer_checkpoints_and_goes_on(trainer, tmp_path: Path) -> None:
    """The same loss with activations made again; from a saved step it goes on."""
    own = trainer(gradient_checkpointing=True, save_strategy="steps", save_steps=1)
    with torch.no_grad():
        expected = float(own.model(**own.data_collator(own.train_dataset)).loss)
    assert own.train().training_loss == pytest.approx(expected)
    again = trainer(max_steps=2)
    assert again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1")).global_step == 2


def test_trainers_label_smoothing_needs_an_instruction_mask(trainer, collate) -> None:
    """It keeps labels to itself, and pre-fusion would see the answers."""
    own = trainer(label_smoothing_factor=0.1)
    with pytest.raises(ValueError, match=r"^labels: in training they \(or instruction_mask\) are needed"):
        own.train()

    def with_mask(chosen: list[Any]) -> dict[str, torch.Tensor]:
        batch = collate(own.model, chosen)
        return {**batch, "instruction_mask": (batch["labels"] == -100) & batch["attention_mask"].bool()}

    own.data_collator = with_mask
    assert own.train().training_loss > 0
