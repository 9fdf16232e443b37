"""Files named by URL are downloaded once, from public addresses only, within limits, and a repeated build continues."""

from __future__ import annotations

import ipaddress
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from llava_mini.cli import main
from llava_mini.data.building import downloads
from llava_mini.data.building.downloads import downloaded, is_public
from llava_mini.data.format.shard_set import ShardSet
from llava_mini.errors import SampleError


class Server(ThreadingHTTPServer):
    """A web server of this machine: `files` by path, answered with their status, headers and body; `asked` counts."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, tuple[int, dict[str, str], bytes]] = {}
        self.asked: Counter[str] = Counter()
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked[self.path] += 1
        status, headers, body = self.server.files.get(self.path, (404, {}, b""))
        if body == b"slow":
            time.sleep(1.0)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield made
        made.shutdown()


@pytest.fixture
def local_is_public(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let 127.0.0.1, where the server is, count as the only public address; and do not wait before a second try."""
    monkeypatch.setattr(downloads, "is_public", lambda address: str(address) == "127.0.0.1")
    monkeypatch.setattr(downloads, "_PAUSES", (0.0, 0.0))


@pytest.mark.usefixtures("local_is_public")
def test_a_file_is_downloaded_once(server: Server, tmp_path: Path) -> None:
    server.files = {
        "/a%20b/%C3%A4.jpg?x=1&y=%2F": (200, {}, b"bytes"),
        "/moved": (302, {"Location": "/a%20b/%C3%A4.jpg?x=1&y=%2F"}, b""),
    }
    (tmp_path / "files").mkdir()
    folder = tmp_path / "files"
    for url in (f"{server.url}/a b/ä.jpg?x=1&y=%2F", f"{server.url}/moved#part"):
        assert downloaded(url, folder).read_bytes() == b"bytes"
        assert downloaded(url, folder) == downloaded(url, folder)
    assert server.asked == {"/moved": 1, "/a%20b/%C3%A4.jpg?x=1&y=%2F": 2}
    assert len(list((tmp_path / "files").iterdir())) == 2


@pytest.mark.usefixtures("local_is_public")
@pytest.mark.parametrize(
    ("answer", "reason", "tries"),
    [
        ((404, {}, b""), "the server answered 404", 1),
        ((503, {}, b""), "the server answered 503", 3),
        ((200, {"Content-Length": "9"}, b"short"), "ended after 5 of 9 bytes", 3),
        ((200, {}, b"x" * 1001), "more than 1000 bytes", 1),
        ((200, {}, b"slow"), "timed out", 3),
        ((302, {"Location": "ftp://127.0.0.1/a"}, b""), "unknown url type: ftp", 1),
        ((302, {"Location": "file:///etc/passwd"}, b""), "the server answered 302", 1),
        ((302, {"Location": "http://127.0.0.2:1/"}, b""), "not a public address", 1),
        ((302, {"Location": "/a"}, b""), "the server answered 302", 1),
    ],
)
def test_what_cannot_be_had_says_why(
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    answer: tuple[int, dict[str, str], bytes],
    reason: str,
    tries: int,
) -> None:
    monkeypatch.setattr(downloads, "MOST_BYTES", 1000)
    monkeypatch.setattr(downloads, "_SECONDS_SILENT", 0.3)
    server.files["/a"] = answer
    with pytest.raises(SampleError, match=reason):
        downloaded(f"{server.url}/a", tmp_path)
    assert server.asked["/a"] >= tries and (tries > 1 or server.asked["/a"] < 12)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.read_bytes()]


@pytest.mark.usefixtures("local_is_public")
def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.files["/a"] = (429, {}, b"")
    monkeypatch.setattr(time, "sleep", lambda _: server.files.update({"/a": (200, {}, b"now")}))
    assert downloaded(f"{server.url}/a", tmp_path).read_bytes() == b"now"
    assert server.asked["/a"] == 2


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_no_private_address_is_asked(server: Server, tmp_path: Path, host: str) -> None:
    server.files["/a"] = (200, {}, b"secret")
    with pytest.raises(SampleError, match=f"{host} is not a public address"):
        downloaded(f"http://{host}:{server.server_port}/a", tmp_path)
    assert not server.asked


@pytest.mark.usefixtures("local_is_public")
def test_no_redirect_leads_to_a_private_address(server: Server, tmp_path: Path) -> None:
    server.files["/a"] = (302, {"Location": f"http://localhost.localdomain:{server.server_port}/b"}, b"")
    with ThreadingHTTPServer(("127.0.0.2", 0), _Handler) as private:
        server.files["/a"] = (302, {"Location": f"http://127.0.0.2:{private.server_port}/b"}, b"")
        with pytest.raises(SampleError, match=r"127\.0\.0\.2 is not a public address"):
            downloaded(f"{server.url}/a", tmp_path)


@pytest.mark.parametrize("url", ["ftp://host/a", "file:///etc/passwd", "data:image/png;base64,AAAA", "s3://bucket/a"])
def test_only_http_is_downloaded(tmp_path: Path, url: str) -> None:
    with pytest.raises(SampleError, match="only http:// and https:// are downloaded"):
        downloaded(url, tmp_path)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://", "it names no server"),
        ("http://a:port/", "Port could not be cast"),
        ("http://a:70000/", "Port out of range"),
        ("http://[::1", "Invalid IPv6 URL"),
        ("http://ho st/a", ""),
        ("http://.../😀", ""),
        ("https://name:word@example.com/a.png", "user name or password"),
    ],
)
def test_a_malformed_url_is_refused(tmp_path: Path, url: str, reason: str) -> None:
    with pytest.raises(SampleError, match=reason):
        downloaded(url, tmp_path)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2001:4860:4860::8888", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("169.254.169.254", False),  # where clouds answer with credentials
        ("100.64.0.1", False),
        ("224.0.0.1", False),
        ("0.0.0.0", False),
        ("::1", False),
        ("fe80::1", False),
        ("fd00::1", False),
    ],
)
def test_public_addresses(address: str, public: bool) -> None:
    assert is_public(ipaddress.ip_address(address)) is public


@pytest.mark.usefixtures("local_is_public")
def test_a_build_downloads_what_is_missing(
    server: Server, tmp_path: Path, picture: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    records = [
        {"id": str(n), "image": f"{server.url}/{n}.jpg", "conversations": [
            {"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "a ring"}]}
        for n in range(3)
    ]  # fmt: skip
    Path("mix.json").write_text(json.dumps(records))
    server.files = {f"/{n}.jpg": (200, {}, picture(n)) for n in range(2)}
    command = ["data", "build", "mix.json", "--workers", "1", "--fetch", "files", "--out"]
    assert main([*command, "first"]) == 0
    first = ShardSet("first")
    assert len(first) == 2 and first.rejected == 1
    [[_, reason]] = json.loads(next(Path("first").glob("shard-*.json")).read_text())["rejected"]
    assert reason == f"image that cannot be downloaded (the server answered 404): {server.url}/2.jpg"
    server.files["/2.jpg"] = (200, {}, picture(2))
    assert main([*command, "second"]) == 0
    assert len(ShardSet("second")) == 3 and server.asked == {"/0.jpg": 1, "/1.jpg": 1, "/2.jpg": 2}
    assert {ShardSet("second").read(i)["jpg"] for i in range(3)} == {picture(n) for n in range(3)}
