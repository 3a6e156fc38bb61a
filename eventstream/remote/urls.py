"""One address for every kind of bus: `open_bus(url)`.

memory://                      a bus in this process
sqlite:///PATH                 a bus in this process that keeps its events in a file
tcp://HOST:PORT                a server, in clear
tls://HOST:PORT                a server, over TLS
unix:///PATH                   a server on this machine
"""

from __future__ import annotations

import ssl
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

import anyio
from anyio.abc import ByteStream
from anyio.streams.tls import TLSStream

from ..bus import EventBus
from ..logs import Log, SQLiteLog
from ..pipes import Reconnector
from ..pipes.tcp import connect_tcp
from .client import RemoteBus

__all__ = ("log_for", "open_bus", "path_of", "reconnector_for")

LOCAL = ("memory", "sqlite")
SCHEMES = ("memory", "sqlite", "tcp", "tls", "unix")


def open_bus(url: str, *, ssl_context: ssl.SSLContext | None = None, **options: Any) -> EventBus | RemoteBus:
    """The bus behind a URL, to be used with `async with`. The same methods behind each.

        async with open_bus("tcp://127.0.0.1:4000") as bus:
            await bus.publish(prices, Price("X", 1.0))

    Args:
        url: `memory://`, `sqlite:///path`, `tcp://host:port`, `tls://host:port` or `unix:///path`.
        ssl_context: For `tls`: whom to trust, and our certificate if the server wants one. The system's authorities by
            default.
        options: As of `EventBus` or `RemoteBus`, whichever it is.

    Raises:
        ValueError: if the URL is none of these, or an `ssl_context` is given for another scheme than `tls`; the text
            says what is wrong.
        TypeError: if it is no text, or an option is not one of that bus.
    """
    if not isinstance(url, str):
        raise TypeError(f"url must be text such as 'tcp://127.0.0.1:4000', not {url!r}")
    parts = urlsplit(url)
    if ssl_context is not None and parts.scheme != "tls":
        raise ValueError(f"{parts.scheme}://...: nothing is encrypted there: write tls://HOST:PORT, or no ssl_context")
    if parts.scheme in LOCAL:
        return EventBus(log_for(url), **options)
    return RemoteBus(reconnector_for(url, ssl_context=ssl_context), **options)


def log_for(url: str) -> Log | None:
    """Where a bus in this process keeps its events; None for memory.

    Raises:
        ValueError: if the URL is neither memory:// nor sqlite:///path.
    """
    parts = urlsplit(url)
    if parts.scheme == "memory":
        if parts.netloc or parts.path:
            raise ValueError(f"{url!r}: a bus in memory has no address; write memory://")
        return None
    if parts.scheme != "sqlite":
        raise ValueError(f"{url!r}: the scheme must be one of {', '.join(LOCAL)}")
    if parts.netloc or not parts.path.startswith("/") or parts.path == "/" or parts.query or parts.fragment:
        raise ValueError(f"{url!r}: write sqlite:///path, with three slashes; options are those of SQLiteLog")
    return SQLiteLog(path_of(url, parts))


def path_of(url: str, parts: SplitResult) -> str:
    """The path that a URL names: `%3F` stands for a question mark in it, `%25` for a percent sign.

    Raises:
        ValueError: if no file can have such a name.
    """
    path = unquote(parts.path, errors="surrogateescape")  # which is how Python names files that are not UTF-8
    if "\0" in path:
        raise ValueError(f"{url!r}: no path has a NUL in it")
    return path


def reconnector_for(url: str, *, ssl_context: ssl.SSLContext | None = None) -> Reconnector:
    """Dials the server behind a `tcp`, `tls` or `unix` URL.

    Raises:
        ValueError: as of `open_bus`.
    """
    parts = urlsplit(url)
    if parts.query or parts.fragment or parts.username or parts.password:
        raise ValueError(f"{parts.scheme}://...: an address has no query, fragment or user; give options as arguments")
    if parts.scheme == "unix":
        if parts.netloc or not parts.path.startswith("/"):
            raise ValueError(f"{url!r}: write unix:///path, with three slashes")
        path = path_of(url, parts)
        return lambda: anyio.connect_unix(path)
    if parts.scheme not in ("tcp", "tls"):
        raise ValueError(f"{url!r}: the scheme must be one of {', '.join(SCHEMES)}")
    host, port = _address(url, parts)
    if parts.scheme == "tcp":
        return lambda: connect_tcp(host, port)
    context = ssl_context or ssl.create_default_context()

    async def dial() -> ByteStream:
        stream = await connect_tcp(host, port)
        try:
            # Not waiting for the peer's close_notify: a pipe knows by itself whether anything was cut off.
            return await TLSStream.wrap(stream, hostname=host, ssl_context=context, standard_compatible=False)
        except BaseException:
            await anyio.aclose_forcefully(stream)
            raise

    return dial


def _address(url: str, parts: SplitResult) -> tuple[str, int]:
    try:
        port = parts.port
    except ValueError as error:
        raise ValueError(f"{url!r}: {error}") from None
    if not parts.hostname or not port or parts.path not in ("", "/"):
        raise ValueError(f"{url!r}: write {parts.scheme}://HOST:PORT")
    return parts.hostname, port
