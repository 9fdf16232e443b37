"""Feeds the readers of files and values with damaged and made-up input; a script, which `make test` does not run.

    python tests/fuzz_readers.py images --minutes 10
    python tests/fuzz_readers.py sessions --minutes 10 --model runs/smoke/model

A reader may return or raise what it documents (UserError, SampleError); whatever else it raises ends the script with
the smallest input that hypothesis finds. Such an input becomes a test beside those of its reader.
"""

import argparse
import io
import json
import tempfile
import time
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from llava_mini.config.overrides import quoted, text_keys
from llava_mini.data.building.media import stored_image
from llava_mini.data.building.plan import Options, _line
from llava_mini.data.building.records import Entry, read_records
from llava_mini.data.building.run import sample_of
from llava_mini.data.format.shard_set import ShardSet
from llava_mini.data.format.shards import write_shards
from llava_mini.data.text.conversation import parse_record
from llava_mini.errors import SampleError, UserError
from llava_mini.inference.requests import read_requests
from llava_mini.media.images import decode_image, verify_image
from llava_mini.predictions import Predictions

DOCUMENTED = (UserError, SampleError)
Fuzz = Callable[[Any], None]

TALK = [{"from": "human", "value": "<image>\nwhat is it"}, {"from": "gpt", "value": "a ring"}]
PARTS = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}, {"role": "assistant"}]
RECORDS = (
    {"id": "a", "image": "a.png", "conversations": TALK},
    {"id": 7, "images": ["a.png"], "messages": PARTS, "system": "s", "source": 3, "kinds": ["k"]},
    {"videos": ["a.mp4"], "query": "q", "response": "r", "history": [["a", "b"]], "clip": "b.mp4"},
    {"instruction": "i", "input": "", "output": "o", "images": []},
)
NAMES = sorted({key for record in RECORDS for key in record} | {"from", "value", "role", "content", "type", "text"})
WORDS = ["human", "gpt", "user", "assistant", "system", "<image>", "<video>", "a.png", "image", "image_url", "\ud800"]

numbers = st.none() | st.booleans() | st.integers() | st.floats() | st.just(10**400)
values = st.recursive(
    numbers | st.text() | st.sampled_from(WORDS),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(NAMES) | st.text(), inner, max_size=6),
    max_leaves=12,
)


def damaged(samples: list[bytes]) -> st.SearchStrategy[bytes]:
    """One of the samples with bytes changed, put in, taken out, or cut off."""
    edit = st.tuples(st.floats(0, 1), st.integers(0, 40), st.binary(max_size=8))

    def edited(sample: bytes, edits: list[tuple[float, int, bytes]]) -> bytes:
        for where, length, new in edits:
            place = int(where * len(sample))
            sample = sample[:place] + new + sample[place + (len(new) if length > 20 else length) :]
        return sample

    return st.builds(edited, st.sampled_from(samples), st.lists(edit, max_size=4))


def fuzz_records(scratch: Path, _: argparse.Namespace) -> tuple[st.SearchStrategy[Any], Fuzz]:
    """Sources of `data build`, and requests of `batch`."""
    path = scratch / "records.json"
    Image.new("RGB", (4, 4)).save(scratch / "a.png")
    options = Options(scratch, scratch)
    lines = "\n".join(map(json.dumps, RECORDS)).encode()
    files = [lines, json.dumps(RECORDS, indent=1).encode(), b"\xef\xbb\xbf" + lines, lines.replace(b"\n", b"\r\n")]
    made = st.builds(lambda value: json.dumps(value).encode(), values | st.lists(values))

    def read(content: bytes) -> None:
        path.write_bytes(content)
        for entry in _documented(lambda: list(read_records(path))) or []:
            again = Entry(*json.loads(_line(entry)[0]))
            _documented(partial(sample_of, again, options))
        _documented(lambda: read_requests(path))

    return damaged(files) | made | st.binary(max_size=200), read


def fuzz_shards(scratch: Path, _: argparse.Namespace) -> tuple[st.SearchStrategy[Any], Fuzz]:
    """Listing, index, sidecar and tar of a shard set."""
    folder = scratch / "set"
    picture = _encoded("PNG")
    record = json.dumps(RECORDS[0]).encode()
    write_shards([(f"k{n}", {"json": record, "png": picture}) for n in range(3)], folder).close()
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}

    def read(change: tuple[str, bytes]) -> None:
        name, content = change
        for file, intact in whole.items():
            (folder / file).write_bytes(content if file == name else intact)
        shards = _documented(lambda: ShardSet(folder))
        if shards is not None:
            for look in (lambda: shards.verify_sidecar(0), shards.verify):
                _documented(look)
            for index in range(len(shards)):
                for read_one in (shards.read, shards.read_record, shards.key, shards.shard_name, shards.source):
                    _documented(partial(read_one, index))
                record = _documented(partial(shards.read_record, index))
                if record is not None:
                    _documented(partial(parse_record, record))
            shards.close()

    def edited(name: str) -> st.SearchStrategy[tuple[str, bytes]]:
        changed = damaged([whole[name]])
        if name.endswith(".json"):
            changed |= _edited_json(json.loads(whole[name]))
        return st.tuples(st.just(name), changed)

    return st.sampled_from(sorted(whole)).flatmap(edited), read


def _edited_json(content: dict[str, Any]) -> st.SearchStrategy[bytes]:
    """A JSON object in which one value, however deep, is another one."""
    paths: list[tuple[Any, ...]] = []

    def walk(node: Any, path: tuple[Any, ...]) -> None:
        paths.append(path)
        for key, inner in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
            walk(inner, (*path, key))

    def replaced(path: tuple[Any, ...], value: Any) -> bytes:
        root = {"": json.loads(json.dumps(content))}
        node: Any = root
        for key in ("", *path)[:-1]:
            node = node[key]
        node[("", *path)[-1]] = value
        return json.dumps(root[""]).encode()

    walk(content, ())
    return st.builds(replaced, st.sampled_from(paths), values)


def fuzz_images(_: Path, __: argparse.Namespace) -> tuple[st.SearchStrategy[Any], Fuzz]:
    """Pictures; what passes `verify_image` can be decoded."""
    modes = {
        "JPEG": ["RGB", "L", "CMYK"], "PNG": ["RGBA", "P", "I;16", "1", "LA"], "WEBP": ["RGB", "RGBA"], "GIF": ["P"],
        "BMP": ["RGB", "1"], "TIFF": ["RGB", "CMYK", "I;16", "LAB"],
    }  # fmt: skip
    samples = [_encoded(form, mode) for form, several in modes.items() for mode in several]
    exif = Image.Exif()
    exif[0x0112] = 6
    samples += [_encoded(form, exif=exif) for form in ("JPEG", "PNG", "WEBP", "TIFF")]

    def read(raw: bytes) -> None:
        verified = _documented(lambda: verify_image(raw)) is not None
        pixels = _documented(lambda: decode_image(raw))
        if verified and pixels is None:
            raise AssertionError("verified, but not decoded")
        _documented(lambda: stored_image(raw, 8))

    return damaged(samples), read


def fuzz_sessions(scratch: Path, given_: argparse.Namespace) -> tuple[st.SearchStrategy[Any], Fuzz]:
    """Files of sessions, also such as have a right checksum."""
    from llava_mini.inference.loading import load
    from llava_mini.inference.session import Session
    from llava_mini.inference.session_file import checksum
    from llava_mini.models.tensor_files import open_tensors, save_tensors

    if given_.model is None:
        raise UserError("sessions: --model must name the folder of a model")
    model, processor = load(given_.model, device="cpu", dtype=None)
    path = scratch / "session"
    session = Session(model, processor)
    session.add_media(np.zeros((3, 16, 16, 3), np.uint8))
    session.add_media(np.zeros((16, 16, 3), np.uint8))
    session.save(path)
    whole = path.read_bytes()
    with open_tensors(path) as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    def read(content: bytes | tuple[str, bytes]) -> None:
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            without, facts = content[0], content[1].decode()
            kept = {name: tensor for name, tensor in tensors.items() if name != without}
            save_tensors(kept, path, {**metadata, "facts": facts, "crc32": checksum(facts, kept)})
        _documented(lambda: Session.load(path, model, processor))

    names = st.sampled_from(["", "", *tensors])
    return damaged([whole, whole[:2000]]) | st.tuples(names, _edited_json(json.loads(metadata["facts"]))), read


def fuzz_config(_: Path, __: argparse.Namespace) -> tuple[st.SearchStrategy[Any], Fuzz]:
    """Overrides; text of a key that takes text alone comes out as it was typed."""
    from llava_mini.config import resolve

    keys = [*text_keys(), "seed", "stage.learning_rates.projector", "compressor.C", "compressor", "data.sizes", ""]
    typed = st.text() | st.text(alphabet="=,[]{}'\"\\~#$ :.-+*()ab1") | st.from_regex(r"\A\$\{[a-z.:,]*\}\Z")
    alone = [key for key, kind in text_keys().items() if not kind.items and not kind.others]

    def read(override: str) -> None:
        key, _, value = override.partition("=")
        config = _documented(lambda: resolve([override]))
        taken = value.strip() and value.strip().lower() != "null" and not {"$", "~"} & set(value)
        if config is not None and key in alone and taken and value.strip()[0] not in "'\"":
            found: Any = config.to_dict()
            for part in key.split("."):
                found = (found or {}).get(part)
            if key != "run_name" and found != value:
                raise AssertionError(f"{found!r} in place of {value!r}")
        _documented(lambda: quoted(override))

    return st.builds("{}={}".format, st.sampled_from(keys) | typed, typed) | typed, read


def fuzz_predictions(scratch: Path, _: argparse.Namespace) -> tuple[st.SearchStrategy[Any], Fuzz]:
    """Predictions of a run; zeros in place of a checksum let damage through to the arrays."""
    path = scratch / "predictions_val.npz"
    scores = np.ones(3, np.float32)
    numbers_ = np.arange(1, 4)
    Predictions(np.array(["a", "b", "c"]), numbers_, np.array(["k"] * 3), numbers_, scores, scores, scores).save(path)
    buffer = io.BytesIO()
    np.savez(buffer, **np.load(path))
    samples = [path.read_bytes(), buffer.getvalue()]

    def mended(raw: bytes) -> bytes:
        """With the checksums of what is in it, as far as an entry can still be found."""
        content = bytearray(raw)
        place = content.find(b"PK\x03\x04")
        while place >= 0 and (end := content.find(b"PK", place + 4)) > 0:
            header = 30 + int.from_bytes(content[place + 26 : place + 28], "little")
            header += int.from_bytes(content[place + 28 : place + 30], "little")
            crc = zlib.crc32(content[place + header : end]).to_bytes(4, "little")
            old = bytes(content[place + 14 : place + 18])
            if old.strip(b"\0"):
                content = bytearray(bytes(content).replace(old, crc))
            place = content.find(b"PK\x03\x04", place + 4)
        return bytes(content)

    def read(raw: bytes) -> None:
        path.write_bytes(raw)
        found = _documented(lambda: Predictions.load(path))
        if found is not None:
            found.group_means("nll")
            found.by_kind("nll")
            found.accuracy()

    return damaged(samples) | damaged(samples[1:]).map(mended), read


READERS: dict[str, Callable[[Path, argparse.Namespace], tuple[st.SearchStrategy[Any], Fuzz]]] = {
    "records": fuzz_records, "shards": fuzz_shards, "images": fuzz_images, "sessions": fuzz_sessions,
    "config": fuzz_config, "predictions": fuzz_predictions,
}  # fmt: skip


def _documented(read: Callable[[], Any]) -> Any:
    """What a reader returns; None where it raises what it documents."""
    try:
        return read()
    except DOCUMENTED as error:
        if not str(error).strip():
            raise AssertionError("an error without a message") from error
        return None


def _encoded(form: str, mode: str = "RGB", **options: Any) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257) if mode == "I;16" else image.convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reader", choices=READERS)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--model", help="of sessions")
    arguments = parser.parse_args()
    end, tried = time.monotonic() + 60 * arguments.minutes, 0
    with tempfile.TemporaryDirectory() as scratch:
        strategy, read = READERS[arguments.reader](Path(scratch), arguments)

        @settings(max_examples=200, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(strategy)
        def once(value: Any) -> None:
            nonlocal tried
            tried += 1
            read(value)

        while time.monotonic() < end:
            once()
    print(f"{arguments.reader}: {tried} inputs, nothing found")


if __name__ == "__main__":
    main()
