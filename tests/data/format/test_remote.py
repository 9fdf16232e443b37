"""Sets behind URLs read like local ones, in whole blocks, and faults of the net are named without any credentials."""

import base64
import builtins
import json
import multiprocessing
import os
import pickle
import re
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from tests.refusals import refuses

from llava_mini.data.format import remote
from llava_mini.data.format.shard_set import ShardSet
from llava_mini.data.format.shards import write_shards
from llava_mini.errors import SampleError, UserError

# 20 samples of 5 KB in two tars; with blocks of 4 KiB most samples lie in two or three of them
SAMPLES = [
    (f"k{i:02d}", {"json": b'{"id": %d}' % i, "jpg": np.random.default_rng(i).bytes(5000 + i)}) for i in range(20)
]


class WebServer(ThreadingHTTPServer):
    """Serves the files of a folder, with range requests.

    Attributes:
        requests: (name, range) of all requests.
        failures: statuses that the next requests are answered with.
        ranges: whether it answers range requests as such.
        user: base64 of the user:password that it asks for.
        silent: whether it hangs up instead of answering.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.requests: list[tuple[str, str]] = []
        self.failures: list[int] = []
        self.ranges = True
        self.user: str | None = None
        self.silent = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: WebServer
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # an answer in one piece

    def do_GET(self) -> None:
        name, wanted = self.path.lstrip("/"), self.headers.get("Range", "")
        self.server.requests.append((name, wanted))
        path = self.server.folder / name
        if self.server.silent:
            self.close_connection = True
        elif self.server.failures:
            self._answer(self.server.failures.pop(0), b"")
        elif self.server.user and self.headers.get("Authorization") != f"Basic {self.server.user}":
            self._answer(401, b"")
        elif not path.is_file():
            self._answer(404, b"")
        elif (places := re.fullmatch(r"bytes=(\d+)-(\d+)", wanted)) and self.server.ranges:
            content = path.read_bytes()[int(places[1]) : int(places[2]) + 1]
            self._answer(206 if content else 416, content)
        else:
            self._answer(200, path.read_bytes())

    def _answer(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        """Nothing is printed."""


@contextmanager
def web_server(folder: Path) -> Iterator[WebServer]:
    """A server of `folder`'s files."""
    server = WebServer(folder)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Small blocks, no waiting, temporary folders of the test's own."""
    monkeypatch.setattr(remote, "BLOCK_BYTES", 4096)
    monkeypatch.setattr(remote, "_WAITS", (0.0, 0.0, 0.0))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))


@pytest.fixture
def local(tmp_path: Path) -> ShardSet:
    return write_shards(SAMPLES, tmp_path / "set", samples_per_shard=12)


@pytest.fixture
def server(local: ShardSet) -> Iterator[WebServer]:
    with web_server(Path(local.folder)) as server:
        yield server


def assert_reads(shards: ShardSet) -> None:
    assert [(shards.key(i), shards.read(i)) for i in range(len(shards))] == SAMPLES
    assert shards.read_record(19) == SAMPLES[19][1]["json"]


def test_a_web_server(server: WebServer, local: ShardSet) -> None:
    shards = ShardSet(f"{server.url}/")
    assert shards.fingerprint == local.fingerprint
    assert shards.folder == server.url
    assert_reads(shards)
    shards.verify()


def test_blocks_are_whole_and_asked_for_once(server: WebServer, local: ShardSet) -> None:
    shards = ShardSet(server.url)
    for index in (5, 6, 5, 4):
        shards.read(index)
    ranges = [wanted for name, wanted in server.requests if name == "shard-000000.tar"]
    assert len(ranges) == len(set(ranges)) > 3
    starts = [int(wanted.removeprefix("bytes=").split("-")[0]) for wanted in ranges]
    assert all(start % 4096 == 0 for start in starts)
    assert all(wanted == f"bytes={start}-{start + 4095}" for start, wanted in zip(starts, ranges, strict=True))


def test_memory_is_bounded(server: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "MEMORY_BYTES", 5 * 4096)
    shards = ShardSet(server.url)
    assert_reads(shards)
    assert isinstance(shards._storage, remote.RemoteStorage)
    assert len(shards._storage._blocks) == 5
    asked = len(server.requests)
    shards.read(19)  # its blocks were the last
    assert len(server.requests) == asked
    shards.close()
    shards.read(19)
    assert len(server.requests) > asked


def test_a_cache_folder_serves_later_sets_and_other_processes(server: WebServer, tmp_path: Path) -> None:
    assert_reads(ShardSet(server.url, cache_dir=tmp_path / "cache"))
    asked = len(server.requests)
    again = ShardSet(server.url, cache_dir=tmp_path / "cache")
    assert_reads(again)
    assert [name for name, _ in server.requests[asked:]] == ["shards.json"]
    assert len(pickle.dumps(again)) < 3000
    fork, spawn = multiprocessing.get_context("fork").Process, multiprocessing.get_context("spawn").Process
    for process in (fork(target=assert_reads, args=(again,)), spawn(target=assert_reads, args=(again,))):
        process.start()
        process.join(60)
        assert process.exitcode == 0
    assert not list((tmp_path / "cache").rglob("*.tmp"))


def test_several_processes_may_fill_a_cache_at_once(server: WebServer, tmp_path: Path) -> None:
    shards = ShardSet(server.url, cache_dir=tmp_path / "cache")
    shards.read(0)  # the connection of this process is of no use to a forked one
    processes = [multiprocessing.get_context("fork").Process(target=assert_reads, args=(shards,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert_reads(shards)


def test_a_set_that_was_built_again_is_not_read_from_old_blocks(server: WebServer, tmp_path: Path) -> None:
    ShardSet(server.url, cache_dir=tmp_path / "cache").read(3)
    changed = [(key, {**members, "jpg": members["jpg"][::-1]}) for key, members in SAMPLES]
    for path in server.folder.iterdir():
        path.unlink()
    write_shards(changed, server.folder, samples_per_shard=12)
    assert ShardSet(server.url, cache_dir=tmp_path / "cache").read(3) == changed[3][1]


def test_a_temporary_folder_goes_with_its_set(server: WebServer, tmp_path: Path) -> None:
    shards = ShardSet(server.url)
    assert len(list((tmp_path / "temporary").iterdir())) == 1
    process = multiprocessing.get_context("fork").Process(target=assert_reads, args=(shards,))
    process.start()
    process.join(60)
    assert len(list((tmp_path / "temporary").iterdir())) == 1, "a forked process removed its parent's"
    copy = pickle.loads(pickle.dumps(shards))
    assert_reads(copy)
    del copy, process
    assert_reads(shards)
    del shards
    assert list((tmp_path / "temporary").iterdir()) == []


@pytest.mark.parametrize("status", [500, 503, 429])
def test_passing_failures_are_tried_again(server: WebServer, status: int) -> None:
    shards = ShardSet(server.url)
    server.failures = [status] * 3
    assert shards.read(0) == SAMPLES[0][1]
    server.failures = [status] * 4
    with pytest.raises(SampleError, match=rf"{server.url}/shard-000001\.tar cannot be read \(HTTP status {status}\)"):
        shards.read(19)


def test_lasting_failures_are_not_tried_again(server: WebServer) -> None:
    shards = ShardSet(server.url)
    (server.folder / "shard-000001.tar").unlink()
    asked = len(server.requests)
    with pytest.raises(SampleError, match=rf"{server.url}/shard-000001\.tar cannot be read \(no such file\)"):
        shards.read(19)
    server.failures = [403]
    with pytest.raises(SampleError, match="HTTP status 403"):
        shards.read(0)
    assert len(server.requests) == asked + 2


def test_a_server_that_is_not_there_is_named(server: WebServer) -> None:
    shards = ShardSet(server.url)
    server.silent = True
    with pytest.raises(SampleError, match=rf"{server.url}/shard-000000\.tar cannot be read \(ServerDisconnectedError"):
        shards.read(0)
    with pytest.raises(UserError, match=rf"{server.url}/shards\.json cannot be read"):
        ShardSet(server.url)
    with pytest.raises(UserError, match=r"http://127\.0\.0\.1:1/set/shards\.json cannot be read \(ClientConnect"):
        ShardSet("http://127.0.0.1:1/set")


def test_credentials_are_used_and_not_shown(server: WebServer) -> None:
    server.user = base64.b64encode(b"me:secret").decode()
    url = server.url.replace("http://", "http://me:secret@")
    shards = ShardSet(url)
    assert_reads(shards)
    assert shards.folder == server.url
    server.user = "other"
    shards.close()
    (server.folder / "shards.json").write_text("{")
    messages = []
    for action in (lambda: shards.read(0), shards.verify, lambda: ShardSet(url)):
        with pytest.raises((SampleError, UserError)) as raised:
            action()
        messages.append(str(raised.value))
    assert all("HTTP status 401" in message and server.url in message for message in messages)
    assert not any("secret" in message for message in messages)


@pytest.mark.parametrize("url", ["ftp://host/set", "gs://bucket/set", "file:///set"])
def test_other_schemes_are_refused(url: str) -> None:
    with refuses("url", url.partition(":")[0], "a folder and URLs of s3, http, https"):
        ShardSet(url)


def test_a_url_that_is_no_folders_is_refused_without_its_secrets() -> None:
    with refuses("url", "https://host/set", "URLs of a folder, to which names of files can be added") as raised:
        ShardSet("https://me:word@host/set?token=secret")
    assert "secret" not in str(raised.value) and "word" not in str(raised.value)


def test_a_missing_package_is_named_with_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without(name: str, *args: object, **more: object) -> object:
        if name.split(".")[0] in ("aiohttp", "botocore"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return original(name, *args, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    for url in ("http://127.0.0.1/set", "s3://bucket/set"):
        with pytest.raises(UserError, match=r"not installed \(\w+\): pip install 'llava-mini-lab\[remote\]'"):
            ShardSet(url)


def test_a_place_without_a_set_is_named(server: WebServer) -> None:
    with pytest.raises(UserError, match=rf"{server.url}/sub is no complete shard set \(it has no shards\.json\)"):
        ShardSet(f"{server.url}/sub")


def test_malformed_listings_are_named_by_url(server: WebServer) -> None:
    listing = json.loads((server.folder / "shards.json").read_text())
    for content, message in (("{", "not valid JSON"), (json.dumps({**listing, "version": 1}), "format version 1")):
        (server.folder / "shards.json").write_text(content)
        with pytest.raises(UserError, match=rf"{server.url}/shards\.json .*{message}"):
            ShardSet(server.url)


@pytest.mark.parametrize("damage", ["cut", "changed", "missing"])
def test_an_index_that_is_not_the_listed_one_is_not_kept(server: WebServer, tmp_path: Path, damage: str) -> None:
    path = server.folder / "index.npy"
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[:-9], "changed": whole[:-1] + b"\x07", "missing": b""}[damage])
    if damage == "missing":
        path.unlink()
    with pytest.raises(UserError, match=rf"{server.url}/index\.npy (is not what|cannot be fetched)"):
        ShardSet(server.url, cache_dir=tmp_path / "cache")
    path.write_bytes(whole)
    assert_reads(ShardSet(server.url, cache_dir=tmp_path / "cache"))


def test_a_tar_that_is_cut_spoils_single_samples_and_verify_names_it(server: WebServer) -> None:
    shards = ShardSet(server.url)
    tar = server.folder / "shard-000001.tar"
    os.truncate(tar, 20_000)
    for _ in range(2):
        with pytest.raises(SampleError, match=rf"{server.url}/shard-000001\.tar cannot be read \(it ends too early\)"):
            shards.read(15)  # in the block that is cut
        with pytest.raises(SampleError, match=rf"{server.url}/shard-000001\.tar cannot be read \(HTTP status 416\)"):
            shards.read(19)
    assert shards.read(12) == SAMPLES[12][1]
    with pytest.raises(UserError, match=r"shard-000001\.tar (has SHA-256|cannot be read)"):
        shards.verify()


def test_a_server_without_range_requests_is_named(server: WebServer) -> None:
    server.ranges = False
    with pytest.raises(SampleError, match="does not answer range requests"):
        ShardSet(server.url).read(0)


def test_a_cache_that_cannot_be_written_is_no_fault_of_a_sample(server: WebServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UserError, match=r"the cache .*file.* cannot be written"):
        ShardSet(server.url, cache_dir=tmp_path / "file").read(0)


@pytest.fixture
def accepting() -> Iterator[tuple[str, list[socket.socket]]]:
    """The address of a server that accepts connections and never says a word, and its connections."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        accepted: list[socket.socket] = []

        def accept() -> None:
            with suppress(OSError):  # closed
                while True:
                    accepted.append(server.accept()[0])

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", accepted
        server.shutdown(socket.SHUT_RDWR)
        for connection in accepted:
            connection.close()


@pytest.mark.parametrize(("scheme", "reason"), [("http", "FSTimeoutError|TimeoutError"), ("s3", "ReadTimeoutError")])
def test_a_server_that_accepts_and_says_nothing_ends_the_waiting(
    scheme: str, reason: str, accepting: tuple[str, list[socket.socket]], monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint, accepted = accepting
    for name, value in {"AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "testing",
                        "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(remote, "_TIMEOUT", 0.4)
    url = f"{endpoint}/set" if scheme == "http" else "s3://bucket/mine/set"
    start = time.monotonic()
    with pytest.raises(UserError, match=rf"{url}/shards\.json cannot be read \({reason}\)"):
        ShardSet(url)
    assert 4 * 0.4 <= time.monotonic() - start < 60  # s3fs takes seconds to begin
    assert len(accepted) == 4


def test_what_the_user_says_of_an_object_store_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    monkeypatch.setitem(
        fsspec.config.conf, "s3", {"config_kwargs": {"read_timeout": 7, "s3": {"addressing_style": "path"}}}
    )
    given = remote._Connection("s3").filesystem.config_kwargs
    assert (given["read_timeout"], given["s3"]) == (7, {"addressing_style": "path"})
    assert given["connect_timeout"] == 10 and given["retries"] == {"total_max_attempts": 1}


@pytest.fixture(scope="module")
def object_store() -> Iterator[str]:
    """The endpoint of an S3 server with an empty bucket."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    user = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing", "region_name": "us-east-1"}
    boto3.client("s3", endpoint_url=endpoint, **user).create_bucket(Bucket="bucket")
    yield endpoint
    server.stop()


def test_an_object_store(object_store: str, local: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import boto3

    for name, value in {"AWS_ENDPOINT_URL": object_store, "AWS_ACCESS_KEY_ID": "testing",
                        "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    for path in Path(local.folder).iterdir():
        client.upload_file(str(path), "bucket", f"mine/set/{path.name}")
    for cache_dir in (None, tmp_path / "cache"):
        shards = ShardSet("s3://bucket/mine/set", cache_dir=cache_dir)
        assert shards.fingerprint == local.fingerprint
        assert_reads(shards)
        shards.verify()
        process = multiprocessing.get_context("fork").Process(target=assert_reads, args=(shards,))
        process.start()
        process.join(60)
        assert process.exitcode == 0
    client.delete_object(Bucket="bucket", Key="mine/set/shard-000001.tar")
    uncached = ShardSet("s3://bucket/mine/set")
    with pytest.raises(SampleError, match=r"s3://bucket/mine/set/shard-000001\.tar cannot be read \(no such file\)"):
        uncached.read(19)
    with pytest.raises(UserError, match=r"s3://bucket/mine/other is no complete shard set"):
        ShardSet("s3://bucket/mine/other")
    with pytest.raises(UserError, match=r"s3://nowhere/set"):
        ShardSet("s3://nowhere/set")
