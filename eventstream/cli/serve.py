"""`eventstream serve`: a bus for other programs, until a signal ends it."""

from __future__ import annotations

import hmac
import logging
import os
import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import anyio
import msgspec

from ..bus import EventBus
from ..codec import Keyed
from ..events import Topic
from ..logs import Log
from ..remote import Authenticate, Credentials, Grant, JwtRules, Server, jwt_verifier
from ..remote.urls import log_for
from .lines import read_some, standard_input
from .links import read_token, told_of_files
from .listening import Certificates, listen
from .running import DONE, USAGE, Failure, tell

__all__ = ("Setup", "serve")

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
LINGER: Final = 10.0  # seconds that clients get to take what is on its way to them


class _Declared(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A topic in the configuration."""

    name: str
    compacted: bool = False
    keyed: bool = False
    retain: int = 1024
    max_lag: int = 65_536

    def topic(self) -> Topic[Keyed]:
        key = "key" if self.keyed or self.compacted else None
        return Topic(self.name, Keyed, key=key, compacted=self.compacted, retain=self.retain, max_lag=self.max_lag)


class _Jwt(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whose JSON Web Tokens are accepted, in the configuration."""

    keys: str
    algorithms: list[str]
    issuer: str
    audience: str
    principal: str = "sub"
    permissions: str | None = None
    leeway: int = 30

    def rules(self) -> JwtRules:
        fields = msgspec.structs.asdict(self)
        del fields["keys"]
        return JwtRules(**fields)


class _Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    topics: list[_Declared] = []
    jwt: _Jwt | None = None


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """What to serve; see the command's help."""

    listen: Sequence[str]
    config: Path | None = None
    log: str = "memory://"
    token_file: Path | None = None
    certificates: Certificates = Certificates()
    until_eof: bool = False

    def topics(self) -> list[Topic[Keyed]]:
        """The topics that the configuration declares.

        Raises:
            Failure: if it cannot be used.
        """
        with self._told_of_config() as config:
            topics = [one.topic() for one in config.topics]
        if twice := {topic.name for topic in topics if sum(one.name == topic.name for one in topics) > 1}:
            raise Failure(f"{self.config}: topics that are declared twice: {', '.join(sorted(twice))}", USAGE)
        return topics

    def authenticate(self) -> Authenticate | None:
        """Who may come in: everybody, or who has the token, or a JSON Web Token.

        Raises:
            Failure: if the configuration, or a file that is named there, cannot be used.
        """
        with self._told_of_config() as config:
            jwt = config.jwt
            if jwt is not None and self.token_file is not None:
                raise Failure(f"{self.config}: [jwt] and --token-file exclude each other", USAGE)
            if jwt is not None:
                return self._jwt(jwt)
        return None if self.token_file is None else _shared_token(read_token(self.token_file).encode())

    @contextmanager
    def _told_of_config(self) -> Iterator[_Config]:
        try:
            if self.config is None:
                yield _Config()
                return
            with told_of_files(self.config):
                content = self.config.read_bytes()
            yield msgspec.toml.decode(content, type=_Config)
        except ValueError as error:  # TOML's, msgspec's, or what was made of it
            raise Failure(f"{self.config}: {error}", USAGE) from None

    def _jwt(self, jwt: _Jwt) -> Authenticate:
        assert self.config is not None
        path = self.config.parent / jwt.keys
        with told_of_files(path):
            present = path.read_bytes()
        try:
            jwt_verifier(present, jwt.rules())  # so that a wrong file is told now, and not to the first client
        except RuntimeError as error:
            raise Failure(str(error), USAGE) from None
        return jwt_verifier(anyio.Path(path).read_bytes, jwt.rules())  # keys change while it runs

    def make_log(self) -> Log | None:
        """Where events are kept; None for memory.

        Raises:
            Failure: if there is no such log.
        """
        try:
            return log_for(self.log)
        except ValueError as error:
            raise Failure(f"--log {error}", USAGE) from None


def _shared_token(token: bytes) -> Authenticate:
    def check(credentials: Credentials) -> Grant | None:
        shown = (credentials.token or "").encode()
        return Grant("token") if hmac.compare_digest(shown, token) else None

    return check


async def serve(setup: Setup) -> int:
    """Serves until the first signal, then says goodbye; the second one ends it at once."""
    logging.basicConfig(format="%(asctime)s %(name)s: %(message)s")
    setup.certificates.check(setup.listen)
    log = setup.make_log()
    topics, authenticate = setup.topics(), setup.authenticate()
    with ExitStack() as left, _receive_signals() as signals:
        async with AsyncExitStack() as stack:
            listeners = []
            for url in setup.listen:
                name, listener = await listen(url, setup.certificates)
                await stack.enter_async_context(listener)
                left.callback(_remove_socket, name)
                listeners.append((name, listener))
            async with EventBus(log) as bus:
                for topic in topics:
                    await bus.head(topic)  # used once, it is listed
                server = Server(bus, topics, create=True, authenticate=authenticate)
                return await _run(server, listeners, signals, setup.until_eof)


def _receive_signals() -> AbstractContextManager[AsyncIterator[int]]:
    if os.name != "nt":
        return anyio.open_signal_receiver(*SIGNALS)
    return nullcontext(_never())  # there Ctrl-C ends it at once, and nothing else can


async def _never() -> AsyncIterator[int]:
    await anyio.sleep_forever()
    yield 0


async def _run(
    server: Server, listeners: Sequence[tuple[str, Any]], signals: AsyncIterator[int], until_eof: bool
) -> int:
    code = DONE
    async with anyio.create_task_group() as tasks:
        for _, listener in listeners:
            await tasks.start(server.serve, listener)
        for name, _ in listeners:
            print(f"listening at {name}", flush=True)
        await _reason_to_stop(signals, until_eof)
        tell("eventstream serve: stopping; a second signal ends it at once")
        async with anyio.create_task_group() as stopping:
            stopping.start_soon(_drain, server, stopping.cancel_scope)
            number = await anext(signals)
            stopping.cancel_scope.cancel()
            code = 128 + number
        tasks.cancel_scope.cancel()
    return code


async def _reason_to_stop(signals: AsyncIterator[int], until_eof: bool) -> None:
    async with anyio.create_task_group() as either:

        async def watch_input() -> None:
            while await read_some(standard_input()):
                pass
            either.cancel_scope.cancel()

        if until_eof:
            either.start_soon(watch_input)
        await anext(signals)
        either.cancel_scope.cancel()


async def _drain(server: Server, scope: anyio.CancelScope) -> None:
    await server.aclose(linger=LINGER)
    scope.cancel()


def _remove_socket(name: str) -> None:
    parts = urlsplit(name)
    if parts.scheme == "unix":
        Path(parts.path).unlink(missing_ok=True)
