"""Where a session is written: behind links, never over what is no session, and mistakes are one line."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from llava_mini.errors import UserError
from llava_mini.inference.session import Session
from llava_mini.inference.session_file import checksum


@pytest.fixture
def session(make_asked: Callable[..., Any]) -> Session:
    session = Session(*make_asked())
    session.add_media(Image.new("RGB", (30, 20), "red"))
    return session


def test_a_link_stays_and_what_it_points_at_is_written(session: Session, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    link, target = tmp_path / "seen", tmp_path / "store" / "first"
    link.symlink_to(Path("store", "first"))
    for number in (1, 2):  # where nothing is yet, and over a session
        session.save(link)
        assert link.is_symlink() and target.is_file() and not target.is_symlink()
        assert [entry.name for entry in target.parent.iterdir()] == ["first"]
        assert len(Session.load(target, session.model, session.processor).media) == number
        session.add_media(Image.new("RGB", (30, 20), "blue"))
    target.write_text("keep me")
    with pytest.raises(UserError, match=f"^{link}: there is such a file, and it is no session"):
        session.save(link)
    assert target.read_text() == "keep me"


def test_names_that_no_session_can_have(session: Session, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for name in ("", str(tmp_path), str(tmp_path / "loop"), str(tmp_path / "a\0b")):
        with pytest.raises(UserError, match="it is no session|has no null character") as error:
            session.save(name)
        assert "\n" not in str(error.value)
    assert os.listdir(tmp_path) == ["loop"]


@pytest.mark.parametrize(("fuses", "damage"), [(True, "features"), (False, "features"), (False, "codes")])
def test_values_that_no_frame_can_have(
    make_asked: Any, make_model: Any, tmp_path: Path, fuses: bool, damage: str
) -> None:
    model, processor = make_asked()
    if not fuses:
        words = {"text_config": model.config.text_config, "image_token_id": model.config.image_token_id}
        model = make_model(**words, num_fusion_layers=0)
    session = Session(model, processor)
    session.add_media(Image.new("RGB", (30, 20), "red"))
    path = tmp_path / "seen"
    session.save(path)
    with safe_open(path, framework="pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert (f"0.{damage}" in tensors) == fuses
    tensors[f"0.{damage}"] = torch.full_like(tensors["0.features"], float("nan")) if fuses else torch.ones(1)
    save_file(tensors, path, metadata={**metadata, "crc32": checksum(metadata["facts"], tensors)})
    reason = "values of frames that are no finite numbers" if fuses else f"{damage} of a model without pre-fusion"
    with pytest.raises(UserError, match=f"the session is damaged: {reason}"):
        Session.load(path, model, processor)
