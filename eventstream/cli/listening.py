"""Where `eventstream serve` listens: listeners out of URLs."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, urlsplit

import anyio
import msgspec
from anyio.abc import ByteStream, Listener, SocketAttribute
from anyio.streams.tls import TLSListener

from ..remote.urls import path_of
from .links import told_of_files
from .running import USAGE, Failure, tell

__all__ = ("Certificates", "listen")

EVERYWHERE: Final = ("", "*")


class Certificates(msgspec.Struct, frozen=True):
    """The files for `tls://`.

    Attributes:
        cert: The server's certificate.
        key: Its private key, if that is not in the same file.
        client_ca: Who signs the certificates that clients must show; without it they need none.
    """

    cert: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None

    def check(self, urls: Sequence[str]) -> None:
        """Refuses files that would protect nothing.

        Raises:
            Failure: if there are some, and no address that uses them.
        """
        if any((self.cert, self.key, self.client_ca)) and not any(url.startswith("tls:") for url in urls):
            raise Failure("--cert, --key and --client-ca need a tls:// address", USAGE)

    def context(self) -> ssl.SSLContext:
        """As the server's end of TLS.

        Raises:
            Failure: if there is none, or a file cannot be used.
        """
        if self.cert is None:
            raise Failure("tls:// needs a certificate: give --cert FILE and --key FILE", USAGE)
        with told_of_files(self.cert, self.key, self.client_ca):
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=self.client_ca)
            context.load_cert_chain(self.cert, self.key)
        if self.client_ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
        return context


class _Strict(TLSListener):
    """Clients who fail their handshake are worth a line, not a traceback."""

    @staticmethod
    async def handle_handshake_error(exc: BaseException, stream: object) -> None:
        why = str(exc) or type(exc.__cause__ or exc).__name__
        tell(f"eventstream serve: a client failed its TLS handshake: {why}")
        await anyio.aclose_forcefully(stream)  # type: ignore[arg-type]
        if not isinstance(exc, Exception):
            raise exc


async def listen(url: str, certificates: Certificates) -> tuple[str, Listener[ByteStream]]:
    """Begins to listen. Returns also the address, with the port that the system has chosen if that was 0.

    Raises:
        Failure: if the URL is wrong, or the address cannot be had.
    """
    parts = urlsplit(url)
    try:
        if parts.scheme == "unix":
            return await _unix(url, parts)
        if parts.scheme in ("tcp", "tls"):
            return await _tcp(url, parts, certificates)
    except OSError as error:
        raise Failure(f"cannot listen at {url}: {error.strerror or error}") from None
    raise Failure(f"{url!r}: write tcp://HOST:PORT, tls://HOST:PORT or unix:///PATH", USAGE)


async def _tcp(url: str, parts: SplitResult, certificates: Certificates) -> tuple[str, Listener[ByteStream]]:
    try:
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise Failure(f"{url!r}: {error}", USAGE) from None
    if port is None or parts.path not in ("", "/") or parts.query or parts.fragment or parts.username is not None:
        raise Failure(f"{url!r}: write {parts.scheme}://HOST:PORT; port 0 is any that is free", USAGE)
    context = certificates.context() if parts.scheme == "tls" else None
    listener = await anyio.create_tcp_listener(local_host=None if host in EVERYWHERE else host, local_port=port)
    port = listener.extra(SocketAttribute.local_port)  # noqa: S610  anyio's, not Django's
    name = f"{parts.scheme}://{parts.netloc.rpartition(':')[0] or '*'}:{port}"
    if context is None:
        return name, listener
    return name, _Strict(listener, context, standard_compatible=False)


async def _unix(url: str, parts: SplitResult) -> tuple[str, Listener[ByteStream]]:
    if parts.netloc or not parts.path or parts.query or parts.fragment:
        raise Failure(f"{url!r}: write unix:///PATH, with three slashes", USAGE)
    try:
        path = path_of(url, parts)
    except ValueError as error:
        raise Failure(str(error), USAGE) from error
    if await anyio.Path(path).exists() and not await anyio.Path(path).is_socket():
        raise Failure(f"cannot listen at {url}: that is a file, and no socket")
    if await _is_answered(path):
        raise Failure(f"cannot listen at {url}: another server does")
    return url, await anyio.create_unix_listener(path, mode=0o600)


async def _is_answered(path: str) -> bool:
    """Whether somebody listens there, or the socket is only what an ended server has left."""
    try:
        async with await anyio.connect_unix(path):
            return True
    except OSError:
        return False
