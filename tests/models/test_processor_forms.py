"""The processor makes the same pixels of an image by name, as an array of any layout and type, and as a tensor."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.media.test_video import clip

from llava_mini.errors import UserError
from llava_mini.media.video import frames_at

__all__ = ["clip"]  # a fixture
Factory = Callable[..., Any]
IMAGE, SIZE = 4, 24  # the placeholder's id and the pixels along a side, of `make_processor`


def plain(red: int) -> Image.Image:
    return Image.new("RGB", (SIZE, SIZE), (red, 0, 0))


def reds(pixel_values: torch.Tensor) -> list[int]:
    """The mean red of every frame's first view."""
    return (pixel_values[:, 0, 0].mean(dim=(1, 2)) * 255).round().long().tolist()


FORMS: dict[str, Callable[[np.ndarray], Any]] = {
    "HWC": lambda pixels: pixels,
    "CHW": lambda pixels: pixels.transpose(2, 0, 1),
    "unit floats": lambda pixels: (pixels / 255).astype(np.float32),
    "integers": lambda pixels: pixels.astype(np.int64),
    "tensor": lambda pixels: torch.from_numpy(pixels).permute(2, 0, 1),
    "bytes as floats": lambda pixels: torch.from_numpy(pixels).double(),
    "opaque": lambda pixels: np.concatenate([pixels, np.full_like(pixels[..., :1], 255)], axis=-1),
}


@pytest.mark.parametrize("views", ["square", "pad", "hd"])
@pytest.mark.parametrize("form", FORMS)
def test_an_image_in_any_form_gives_the_same_pixels(make_processor: Factory, form: str, views: str) -> None:
    processor = make_processor(num_hd_image_tokens=4, views=views)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    expected = processor(text="<image>", images=Image.fromarray(pixels))["pixel_values"]
    assert torch.equal(processor(text="<image>", images=FORMS[form](pixels))["pixel_values"], expected)
    frames = processor(text="<video>", videos=[[FORMS[form](pixels)]])["pixel_values"]
    assert torch.equal(frames, processor(text="<video>", videos=[[Image.fromarray(pixels)]])["pixel_values"])


def test_gray_images_in_any_form(make_processor: Factory) -> None:
    gray = np.random.default_rng(0).integers(0, 256, (40, 50), dtype=np.uint8)
    expected = make_processor()(text="<image>", images=Image.fromarray(gray))["pixel_values"]
    for form in (gray, gray[..., None], gray[None], (gray / 255).astype(np.float32), torch.from_numpy(gray)):
        assert torch.equal(make_processor()(text="<image>", images=form)["pixel_values"], expected)
    assert expected.mean() > 0.3, "or black would do"


def test_images_and_videos_by_name(make_processor: Factory, tmp_path: Path) -> None:
    for red in (10, 20, 30):
        plain(red).save(tmp_path / f"{red}.png")
    names = [str(tmp_path / f"{red}.png") for red in (10, 20, 30)]
    inputs = make_processor()(text=["<image> <image>", "<image>"], images=[names[:2], [Path(names[2])]])
    assert reds(inputs["pixel_values"]) == [10, 20, 30] and inputs["num_frames"].tolist() == [2, 1]
    assert reds(make_processor()(text="<image>", images=names[0])["pixel_values"]) == [10]
    assert reds(make_processor()(text="<video>", videos=[[names]])["pixel_values"]) == [10, 20, 30]  # its frames
    chosen = make_processor()(text="<video>", videos=[[names]], num_frames=1)
    assert reds(chosen["pixel_values"]) == [20]
    assert reds(
        make_processor()(text="<video>", videos=[[names]], videos_kwargs={"num_frames": 1})["pixel_values"]
    ) == [20]


def test_a_video_file_has_the_frames_of_training(make_processor: Factory, clip: Factory) -> None:
    """40 frames in 4 seconds, so 4 at one a second; each shows the bits of its number."""
    path = str(clip(40))
    inputs = make_processor()(text="<video>", videos=path)
    frames = [Image.fromarray(frame) for frame in frames_at(Path(path), 1.0)]
    assert inputs["num_frames"].tolist() == [4] and (inputs["input_ids"] == IMAGE).sum() == 4
    assert torch.equal(inputs["pixel_values"], make_processor()(text="<video>", videos=frames)["pixel_values"])
    assert make_processor()(text="<video>", videos=path, fps=2)["num_frames"].tolist() == [8]


def test_a_part_that_is_not_read_is_refused_by_its_type(make_processor: Factory) -> None:
    asked = [{"role": "user", "content": [{"type": "audio", "path": "a.wav"}, {"type": "text", "text": "?"}]}]
    with pytest.raises(UserError, match="a part of type 'audio'; allowed are text, image"):
        make_processor().apply_chat_template(asked, tokenize=True, return_dict=True)


def test_a_shape_that_tells_no_layout(make_processor: Factory) -> None:
    both = np.random.default_rng(0).integers(0, 256, (3, 30, 3), dtype=np.uint8)
    with pytest.raises(UserError, match=r"^images: array of uint8 \[3, 30, 3\]: channels are first or last"):
        make_processor()(text="<image>", images=both)
    seen = make_processor()(text="<image>", images=both, input_data_format="channels_last")["pixel_values"]
    assert torch.equal(seen, make_processor()(text="<image>", images=Image.fromarray(both))["pixel_values"])


def test_files_that_are_no_images_or_videos(make_processor: Factory) -> None:
    for keyword, token, name in (("images", "<image>", "lost.png"), ("videos", "<video>", "lost.mp4")):
        for given in (name, [name], [[name]]):
            with pytest.raises(UserError, match=f"^{name}: No such file or directory$"):
                make_processor()(text=token, **{keyword: given})
