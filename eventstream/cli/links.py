"""How every command reaches a server: the options for it, the connection, and what to say when there is none."""

from __future__ import annotations

import math
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

from anyio import BrokenResourceError, CancelScope, EndOfStream, current_time
from anyio.abc import ByteStream
from cyclopts import Parameter
from cyclopts.validators import Number

from ..errors import NotAuthorized, ReconnectFailed
from ..pipes import Retry
from ..remote import RemoteBus
from ..remote.urls import reconnector_for
from .running import USAGE, Failure, first, interruptible

__all__ = ("Dialer", "Link", "Positive", "connected", "read_token", "told_of_files")

SCHEMES: Final = ("tcp:", "tls:", "unix:")
CAP: Final = 1.0  # seconds: the longest wait between two dials; somebody watches

Positive = Annotated[float, Parameter(validator=Number(gt=0, lt=1e9))]


@Parameter(name="*")
@dataclass(frozen=True)
class Link:
    """How to reach the server.

    Attributes
    ----------
    token_file:
        A file with the token that the server asks for.
    timeout:
        Seconds to wait for the server.
    tls_ca:
        With tls://: the certificate authority to trust, in place of the system's.
    tls_cert:
        With tls://: our own certificate, if the server wants one.
    tls_key:
        With tls://: the private key of --tls-cert, if it is not in the same file.
    """

    token_file: Path | None = None
    timeout: Positive = 5.0
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None


class Dialer:
    """Makes connections, and remembers how it went.

    Attributes:
        made: How many connections there were.
        error: Of the last dial; None if it succeeded.
    """

    def __init__(self, url: str, link: Link) -> None:
        self.made: int = 0
        self.error: Exception | None = None
        self._url = url
        if not url.startswith(SCHEMES):
            raise Failure(f"{url!r}: write tcp://HOST:PORT, tls://HOST:PORT or unix:///PATH", USAGE)
        try:
            self._dial = reconnector_for(url, ssl_context=_context(url, link))
        except ValueError as error:
            raise Failure(str(error), USAGE) from None

    async def __call__(self) -> ByteStream:
        """Dials once."""
        try:
            stream = await self._dial()
        except Exception as error:
            self.error = error
            raise
        self.made += 1
        self.error = None
        return stream

    def failure(self, seconds: float) -> Failure:
        """Why the server cannot be reached, and what to do."""
        advice = _advice(self.error, seconds)
        if (
            self.error is None and self.made and self._url.startswith("tls:")
        ):  # in TLS 1.3 it is told after all went well
            advice += ", and whether the server wants a certificate of ours (--tls-cert)"
        return Failure(f"{self._url}: {advice}")


@asynccontextmanager
async def connected(url: str, link: Link, *, lasting: bool = False) -> AsyncIterator[RemoteBus]:
    """The bus of the server at `url`, when it has accepted us.

    Args:
        url: `tcp://`, `tls://` or `unix://`.
        link: The options.
        lasting: Whether to keep trying for ever once it was reached; else a loss of `link.timeout` seconds is the end.

    Raises:
        Failure: if it cannot be reached in time, or refuses us.
    """
    dialer = Dialer(url, link)
    retry = Retry(cap=CAP, give_up_after=None if lasting else link.timeout)
    token = None if link.token_file is None else read_token(link.token_file)
    try:
        # The scope stands outside: a bus that is cancelled does not wait to say goodbye to nobody.
        with CancelScope(deadline=current_time() + link.timeout) as patience:
            async with RemoteBus(dialer, token=token, retry=retry) as bus:
                await _accepted(bus, url, link)
                patience.deadline = math.inf
                async with interruptible():
                    yield bus
    except (ReconnectFailed, ExceptionGroup) as raised:
        error = first(raised)
        if not isinstance(error, ReconnectFailed):
            raise
        dialer.error = error.__cause__ if isinstance(error.__cause__, Exception) else dialer.error
        raise dialer.failure(link.timeout) from None
    if patience.cancelled_caught:
        raise dialer.failure(link.timeout)


async def _accepted(bus: RemoteBus, url: str, link: Link) -> None:
    try:
        await bus.wait_connected()
    except NotAuthorized:
        done = "check the token in it" if link.token_file else "give --token-file FILE"
        raise Failure(f"{url}: the server does not know us: {done}") from None


def read_token(path: Path) -> str:
    """The token that stands in a file, without the space around it.

    Raises:
        Failure: if there is none.
    """
    with told_of_files(path):
        token = path.read_text("utf-8").strip()
    if not token:
        raise Failure(f"{path}: no token in it", USAGE)
    return token


@contextmanager
def told_of_files(*files: Path | None) -> Iterator[None]:
    """Turns what can go wrong with files that the user named into a `Failure`."""
    names = ", ".join(str(file) for file in files if file is not None)
    try:
        yield
    except ssl.SSLError as error:
        raise Failure(f"{names}: no certificate or key that can be used: {error}", USAGE) from None
    except OSError as error:
        raise Failure(f"{error.filename or names}: {error.strerror or error}", USAGE) from None
    except UnicodeDecodeError as error:
        raise Failure(f"{names}: no text: {error}", USAGE) from None


def _context(url: str, link: Link) -> ssl.SSLContext | None:
    given = (link.tls_ca, link.tls_cert, link.tls_key)
    if not url.startswith("tls:"):
        if any(given):
            raise Failure("--tls-ca, --tls-cert and --tls-key need a tls:// address", USAGE)
        return None
    with told_of_files(*given):
        context = ssl.create_default_context(cafile=link.tls_ca)
        if link.tls_cert is not None:
            context.load_cert_chain(link.tls_cert, link.tls_key)
    return context


def _advice(error: Exception | None, seconds: float) -> str:
    cause = _root(error)
    match cause:
        case None:
            return "somebody listens there, but does not answer as an eventstream server: check scheme and port"
        case ConnectionRefusedError() | FileNotFoundError():
            return "nobody listens there: start a server (eventstream serve), or check the address"
        case socket.gaierror():
            return "the host's name cannot be resolved: check the address"
        case ssl.SSLCertVerificationError():
            why = cause.verify_message.rstrip(".")
            advice = "use the name that it is for" if "mismatch" in why else "give --tls-ca FILE"
            return f"its certificate is not trusted ({why}): {advice}"
        case ssl.SSLError():
            return f"TLS fails ({cause.reason}): check that the server speaks it, and which certificate it wants"
        case EndOfStream() | BrokenResourceError() | ConnectionResetError():
            return "the server closes the connection at once: check scheme (tcp or tls) and port"
        case TimeoutError():
            return f"no answer within {seconds:g} s: check the address, and that nothing is in between"
        case _:
            return str(cause) or type(cause).__name__


def _root(error: BaseException | None) -> BaseException | None:
    """What lies at the bottom of a failed dial."""
    while error is not None:
        below = error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error.__cause__
        if below is None:
            break
        error = below
    return error
