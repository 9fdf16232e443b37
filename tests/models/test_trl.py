"""TRL's SFTTrainer calls the model without its head and without labels, and makes the loss itself."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from PIL import Image
from transformers import LlavaForConditionalGeneration
from trl import SFTConfig, SFTTrainer

from llava_mini.data.text.templates import TINY

ANSWERS = (1, 9, 2, 4, 1, 7, 3, 3)  # supervised tokens of every sample
SAYS = ("there", "here and there", "there and here and there", "and")
Train = Callable[..., tuple[float, float]]


@pytest.fixture
def train(tmp_path: Path) -> Train:
    """train(model, processor, rows, size, times): loss and gradient norm that SFTTrainer logs for one step."""

    def run(
        model: Any, processor: Any, rows: list[dict[str, Any]], size: int, times: int, collator: Any = None, **more: Any
    ) -> tuple[float, float]:
        arguments = SFTConfig(
            str(tmp_path), per_device_train_batch_size=size, gradient_accumulation_steps=times, max_steps=1,
            logging_steps=1, learning_rate=0.0, max_grad_norm=1e9, use_cpu=True, bf16=False, report_to=[],
            save_strategy="no", disable_tqdm=True, max_length=None, remove_unused_columns=False, **more,
        )  # fmt: skip
        forward = model.forward
        trainer = SFTTrainer(
            model=model, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=processor,
            data_collator=collator,
        )  # fmt: skip
        trainer.train()
        model.forward = forward  # SFTTrainer puts its own in front
        logged = trainer.state.log_history[0]
        return float(logged["loss"]), float(logged["grad_norm"])

    return run


@pytest.fixture
def talkative(make_processor) -> Any:
    """A processor with the tiny template, whose marks are words."""
    return make_processor(chat_template=TINY.chat_template())


def conversation(number: int) -> dict[str, Any]:
    asks = [{"type": "image"}, {"type": "text", "text": "what is here"}]
    says = [{"type": "text", "text": SAYS[number % len(SAYS)]}]
    image = Image.new("RGB", (24, 24), (20 * number, 90, 200))
    return {
        "images": [image],
        "messages": [{"role": "user", "content": asks}, {"role": "assistant", "content": says}],
    }


def test_a_step_is_that_of_transformers_own_llava(
    train: Train, make_model, compressors, make_sample, collate, talkative, transformers_llava
) -> None:
    plain = make_model(compressor=compressors["none"], num_fusion_layers=0, image_token_id=98)
    theirs = transformers_llava(plain)
    samples = [make_sample(seed, answer=tokens) for seed, tokens in enumerate(ANSWERS)]
    rows = [{**conversation(0), "number": number} for number in range(len(ANSWERS))]

    def collator(model: Any) -> Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]]:
        def collated(chosen: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
            batch = collate(plain, [samples[row["number"]] for row in chosen])
            if isinstance(model, LlavaForConditionalGeneration):
                del batch["num_frames"]
                batch["pixel_values"] = batch["pixel_values"][:, 0]
            return batch

        return collated

    whole = train(plain, talkative, rows, 8, 1, collator(plain))
    assert min(whole) > 0.1, "there is something to compare"
    assert whole == pytest.approx(train(theirs, talkative, rows, 8, 1, collator(theirs)), rel=1e-4)
    for size, times in ((2, 4), (1, 8)):
        assert train(plain, talkative, rows, size, times, collator(plain)) == pytest.approx(whole, rel=1e-4)


def test_prefusion_sees_what_is_no_answer(train: Train, make_model, talkative) -> None:
    model = make_model(image_token_id=talkative.tokenizer.convert_tokens_to_ids("<image>")).train()
    talkative.num_image_tokens = model.layout.frame()
    rows = [conversation(number) for number in range(4)]
    loss, _ = train(model, talkative, rows, 2, 2, assistant_only_loss=True)

    chats = []
    for row in rows:
        question, answer = (each["content"] for each in row["messages"])
        seen = [{"type": "image", "image": row["images"][0]}, *question[1:]]
        chats.append([{"role": "user", "content": seen}, {"role": "assistant", "content": answer}])
    batch = dict(
        talkative.apply_chat_template(chats, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    )
    answers = torch.as_tensor(batch.pop("assistant_masks")).bool()
    assert answers.sum(1).tolist() == [len(says.split()) + 1 for says in SAYS], "words and the end"
    assert not (batch["instruction_mask"].bool() & answers).any()
    labels = batch["input_ids"].where(answers, -100)
    del batch["instruction_mask"]  # where labels are -100
    with torch.no_grad():
        assert loss == pytest.approx(float(model(**batch, labels=labels).loss), rel=1e-4)


def test_what_prefusion_may_see_must_be_said(train: Train, make_model, talkative) -> None:
    model = make_model(image_token_id=talkative.tokenizer.convert_tokens_to_ids("<image>")).train()
    talkative.num_image_tokens = model.layout.frame()
    with pytest.raises(ValueError, match="TRL's SFTTrainer: assistant_only_loss=True"):
        train(model, talkative, [conversation(0)], 1, 1)


def test_the_model_without_its_head(make_model, make_sample, collate) -> None:
    model = make_model().eval()
    batch = collate(model, [make_sample(1), make_sample(2)], answers=False)
    with torch.no_grad():
        expected = model(**batch, output_hidden_states=True)
        found = model.base_model(**batch)
        assert torch.equal(found.last_hidden_state, expected.hidden_states[-1])
        logits = model.get_output_embeddings()(found.last_hidden_state)
    torch.testing.assert_close(logits, expected.logits)
    assert found.hidden_states is None
    assert len(model.base_model(**batch, output_hidden_states=True).hidden_states) == len(expected.hidden_states)
    assert isinstance(model.supports_tp_plan, bool)  # transformers asks the base model
