"""Images by address come from a server of this machine, a data address or base64; what is wrong is one line."""

import base64
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import quote

import pytest

from llava_mini.errors import UserError
from llava_mini.media import named
from llava_mini.media.named import bytes_at, bytes_in, shortened


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """The address of a server of what lies in tmp_path."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=tmp_path)) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_what_a_server_gives(served: str, tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"\x89PNG and more")
    assert bytes_at(f"{served}/a.bin") == b"\x89PNG and more"


def test_what_a_server_does_not_give_is_named(served: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=rf"^{served}/b.png: cannot be read \(HTTP Error 404: File not found\)$"):
        bytes_at(f"{served}/b.png")
    (tmp_path / "a.bin").write_bytes(bytes(11))
    monkeypatch.setattr(named, "MOST_BYTES", 10)
    with pytest.raises(UserError, match=f"^{served}/a.bin: more than 10 bytes$"):
        bytes_at(f"{served}/a.bin")


@pytest.mark.parametrize("address", ["http://127.0.0.1:1/a.png", "http://[a.png", "http:///a.png"])
def test_addresses_that_nobody_answers(address: str) -> None:
    with pytest.raises(UserError) as error:
        bytes_at(address)
    assert str(error.value).startswith(f"{address}: cannot be read (") and "\n" not in str(error.value)


def test_data_addresses_and_base64() -> None:
    raw = bytes(range(256))
    text = base64.encodebytes(raw).decode()  # with line breaks
    assert bytes_at(f"data:image/png;base64,{text}") == raw == bytes_in(text)
    assert bytes_at(f"data:image/png;base64,{quote(text)}") == raw
    for broken in ("data:image/png;base64,a.b", "data:image/png,abcd", "data:image/png;base64"):
        with pytest.raises(UserError, match="no data of the form data:image/png;base64"):
            bytes_at(broken)
    assert bytes_in("a.png") is None and bytes_in("é") is None


@pytest.mark.parametrize("name", ["a.png", "http_a.png", "/9j/4AAQ", "ftp://a/b.png", "file:///etc/hosts"])
def test_other_texts_are_no_addresses(name: str) -> None:
    assert bytes_at(name) is None


def test_messages_are_not_filled() -> None:
    assert shortened("a" * 200) == "a" * 200
    assert shortened("a" * 5000) == "a" * 80 + "... (5000 characters)"
