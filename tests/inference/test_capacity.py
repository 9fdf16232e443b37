"""What does not fit is refused before it is encoded, and the message names what would."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from llava_mini.errors import UserError
from llava_mini.inference.prompts import question_tokens
from llava_mini.inference.session import Session
from llava_mini.models.compressors.zero import ZeroCompressor

QUESTION = "how many circle objects"
ANSWER = 20


def frames(count: int) -> Iterator[np.ndarray]:
    frame = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    return iter([frame] * count)


def most_frames(session: Session, free: int = 0) -> int:
    model = session.model
    context: int = model.config.text_config.max_position_embeddings
    return (context - free) // model.layout.frame()


@torch.no_grad()
def test_frames_that_leave_no_room_for_question_and_answer_are_refused_unseen(make_asked: Callable[..., Any]) -> None:
    session = Session(*make_asked(), frame_batch=64)
    session.add_media(list(frames(3)))
    encoded: list[int] = []
    session.model.vision_tower.register_forward_pre_hook(lambda *_: encoded.append(1))
    reserve = question_tokens(session.processor, QUESTION, ["video", "video"]) + ANSWER
    most = most_frames(session, reserve) - 3
    message = rf"{most + 1} frames are .* besides {reserve} of question and answer: at most {most} frames fit"
    with pytest.raises(UserError, match=message):
        session.add_media(list(frames(most + 1)), reserve=reserve)
    assert not encoded and len(session.media) == 1
    session.add_media(list(frames(most)), reserve=reserve)
    session.ask(QUESTION, max_new_tokens=ANSWER)
    with pytest.raises(UserError, match="tokens of prompt and answer"):  # the reserve was exact
        session.ask(QUESTION, max_new_tokens=ANSWER + session.model.layout.frame())
    with pytest.raises(UserError, match=r"^question and answer are too long: 257 tokens, .* reads 256"):
        session.add_media(list(frames(1)), reserve=257)


@torch.no_grad()
def test_a_stream_that_is_too_long_is_reported_in_all_its_frames(
    make_asked: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session(*make_asked(), frame_batch=20)
    most = most_frames(session)
    read = -(-(most + 1) // 20) * 20
    with pytest.raises(UserError, match=rf"^{read} frames are .* at most {most} frames fit"):
        session.add_media(frames(most + 200))
    with pytest.raises(UserError, match=rf"at most {most_frames(session, 10)} frames fit"):
        session.add_media(frames(most + 200), reserve=10)
    free = iter([2**30, 2**30, 0])
    monkeypatch.setattr("llava_mini.inference.long_context.free_bytes", lambda _: next(free))
    with pytest.raises(UserError, match=r"^60 frames need .* more of memory.* at most 40 frames fit"):
        session.add_media(frames(most))
    assert not session.media and not len(session.store)


@torch.no_grad()
def test_a_model_that_passes_no_vision_token_on_has_sessions_too(make_asked: Callable[..., Any]) -> None:
    model, processor = make_asked(num_image_tokens=0, num_hd_image_tokens=0)
    model.compressor = ZeroCompressor(dim=model.config.vision_config.hidden_size)
    session = Session(model, processor)
    session.add_media(list(frames(3)))
    session.add_media(list(frames(1)))
    assert session.ask(QUESTION, max_new_tokens=3) is not None and session.media[0].frames == 3
