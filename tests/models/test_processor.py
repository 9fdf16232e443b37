"""The processor, with a word-level tokenizer: what it makes of text, images and videos the model can read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.refusals import refuses
from transformers import AutoProcessor

from llava_mini.errors import UserError
from llava_mini.models import LlavaMiniProcessor

Factory = Callable[..., Any]
IMAGE, SIZE = 4, 24  # the placeholder's id and the pixels along a side, of `make_processor`


def plain(red: int, size: int = SIZE) -> Image.Image:
    return Image.new("RGB", (size, size), (red, 0, 0))


def quadrants() -> Image.Image:
    """Four red values: 0 and 80 above, 160 and 240 below."""
    pixels = np.zeros((2 * SIZE, 2 * SIZE, 3), np.uint8)
    pixels[:SIZE, SIZE:, 0], pixels[SIZE:, :SIZE, 0], pixels[SIZE:, SIZE:, 0] = 80, 160, 240
    return Image.fromarray(pixels)


def reds(pixel_values: torch.Tensor) -> list[int]:
    """The mean red of every frame's first view."""
    return (pixel_values[:, 0, 0].mean(dim=(1, 2)) * 255).round().long().tolist()


def test_an_image_becomes_placeholders_and_pixels(make_processor: Factory) -> None:
    inputs = make_processor(num_image_tokens=4)(text="<s> <image> what is here", images=plain(100))
    assert inputs["input_ids"].tolist() == [[1, *[IMAGE] * 4, 5, 6, 7]]
    assert inputs["attention_mask"].tolist() == [[1] * 8]
    assert inputs["pixel_values"].shape == (1, 1, 3, SIZE, SIZE) and inputs["pixel_values"].dtype == torch.float32
    assert inputs["num_frames"].tolist() == [1] and "num_views" not in inputs
    assert reds(inputs["pixel_values"]) == [100]


def test_a_batch_pairs_images_and_videos_in_order(make_processor: Factory) -> None:
    texts = ["<image> and <video>", "what is here", "<video> and <image>", "<image>"]
    images = [plain(10), plain(50), plain(60)]
    videos = [[plain(20), plain(30)], [plain(40)]]
    inputs = make_processor(num_image_tokens=2)(text=texts, images=images, videos=videos, padding_side="right")
    assert reds(inputs["pixel_values"]) == [10, 20, 30, 40, 50, 60]
    assert inputs["num_frames"].tolist() == [3, 0, 2, 1]
    assert inputs["input_ids"].tolist() == [
        [IMAGE, IMAGE, 8, IMAGE, IMAGE, IMAGE, IMAGE],
        [5, 6, 7, 0, 0, 0, 0],
        [IMAGE, IMAGE, 8, IMAGE, IMAGE, 0, 0],
        [IMAGE, IMAGE, 0, 0, 0, 0, 0],
    ]


def test_padding_is_on_the_left_unless_asked(make_processor: Factory) -> None:
    inputs = make_processor()(text=["what", "what is here"])
    assert inputs["input_ids"].tolist() == [[0, 0, 5], [5, 6, 7]]
    assert inputs["attention_mask"].tolist() == [[0, 0, 1], [1, 1, 1]]
    assert set(inputs) == {"input_ids", "attention_mask"}  # text only


def test_high_resolution_cuts_row_by_row_and_adds_the_whole(make_processor: Factory) -> None:
    inputs = make_processor(num_image_tokens=1, num_hd_image_tokens=4, views="hd")(text="<image>", images=quadrants())
    views = inputs["pixel_values"][0]
    assert views.shape == (5, 3, SIZE, SIZE)
    assert (views[:, 0].mean(dim=(1, 2)) * 255).round().tolist() == [0, 80, 160, 240, 120]
    assert inputs["input_ids"].tolist() == [[IMAGE] * 4]
    assert "num_views" not in inputs  # all frames have five


def test_videos_keep_one_view_beside_high_resolution_images(make_processor: Factory) -> None:
    processor = make_processor(num_image_tokens=1, num_hd_image_tokens=4, views="hd")
    inputs = processor(text=["<video> what", "<image> what"], images=quadrants(), videos=[[plain(20), plain(30)]])
    assert inputs["num_views"].tolist() == [1, 1, 5]
    assert inputs["num_frames"].tolist() == [2, 1]
    assert inputs["pixel_values"].shape == (3, 5, 3, SIZE, SIZE)
    assert (inputs["input_ids"] == IMAGE).sum(1).tolist() == [2, 4]


def test_an_odd_size_is_cut_without_losing_a_pixel(make_processor: Factory) -> None:
    processor = make_processor(views="hd", num_hd_image_tokens=4)
    assert processor(text="<image>", images=Image.new("RGB", (25, 31)))["pixel_values"].shape == (1, 5, 3, SIZE, SIZE)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1"])
def test_every_mode_of_picture(make_processor: Factory, mode: str) -> None:
    assert make_processor()(text="<image>", images=plain(255).convert(mode))["pixel_values"].shape == (
        1,
        1,
        3,
        SIZE,
        SIZE,
    )


def test_frames_as_arrays(make_processor: Factory) -> None:
    frames = np.stack([np.asarray(plain(10)), np.asarray(plain(20))])
    inputs = make_processor()(text=["<video>", "<image>"], images=np.asarray(plain(30)), videos=[frames])
    assert reds(inputs["pixel_values"]) == [10, 20, 30]


def test_images_in_lists_of_lists(make_processor: Factory) -> None:
    inputs = make_processor()(text=["<image> <image>", "<image>"], images=[[plain(10), plain(20)], [plain(30)]])
    assert reds(inputs["pixel_values"]) == [10, 20, 30] and inputs["num_frames"].tolist() == [2, 1]


def test_no_compressed_token_at_all(make_processor: Factory) -> None:
    """With `zero` nothing stands in the text for the image, but its frame is there."""
    inputs = make_processor(num_image_tokens=0)(text="<s> <image> what", images=plain(10))
    assert inputs["input_ids"].tolist() == [[1, 5]] and inputs["num_frames"].tolist() == [1]


@pytest.mark.parametrize("views", ["square", "hd"])
@pytest.mark.parametrize("compressor", ["query", "none", "zero"])
def test_the_model_reads_what_it_makes(
    make_processor: Factory,
    make_model: Factory,
    compressors: dict[str, dict[str, Any]],
    compressor: str,
    views: str,
) -> None:
    model = make_model(compressor=compressors[compressor], image_token_id=IMAGE)
    processor = make_processor(
        num_image_tokens=model.layout.frame(),
        num_hd_image_tokens=model.layout.frame(5),
        views=views,
    )
    texts = ["<s> <image> what is here", "<s> what is there", "<s> <video> what is here and there"]
    inputs = processor(text=texts, images=quadrants(), videos=[[plain(20), plain(30)]])
    new = model.generate(**inputs, do_sample=False, max_new_tokens=4)[:, inputs["input_ids"].shape[1] :]
    for i, text in enumerate(texts):
        images = [quadrants()] if "<image>" in text else None
        videos = [[plain(20), plain(30)]] if "<video>" in text else None
        alone = processor(text=text, images=images, videos=videos)
        own = model.generate(**alone, do_sample=False, max_new_tokens=4)
        assert torch.equal(own[0, alone["input_ids"].shape[1] :], new[i])
    assert len(processor.batch_decode(new)) == 3


def test_save_and_load_through_auto_processor(make_processor: Factory, make_model: Factory, tmp_path: Path) -> None:
    processor = make_processor(num_image_tokens=4, num_hd_image_tokens=16, views="hd", chat_template="{{ messages }}")
    processor.save_pretrained(tmp_path)
    make_model().save_pretrained(tmp_path)  # beside the model, as it is published
    again = AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(again, LlavaMiniProcessor)
    assert (again.num_image_tokens, again.num_hd_image_tokens, again.views) == (4, 16, "hd")
    assert (again.image_token, again.video_token, again.chat_template) == ("<image>", "<video>", "{{ messages }}")
    first, second = (each(text="<image> what", images=quadrants()) for each in (processor, again))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_transparent_parts_are_on_the_background_which_is_saved(make_processor: Factory, tmp_path: Path) -> None:
    drawing = np.zeros((SIZE, SIZE, 4), np.uint8)  # transparent
    path = tmp_path / "drawing.png"
    Image.fromarray(drawing).save(path)
    white, black = make_processor(), make_processor(background=[0, 0, 0])
    black.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert (white.background, again.background) == ([255] * 3, [0] * 3)
    for form in (path, str(path), drawing, torch.from_numpy(drawing), Image.open(path)):
        for processor, red in ((white, 255), (black, 0), (again, 0)):
            assert reds(processor(text="<image>", images=[form])["pixel_values"]) == [red]
            frames = {} if isinstance(form, (str, Path)) else {"videos": [[form]]}
            if frames:
                assert reds(processor(text="<video>", **frames)["pixel_values"]) == [red]
    assert reds(make_processor(background=(7, 8, 9))(text="<image>", images=drawing)["pixel_values"]) == [7]


@pytest.mark.parametrize("background", ["black", [0, 0], [0, 0, 256], [0, 0, 0.5], [True, 0, 0], None])
def test_what_is_no_color_is_refused(make_processor: Factory, background: Any) -> None:
    with refuses("background", background, "[red, green, blue], each from 0 to 255"):
        make_processor(background=background)


def test_other_names_for_image_and_video(make_processor: Factory) -> None:
    processor = make_processor(image_token="here", video_token="there")
    inputs = processor(text="what here there", images=plain(10), videos=[[plain(20)]])
    assert inputs["input_ids"].tolist() == [[5, 7, 7]] and reds(inputs["pixel_values"]) == [10, 20]


CHAT = (
    "{% for message in messages %}{{ message['role'] | upper }} "
    "{% for part in message['content'] %}"
    "{{ part['text'] if part['type'] == 'text' else '<' ~ part['type'] ~ '>' }} "
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}ASSISTANT{% endif %}"
)


def test_chat_template(make_processor: Factory) -> None:
    processor = make_processor(num_image_tokens=2, chat_template=CHAT)
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is here"}]}]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    assert prompt == "USER <image> what is here ASSISTANT"
    assert processor(text=prompt, images=plain(10))["input_ids"].tolist() == [[10, IMAGE, IMAGE, 5, 6, 7, 11]]


def test_chat_template_with_the_image_in_the_message(make_processor: Factory) -> None:
    processor = make_processor(num_image_tokens=2, chat_template=CHAT)
    content = [{"type": "image", "image": plain(10)}, {"type": "text", "text": "what is here"}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    assert inputs["input_ids"].tolist() == [[10, IMAGE, IMAGE, 5, 6, 7, 11]]
    assert reds(inputs["pixel_values"]) == [10]


def test_chat_template_with_videos_of_a_batch(make_processor: Factory) -> None:
    processor = make_processor(num_image_tokens=1, chat_template=CHAT)
    first = [{"type": "video", "video": np.stack([np.asarray(plain(10)), np.asarray(plain(20))])}]
    second = [{"type": "image", "image": plain(30)}, {"type": "text", "text": "what"}]
    chats = [[{"role": "user", "content": content}] for content in (first, second)]
    inputs = processor.apply_chat_template(chats, tokenize=True, return_dict=True)
    assert inputs["input_ids"].tolist() == [[10, IMAGE, IMAGE], [10, IMAGE, 5]]
    assert inputs["num_frames"].tolist() == [2, 1] and reds(inputs["pixel_values"]) == [10, 20, 30]


def test_images_and_videos_of_each_text_are_its_own(make_processor: Factory) -> None:
    processor = make_processor()
    images = [[plain(1), plain(2)], [plain(3)]]
    made = processor(images=images, text=["<image> <image>", "<image>"])
    assert made["num_frames"].tolist() == [2, 1]
    flat = processor(images=[*images[0], *images[1]], text="<image> <image> <image>")
    assert torch.equal(made["pixel_values"], flat["pixel_values"])
    for given, number, count in (([[plain(1), plain(2)], []], 0, 2), ([plain(1), [plain(2), plain(3)]], 1, 2)):
        with pytest.raises(UserError, match=f"images: text {number} has 1 <image>, {count} images were given"):
            processor(images=given, text=["<image>", "<image>"])
    frames = [plain(1), plain(2)]
    assert processor(videos=[frames, frames], text=["<video> <video>", "what"])["num_frames"].tolist() == [4, 0]
    with pytest.raises(UserError, match="videos: text 0 has 1 <video>, 2 videos were given"):
        processor(videos=[[frames, frames], []], text=["<video>", "<video>"])


@pytest.mark.parametrize(
    ("text", "images", "message"),
    [
        ("what", [plain(1)], "images: the text has 0 <image>, 1 images were given"),
        ("<image> <image>", [plain(1)], "images: the text has 2 <image>, 1 images were given"),
        (["<image>", "<image>"], None, "images: the text has 2 <image>, 0 images were given"),
        ("<video>", None, "videos: the text has 1 <video>, 0 videos were given"),
    ],
)
def test_counts_that_do_not_fit(make_processor: Factory, text: Any, images: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_processor()(text=text, images=images)


def test_a_video_without_a_frame(make_processor: Factory) -> None:
    with pytest.raises(UserError, match="a video has no frame"):
        make_processor()(text="<video>", videos=[np.zeros((0, SIZE, SIZE, 3), np.uint8)])
    with pytest.raises(UserError, match="videos: text 0 has 1 <video>, 0 videos were given"):
        make_processor()(text="<video>", videos=[[]])


def test_views_that_do_not_fit_are_named(make_processor: Factory) -> None:
    with pytest.raises(UserError, match="views='tile'; allowed: square, pad, hd"):
        make_processor(views="tile")
    with pytest.raises(UserError, match="image of 1x14000 pixels is too large to be padded"):
        make_processor(views="pad")(text="<image>", images=Image.new("RGB", (1, 14_000)))


def test_a_line_of_pixels_that_would_fill_the_memory_is_refused(make_processor: Factory) -> None:
    """It is resized in both directions before its middle is cut out."""
    for size in ((311_000, 1), (1, 311_000)):
        with pytest.raises(
            UserError, match=f"image of {size[0]}x{size[1]} pixels is too elongated to be resized to 24"
        ):
            make_processor()(text="<image>", images=Image.new("RGB", size))
    make_processor()(text="<image>", images=Image.new("RGB", (1_000, 1)))
