"""A film of a clip can be decoded to the clip again, but for what a good codec loses."""

from pathlib import Path

import av
import numpy as np
import pytest

from llava_mini.data.toyworld import source_files
from llava_mini.data.toyworld.clips import clip_at
from llava_mini.data.toyworld.source_files import RATE, write_mp4
from llava_mini.errors import UserError


def test_a_film_lasts_a_second_a_state_and_shows_it(tmp_path: Path) -> None:
    for index in range(3):
        states = clip_at("clip-val", 0, index).frames
        write_mp4(tmp_path / "film.mp4", states)
        with av.open(str(tmp_path / "film.mp4")) as container:
            stream = container.streams.video[0]
            assert stream.codec_context.name == "h264"
            assert float(stream.duration * stream.time_base) == len(states)
            shown = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
        assert shown.shape == (len(states) * RATE, 64, 64, 3)
        errors = np.abs(shown.astype(int) - np.repeat(states, RATE, axis=0))
        assert errors.mean() < 1.5
        assert np.quantile(errors, 0.999) < 16


def test_a_film_is_the_same_bytes_again(tmp_path: Path) -> None:
    states = clip_at("clip-val", 0, 3).frames
    for name in ("one.mp4", "two.mp4"):
        write_mp4(tmp_path / name, states)
    assert (tmp_path / "one.mp4").read_bytes() == (tmp_path / "two.mp4").read_bytes()


def test_a_missing_pyav_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_files, "av", None)
    with pytest.raises(UserError, match=r"pip install 'llava-mini-lab\[data\]'"):
        write_mp4(tmp_path / "film.mp4", np.zeros((4, 64, 64, 3), np.uint8))
