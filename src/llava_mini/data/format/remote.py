"""Storage of a shard set at a URL: s3:// through s3fs, http:// and https:// through aiohttp, both by fsspec.

Tars are read in whole, aligned blocks, so that neighboring samples cost one request. Blocks are stored either in memory
(separately in every process) or, with a cache folder, as files that all processes of this machine share. Listing and
index are fetched when the set is opened, the index for memory-mapping. Server address and credentials are passed to
fsspec and the AWS tools in their usual ways (AWS_ENDPOINT_URL, AWS_PROFILE, FSSPEC_S3_ANON, ...).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from llava_mini.data.format.storage import LocalStorage, Storage
from llava_mini.errors import UserError, refused
from llava_mini.files import atomic_path, remove_leftovers

SCHEMES = ("s3", "http", "https")
BLOCK_BYTES = 4 << 20
MEMORY_BYTES = 256 << 20  # blocks of a process if there is no cache folder: about one window of the shuffle
_WAITS = (0.2, 1.0, 4.0)  # seconds before a request is repeated
_TIMEOUT = 60.0  # seconds a request over http may take, and s3 may send nothing
_CONNECT_TIMEOUT = 10.0  # seconds to reach an object store
_INSTALL = "pip install 'llava-mini-lab[remote]'"


class _RequestError(OSError):
    """A request failed permanently."""


class _MissingError(_RequestError):
    """There is no such file."""


class RemoteStorage(Storage):
    """The files of a shard set at a URL.

    Later runs and other processes use the fetched files in `cache_dir` too; it may become as large as the set. None
    stores blocks in memory and the index in a temporary folder.

    Raises:
        UserError: The URL has another scheme or a query, or the packages for it are not installed.
    """

    def __init__(self, url: str, cache_dir: Path | None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in SCHEMES:
            allowed = f"a folder and URLs of {', '.join(SCHEMES)}"
            raise refused("url", parts.scheme, given=f"{parts.scheme}://", allowed=allowed)
        self._shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"  # no credentials
        if parts.query or parts.fragment:
            allowed = "URLs of a folder, to which names of files can be added"
            raise refused("url", self._shown, given=f"{self._shown}?...", allowed=allowed)
        self._url, self._scheme = url.rstrip("/"), parts.scheme
        self._cache_dir, self._block_bytes = cache_dir, BLOCK_BYTES
        self._files: LocalStorage | None = None  # fetched files; known with the listing
        self._sizes: dict[str, int] = {}
        self._blocks: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._connection: _Connection | None = None
        self._connect()

    def where(self, name: str) -> str:
        return f"{self._shown}/{name}"

    def listing(self, name: str) -> bytes | None:
        """Fetch the listing; the cache is named by its content, so a changed set never mixes with its old version."""
        content = self.content(name)
        if content is None:
            return None
        if self._cache_dir is None:
            folder = Path(tempfile.mkdtemp(prefix="llava-mini-"))
            weakref.finalize(self, _remove, folder, os.getpid())
        else:
            folder = self._cache_dir / f"{hashlib.sha256(content).hexdigest()[:32]}-{self._block_bytes}"
            remove_leftovers(folder)
        self._files = LocalStorage(folder)
        return content

    def content(self, name: str) -> bytes | None:
        try:
            return self._request(name, None, None)
        except _MissingError:
            return None
        except _RequestError as error:
            raise UserError(f"{self.where(name)} cannot be read ({error})") from None

    def mapped(self, name: str, size: int, sha256: str) -> Path:
        path = self._local().folder / name
        if path.is_file() and path.stat().st_size == size:
            return path  # it was complete and correct when it was renamed
        try:
            self._store(name, self._checked(name, size, sha256))
        except _RequestError as error:
            raise UserError(f"{self.where(name)} cannot be fetched ({error})") from None
        return path

    def check(self, name: str, size: int) -> None:
        """Note the size: asking a server about each of thousands of files would take minutes; reading finds faults."""
        self._sizes[name] = size

    def read(self, name: str, offset: int, size: int) -> bytes:
        block, end = self._block_bytes, offset + size
        numbers = range(offset // block, -(-end // block))
        return b"".join(
            self._part(name, number, max(offset - number * block, 0), min(end - number * block, block))
            for number in numbers
        )

    def sha256(self, name: str, size: int) -> str:
        digest = hashlib.sha256()
        for block in self._stream(name, size):
            digest.update(block)
        return digest.hexdigest()

    def close(self) -> None:
        self._blocks.clear()
        if self._files is not None:
            self._files.close()

    def _part(self, name: str, number: int, start: int, stop: int) -> bytes:
        """Return a part of a block, from the cache if it is there."""
        if self._cache_dir is None:
            return self._block_in_memory(name, number)[start:stop]
        file = f"{name}.{number:06d}"
        try:
            return self._local().read(file, start, stop - start)
        except FileNotFoundError:
            block = self._block(name, number)
            self._store(file, [block])
            return block[start:stop]

    def _block_in_memory(self, name: str, number: int) -> bytes:
        place = (name, number)
        if place not in self._blocks:
            block = self._block(name, number)
            while self._blocks and len(self._blocks) >= MEMORY_BYTES // self._block_bytes:
                self._blocks.popitem(last=False)
            self._blocks[place] = block
        self._blocks.move_to_end(place)
        return self._blocks[place]

    def _block(self, name: str, number: int) -> bytes:
        start = number * self._block_bytes
        stop = min(start + self._block_bytes, self._sizes[name])
        block = self._request(name, start, stop)
        if len(block) < stop - start:
            raise _RequestError("it ends too early")
        return block

    def _stream(self, name: str, size: int) -> Iterator[bytes]:
        """Yield a whole file, piece by piece."""
        return (self._request(name, at, min(at + self._block_bytes, size)) for at in range(0, size, self._block_bytes))

    def _checked(self, name: str, size: int, sha256: str) -> Iterator[bytes]:
        """Yield a whole file, piece by piece; raise UserError at its end when it is not the expected one."""
        digest = hashlib.sha256()
        for block in self._stream(name, size):
            digest.update(block)
            yield block
        if digest.hexdigest() != sha256:
            raise UserError(f"{self.where(name)} is not what the listing describes: its SHA-256 is another")

    def _store(self, name: str, blocks: Iterable[bytes]) -> None:
        """Store a file in the cache folder, whole or not at all."""
        path = self._local().folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(path) as temporary, open(temporary, "wb") as file:
                file.writelines(blocks)
        except _RequestError:
            raise
        except OSError as error:  # not a fault of a sample, so the run must not skip it and continue
            raise UserError(f"the cache {path.parent} cannot be written ({error.strerror})") from None

    def _local(self) -> LocalStorage:
        if self._files is None:
            raise ValueError("the listing comes first")
        return self._files

    def _request(self, name: str, start: int | None, stop: int | None) -> bytes:
        """Return bytes `start` to `stop` of a file, or all; the request is repeated when a failure may be temporary.

        Raises:
            _RequestError: The request failed permanently; the message gives only the kind of failure.
        """
        connection = self._connect()
        for wait in (*_WAITS, None):
            try:
                content = bytes(connection.filesystem.cat_file(f"{self._url}/{name}", start=start, end=stop))
                break
            except FileNotFoundError:
                raise _MissingError("no such file") from None
            except connection.failures as error:
                if wait is None or connection.lasts(error):
                    raise _RequestError(connection.described(error)) from None
                time.sleep(wait)
        if start is not None and stop is not None and len(content) > stop - start:
            raise _RequestError("the server does not answer range requests")
        return content

    def _connect(self) -> _Connection:
        if self._connection is None or self._connection.process != os.getpid():
            self._connection = _Connection(self._scheme)
        return self._connection

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without connections and blocks, which are not passed to another process."""
        return {**self.__dict__, "_connection": None, "_blocks": OrderedDict()}


class _Connection:
    """fsspec's file system of one process, and what its failures mean.

    Raises:
        UserError: A package is not installed.
    """

    def __init__(self, scheme: str) -> None:
        self.process = os.getpid()
        self.failures: tuple[type[Exception], ...]
        self._lasting: tuple[type[Exception], ...] = (PermissionError,)
        try:
            import aiohttp
            import fsspec

            self.failures = (OSError, aiohttp.ClientError)
            self._answer = aiohttp.ClientResponseError
            if scheme == "s3":
                from botocore.exceptions import BotoCoreError, NoCredentialsError

                self.failures, self._lasting = (*self.failures, BotoCoreError), (PermissionError, NoCredentialsError)
                own = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})  # the user's, by FSSPEC_S3
                limits = {
                    "connect_timeout": min(_CONNECT_TIMEOUT, _TIMEOUT),
                    "read_timeout": _TIMEOUT,
                    "retries": {"total_max_attempts": 1},
                }
                self.filesystem = fsspec.filesystem("s3", config_kwargs={**limits, **own})
                # Requests are repeated by `_request`. By default botocore and s3fs do so too, each within the other: a
                # store that does not answer would be asked 500 times, for two hours.
                self.filesystem.retries = 1
            else:
                timeout = aiohttp.ClientTimeout(total=_TIMEOUT)
                self.filesystem = fsspec.filesystem(scheme, client_kwargs={"timeout": timeout})
        except ImportError as error:
            raise UserError(f"{scheme}:// needs a package that is not installed ({error.name}): {_INSTALL}") from None

    def lasts(self, error: Exception) -> bool:
        """Whether a failure is permanent, so that repeating the request is useless."""
        if isinstance(error, self._answer):
            return error.status < 500 and error.status not in (408, 429)
        return isinstance(error, self._lasting)

    def described(self, error: Exception) -> str:
        """Return only the kind of failure, because messages of servers may contain credentials."""
        return f"HTTP status {error.status}" if isinstance(error, self._answer) else type(error).__name__


def _remove(folder: Path, owner: int) -> None:
    """Remove a temporary folder, in the process that made it: forked processes have copies of its owner."""
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)
