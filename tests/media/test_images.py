"""Pictures of every kind become upright RGB with and without simplejpeg; damaged and huge ones say why not."""

import io
import struct
import time
import warnings
import zlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps, ImageSequence
from PIL.JpegImagePlugin import JpegImageFile, get_sampling

from llava_mini.errors import SampleError
from llava_mini.media import images
from llava_mini.media.images import MAX_PIXELS, decode_image, encode_jpeg, shrunk, upright_rgb, verify_image

Pixels = NDArray[np.uint8]


@pytest.fixture(params=["simplejpeg", "Pillow"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What decodes JPEGs."""
    if request.param == "Pillow":
        monkeypatch.setattr(images, "simplejpeg", None)
    else:
        pytest.importorskip("simplejpeg")
    name: str = request.param
    return name


def encoded(pixels: NDArray[Any] | Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(buffer, form, **options)
    return buffer.getvalue()


def noise(*shape: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def smooth(height: int, width: int) -> Pixels:
    """Values that JPEG hardly changes."""
    return np.array(Image.fromarray(noise(3, 4, 3)).resize((width, height), Image.Resampling.BICUBIC))


def png(width: int, height: int, depth: int, kind: int, rows: bytes) -> bytes:
    """A PNG by hand, for what Pillow does not write; `rows` with a filter byte each."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3)], ids=["gray", "rgb"])
def test_every_picture_is_decoded_to_rgb(shape: tuple[int, ...]) -> None:
    pixels = noise(*shape)
    image = decode_image(encoded(pixels, "PNG"))
    assert image.dtype == np.uint8
    assert np.array_equal(image, pixels if pixels.ndim == 3 else pixels[..., None].repeat(3, -1))


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_what_is_transparent_is_put_on_white(form: str, mode: str) -> None:
    """Alpha 0 gives white whatever color lies below, 255 the color, 102 two fifths of it."""
    pixels = np.array([[[10, 60, 110, 0], [10, 60, 110, 255], [10, 60, 110, 102], [0, 0, 0, 0]]], np.uint8)
    image = Image.fromarray(pixels) if mode == "RGBA" else Image.fromarray(pixels[..., [0, 3]].copy(), "LA")
    seen = decode_image(encoded(image, form, **({"lossless": True, "exact": True} if form == "WEBP" else {})))
    expected = [[255, 255, 255], [10, 60, 110], [157, 177, 197], [255, 255, 255]]
    assert seen.tolist() == [expected if mode == "RGBA" else [[red] * 3 for red, *_ in expected]]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "I;16"])
def test_the_background_is_a_choice_and_none_keeps_what_is_transparent(mode: str) -> None:
    image, options = Image.new(mode, (4, 4)), {"transparency": 0} if mode in ("P", "I;16") else {}
    if mode == "I;16":
        image.putpixel((0, 0), 65535)
    raw = io.BytesIO()
    image.save(raw, "PNG", **options)
    assert decode_image(raw.getvalue(), (1, 2, 3))[2, 2].tolist() == [1, 2, 3]
    kept = decode_image(raw.getvalue(), None)
    assert kept.shape == (4, 4, 4) and kept[2, 2, 3] == 0
    for color in ((255, 255, 255), (1, 2, 3)):
        assert np.array_equal(upright_rgb(Image.fromarray(kept), color), decode_image(raw.getvalue(), color))


def test_a_16_bit_gray_that_a_png_calls_transparent_is_white() -> None:
    raw = png(2, 1, 16, 0, b"\0" + struct.pack(">2H", 1000, 2000))
    place = raw.index(b"IDAT") - 4
    mark = b"tRNS" + struct.pack(">H", 1000)
    raw = raw[:place] + struct.pack(">I", 2) + mark + struct.pack(">I", zlib.crc32(mark)) + raw[place:]
    assert decode_image(raw).tolist() == [[[255] * 3, [2000 >> 8] * 3]]


@pytest.mark.parametrize("form", ["BMP", "TIFF", "WEBP", "GIF"])
def test_other_formats_are_read_too(form: str) -> None:
    pixels = noise(6, 9, 1).repeat(3, -1)
    raw = encoded(pixels, form, **({"lossless": True} if form == "WEBP" else {}))
    assert np.array_equal(decode_image(raw), pixels)
    assert verify_image(raw) == (9, 6)


@pytest.mark.parametrize("options", [{"quality": 30}, {"quality": 95, "subsampling": 0}, {"progressive": True}])
@pytest.mark.parametrize("shape", [(41, 67, 3), (8, 16, 3), (1, 1, 3), (33, 20)])
def test_simplejpeg_and_pillow_give_the_same_pixels(
    shape: tuple[int, ...], options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("simplejpeg")
    raw = encoded(noise(*shape), "JPEG", **options)
    fast = decode_image(raw)
    assert verify_image(raw) == (shape[1], shape[0])
    monkeypatch.setattr(images, "simplejpeg", None)
    assert np.array_equal(fast, decode_image(raw))
    assert verify_image(raw) == (shape[1], shape[0])


def test_simplejpeg_decodes_plain_jpegs(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = [
        encoded(noise(4, 4, 3), "JPEG"),
        encoded(Image.new("CMYK", (4, 4)), "JPEG"),
        encoded(noise(4, 4), "PNG"),
    ]
    marker = np.zeros((2, 2, 3), np.uint8)
    monkeypatch.setattr(images, "simplejpeg", SimpleNamespace(decode_jpeg=lambda raw, colors, **options: marker))
    assert [decode_image(raw) is marker for raw in pictures] == [True, False, False]


def test_stray_bytes_that_pillow_reads_over_are_no_fault(library: str) -> None:
    raw = encoded(smooth(32, 32), "JPEG")
    start = raw.index(b"\xff\xdb")  # a table; simplejpeg alone would refuse bytes before it
    stray = raw[:start] + b"\x00\x00\x00" + raw[start:]
    assert np.array_equal(decode_image(stray), decode_image(raw))
    assert verify_image(stray) == (32, 32)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_as_exif_says(form: str, orientation: int, library: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    raw = encoded(noise(5, 9, 3), form, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(raw))).convert("RGB"))
    assert np.array_equal(decode_image(raw), expected)
    assert verify_image(raw) == (expected.shape[1], expected.shape[0])
    assert (expected.shape[0] == 9) == (orientation >= 5), "or the test shows nothing"


@pytest.mark.parametrize("kind_and_value", [(3, b"\0\0"), (3, b"\x09\0"), (2, b"6\0"), (5, b"\xff\xff")])
def test_exif_that_makes_no_sense_is_ignored(kind_and_value: tuple[int, bytes], library: str) -> None:
    kind, value = kind_and_value  # 3 is a number, 2 a text, 5 a fraction that lies somewhere else
    tag = struct.pack("<HHHI4s", 1, 0x0112, kind, 2 if kind == 2 else 1, value)
    exif = b"Exif\0\0II*\0\x08\0\0\0" + tag + bytes(4)
    assert decode_image(encoded(smooth(5, 9), "JPEG", exif=exif)).shape == (5, 9, 3)
    assert decode_image(encoded(smooth(5, 9), "JPEG", exif=b"Exif\0\0nonsense")).shape == (5, 9, 3)


def test_cmyk_has_the_colors_that_it_means(library: str) -> None:
    pixels = smooth(16, 24)
    raw = encoded(Image.fromarray(pixels).convert("CMYK"), "JPEG", quality=100)
    assert np.abs(decode_image(raw).astype(int) - pixels).max() < 12
    assert verify_image(raw) == (24, 16)


def test_ycck_has_the_colors_that_it_means(library: str) -> None:
    """Pillow writes no YCCK, but the same file with another Adobe mark is one: brightness 80 without color."""
    stored = np.array([80, 128, 128, 255], np.uint8)  # Y, Cb, Cr, K as Adobe stores them
    raw = encoded(Image.fromarray(np.tile(255 - stored, (16, 16, 1)), "CMYK"), "JPEG", quality=100, subsampling=0)
    mark = raw.index(b"Adobe")
    raw = raw[: mark + 11] + b"\x02" + raw[mark + 12 :]
    assert np.abs(decode_image(raw).astype(int) - (255 - 80)).max() <= 2


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_16_bits_keep_the_high_ones(form: str) -> None:
    values = np.arange(0, 65536, 257 * 5, dtype=np.uint16).reshape(4, 13)
    raw = encoded(values, form)
    assert np.array_equal(decode_image(raw), (values >> 8).astype(np.uint8)[..., None].repeat(3, -1))
    assert verify_image(raw) == (13, 4)


def test_8_bit_values_in_16_bits_are_refused() -> None:
    values = np.arange(60, dtype=np.uint16).reshape(6, 10)
    for refuse in (decode_image, verify_image):
        with pytest.raises(SampleError, match="16-bit image with values up to 59"):
            refuse(encoded(values, "PNG"))
    assert not decode_image(encoded(values * 0, "PNG")).any()  # black


def test_16_bit_colors_keep_the_high_ones() -> None:
    values = np.random.default_rng(0).integers(0, 65536, (3, 5, 3), dtype=np.uint16)
    raw = png(5, 3, 16, 2, b"".join(b"\0" + row.astype(">u2").tobytes() for row in values))
    assert np.array_equal(decode_image(raw), (values >> 8).astype(np.uint8))


@pytest.mark.parametrize("mode", ["I", "F"])
def test_32_bit_values_are_refused(mode: str) -> None:
    raw = encoded(Image.new(mode, (4, 4), 7), "TIFF")
    for read in (decode_image, verify_image):
        with pytest.raises(SampleError, match=f"mode {mode}: 32-bit values have no known white"):
            read(raw)


@pytest.mark.filterwarnings("error")
def test_palettes_give_their_colors_and_put_what_is_transparent_on_white() -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 200, 0, 9, 8, 7])
    image.putdata([0, 1, 2])
    red, green, dark, white = [255, 0, 0], [0, 200, 0], [9, 8, 7], [255, 255, 255]
    for options, expected in (
        ({}, [red, green, dark]),
        ({"transparency": 1}, [red, white, dark]),
        ({"transparency": b"\x00\x80\xff"}, [white, [127, 227, 127], dark]),
    ):
        assert decode_image(encoded(image, "PNG", **options)).tolist() == [expected]
    assert decode_image(encoded(image, "GIF", transparency=1)).tolist() == [[red, white, dark]]


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame_is_taken(form: str) -> None:
    first, second = (Image.new("RGB", (6, 4), color) for color in ("red", "blue"))
    options: dict[str, Any] = {"lossless": True} if form == "WEBP" else {}
    raw = encoded(first, form, save_all=True, append_images=[second], **options)
    assert sum(1 for _ in ImageSequence.Iterator(Image.open(io.BytesIO(raw)))) == 2
    assert np.array_equal(decode_image(raw), np.asarray(first))
    assert verify_image(raw) == (6, 4)


@pytest.mark.parametrize("read", [decode_image, verify_image])
@pytest.mark.parametrize("raw", [b"", b"\xff", b"a text that is no picture"])
def test_what_is_no_picture_says_so(raw: bytes, read: Any) -> None:
    with pytest.raises(SampleError, match="no bytes|none of JPEG, PNG, WEBP, GIF, BMP, TIFF"):
        read(raw)


@pytest.mark.parametrize("form", ["EPS", "PPM", "PCX"])
def test_formats_that_nobody_needs_are_not_even_tried(form: str) -> None:
    """Pillow could read them: EPS by starting another program."""
    with pytest.raises(SampleError, match="none of JPEG, PNG, WEBP, GIF, BMP, TIFF"):
        decode_image(encoded(noise(8, 8, 3), form))


@pytest.mark.parametrize("read", [decode_image, verify_image])
@pytest.mark.parametrize(
    ("form", "options"), [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("WEBP", {})]
)
def test_truncated_pictures_are_refused(form: str, options: dict[str, Any], read: Any, library: str) -> None:
    raw = encoded(noise(40, 50, 3), form, **options)
    end = 32 if form == "PNG" else 0  # a PNG ends with checksums and an empty chunk, where no pixel is lost
    for cut in [*range(0, len(raw) - end, 97), len(raw) - end - 1]:
        with pytest.raises(SampleError):
            read(raw[:cut])


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "TIFF"])
def test_damaged_pictures_raise_nothing_but_sample_errors(form: str, library: str) -> None:
    rng = np.random.default_rng(1)
    whole = encoded(noise(40, 50, 3, seed=1) // 32 * 32, form)
    failed = 0
    for _ in range(150):
        raw = bytearray(whole)
        for place in rng.integers(0, len(raw) if rng.random() < 0.5 else 64, rng.integers(1, 8)):
            raw[place] = rng.integers(256)
        try:
            with warnings.catch_warnings(action="ignore"):
                verify_image(bytes(raw))
                decode_image(bytes(raw))  # which what passes must do, too
        except SampleError:
            failed += 1
    assert failed > 20


def huge(form: str, side: int) -> bytes:
    """A small file whose header tells of side x side pixels."""
    if form == "PNG":
        return png(side, side, 8, 2, b"")
    raw = encoded(noise(8, 8, 3), form)
    place = raw.index(b"\xff\xc0") + 5
    return raw[:place] + struct.pack(">HH", side, side) + raw[place + 4 :]


@pytest.mark.parametrize("read", [decode_image, verify_image])
@pytest.mark.parametrize("form", ["PNG", "JPEG"])
@pytest.mark.parametrize("lifted", [False, True], ids=["", "Pillow's limit lifted"])
def test_decompression_bombs_are_refused_before_they_are_decoded(
    form: str, read: Any, lifted: bool, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if lifted:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    start = time.process_time()
    with pytest.raises(SampleError, match=r"limit of 178956970|exceeds limit of 178956970 pixels"):
        read(huge(form, 13378))
    assert time.process_time() - start < 0.1, "decoding takes a second"
    assert 13378**2 > MAX_PIXELS > 13377**2


@pytest.mark.parametrize("read", [decode_image, verify_image])
@pytest.mark.parametrize("behind", [False, True], ids=["before the pixels", "behind them"])
@pytest.mark.parametrize(
    ("name", "content"),
    [(b"zTXt", b"note\0\0" + zlib.compress(bytes(2**21))), (b"iCCP", b"note\0\0" + zlib.compress(bytes(2**21))),
     (b"iTXt", b"note\0\1\0\0\0" + zlib.compress(bytes(2**21)))],
)  # fmt: skip
def test_a_png_with_a_long_note_is_read_all_the_same(read: Any, name: bytes, content: bytes, behind: bool) -> None:
    pixels = noise(8, 8, 3)
    raw = encoded(pixels, "PNG")
    place = raw.rindex(b"IEND") - 4 if behind else raw.index(b"IDAT") - 4
    note = struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
    found = read(raw[:place] + note + raw[place:])
    assert np.array_equal(found, pixels) if read is decode_image else found == (8, 8)


@pytest.mark.parametrize("read", [decode_image, verify_image])
def test_a_large_picture_that_is_allowed_is_no_attack(read: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)  # Pillow warns from there on, and refuses from twice that
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        read(encoded(noise(8, 8, 3), "PNG"))
    assert not told


def test_verifying_reads_all_at_a_fraction_of_the_cost_of_decoding(library: str) -> None:
    raw = encoded(np.clip(smooth(480, 640) + noise(480, 640, 3) * 0.12, 0, 255).astype(np.uint8), "JPEG", quality=92)
    assert 70_000 < len(raw) < 200_000

    def seconds(read: Any) -> float:
        start = time.process_time()
        for _ in range(5):
            read(raw)
        return time.process_time() - start

    assert min(seconds(verify_image) for _ in range(3)) < 0.8 * min(seconds(decode_image) for _ in range(3))


def test_jpegs_are_written_as_well_as_read(library: str) -> None:
    pixels = smooth(130, 141)
    raw = encode_jpeg(pixels)
    assert np.abs(decode_image(raw).astype(int) - pixels).mean() < 2
    assert raw == encode_jpeg(pixels)
    assert encode_jpeg(pixels[:, ::-1]) == encode_jpeg(pixels[:, ::-1].copy())
    usual = JpegImageFile(io.BytesIO(encoded(pixels, "JPEG", quality=95)))
    assert JpegImageFile(io.BytesIO(raw)).quantization == usual.quantization
    assert len(encode_jpeg(pixels, quality=50)) < len(raw)


@pytest.mark.parametrize(("size", "sampling"), [((127, 200), 0), ((200, 127), 0), ((128, 128), 2)])
def test_small_jpegs_keep_the_resolution_of_colors(size: tuple[int, int], sampling: int, library: str) -> None:
    assert get_sampling(JpegImageFile(io.BytesIO(encode_jpeg(smooth(*size))))) == sampling


@pytest.mark.parametrize(
    ("size", "expected"), [((100, 60), (66, 40)), ((60, 101), (40, 67)), ((40, 90), (40, 90)), ((30, 20), (30, 20))]
)
def test_shrunk_bounds_the_shorter_side(size: tuple[int, int], expected: tuple[int, int]) -> None:
    pixels = smooth(*size)
    small = shrunk(pixels, 40)
    assert small.shape == (*expected, 3)
    assert (small is pixels) == (size == expected)
