"""Downloads of files that records name by URL, into a folder where they stay: a repeated build fetches what is missing.

URLs come from untrusted data: only http and https, only public addresses (also after a redirect, and whatever a name
resolves to when it is used), with limits of bytes and seconds. No proxy is used, since it would connect in our place.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
import socket
import ssl
import time
import urllib.request
from collections.abc import Callable
from functools import cache
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit

from llava_mini.errors import SampleError
from llava_mini.files import atomic_path
from llava_mini.media.named import AGENT, MOST_BYTES
from llava_mini.units import MIB

_SECONDS_SILENT = 30.0  # that a server may send nothing
_SECONDS = 600.0  # that a file may take
_PAUSES = (1.0, 5.0)  # seconds before a second and a third try
_PASSING = {408, 425, 429, 500, 502, 503, 504}  # statuses that a later try may not get
_WEB = re.compile(r"https?://", re.IGNORECASE)


def downloaded(url: str, folder: Path) -> Path:
    """Return the path of the file at a URL in an existing folder, downloaded if it is not there.

    It is named by the SHA-256 of its URL.

    Raises:
        SampleError: the URL is not one of http or https or contains a password, its server is unreachable, not public
            or refuses, or the file is too large or takes too long.
        UserError: the folder cannot be written.
    """
    _check(url)
    path = folder / hashlib.sha256(url.encode()).hexdigest()
    if not path.is_file():
        with atomic_path(path) as temporary:
            _download(url, temporary)
    return path


def is_downloaded(url: str) -> bool:
    """Return whether a URL is one of http or https."""
    return _WEB.match(url) is not None


def _check(url: str) -> None:
    if not is_downloaded(url):
        raise SampleError("only http:// and https:// are downloaded")
    try:
        parts = urlsplit(url)
        server = parts.hostname, parts.port
    except ValueError as error:
        raise SampleError(f"not a URL: {error}") from None
    if not server[0]:
        raise SampleError("not a URL: it names no server")
    if parts.username is not None:
        raise SampleError("nothing is downloaded with a user name or password")


def _download(url: str, path: Path) -> None:
    """Download into a new file; what may pass (no connection, a busy server) is tried three times."""
    for pause in (*_PAUSES, None):
        try:
            _download_once(url, path)
            return
        except _PassingError as error:
            if pause is None:
                raise SampleError(str(error)) from None
            time.sleep(pause)


class _PassingError(Exception):
    """A failure that a later try may not meet."""


class _PrivateAddressError(OSError):
    """The server's address is not public."""


def _download_once(url: str, path: Path) -> None:
    end = time.monotonic() + _SECONDS
    try:
        request = urllib.request.Request(quote(url, safe="%/:=&?~#+!$,;'@()*[]"), headers=AGENT)
        with _opener().open(request, timeout=_SECONDS_SILENT) as answer:
            _copy(answer, path, end)
    except HTTPError as error:
        kind = _PassingError if error.code in _PASSING else SampleError
        raise kind(f"the server answered {error.code}") from None
    except (URLError, TimeoutError, ConnectionError, ssl.SSLError, HTTPException, ValueError) as error:
        reason = error.reason if isinstance(error, URLError) else error
        text = " ".join(str(reason).split()) or type(reason).__name__
        if isinstance(reason, _PrivateAddressError | HTTPException | ValueError):  # ValueError: a malformed URL
            raise SampleError(text) from None
        raise _PassingError(text) from None


def _copy(answer: HTTPResponse, path: Path, end: float) -> None:
    """Write the body to a file as it comes."""
    size, expected = 0, answer.length
    with open(path, "wb") as file:
        while part := answer.read1(MIB):
            size += len(part)
            if size > MOST_BYTES:
                raise SampleError(f"more than {MOST_BYTES} bytes")
            if time.monotonic() > end:
                raise SampleError(f"more than {_SECONDS:g} seconds")
            file.write(part)
    if expected is not None and size != expected:
        raise _PassingError(f"ended after {size} of {expected} bytes")


def _public_socket(host: str, port: int, timeout: float | None) -> socket.socket:
    """Check a server's addresses and connect to the first, so that no second look-up of the name can differ."""
    found = [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    for text in found:
        address = ipaddress.ip_address(text.partition("%")[0])
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        if not is_public(address):
            raise _PrivateAddressError(f"{host} is not a public address")
    return socket.create_connection((found[0], port), timeout)


def is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Return whether an address is one of the internet, not of this machine or of a private network."""
    return address.is_global and not address.is_multicast


class _Connection(HTTPConnection):
    def connect(self) -> None:
        self.sock = _public_socket(self.host, self.port, self.timeout)


class _SecureConnection(HTTPSConnection):
    def connect(self) -> None:
        plain = _public_socket(self.host, self.port, self.timeout)
        self.sock = _certificates().wrap_socket(plain, server_hostname=self.host)


class _Handler(urllib.request.AbstractHTTPHandler):
    http_request = https_request = urllib.request.AbstractHTTPHandler.do_request_

    def http_open(self, request: urllib.request.Request) -> HTTPResponse:
        return self.do_open(_Connection, request)

    def https_open(self, request: urllib.request.Request) -> HTTPResponse:
        return self.do_open(_SecureConnection, request)


@cache
def _certificates() -> ssl.SSLContext:
    return ssl.create_default_context()


@cache
def _opener() -> urllib.request.OpenerDirector:
    """Return an opener without the default one's proxies and its further schemes (ftp, file, data)."""
    opener = urllib.request.OpenerDirector()
    handlers: list[Callable[[], Any]] = [
        _Handler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.UnknownHandler,
    ]
    for handler in handlers:
        opener.add_handler(handler())
    return opener
