"""Who may connect, what they may do, and how much of it: the server's rules, as values and two callables."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Mapping
from typing import Any, Literal, TypeAlias

import msgspec

__all__ = ("Action", "Authenticate", "Authorize", "Credentials", "Grant", "May", "ServerLimits")

Action: TypeAlias = Literal["subscribe", "publish", "delete", "refresh", "create", "list"]


May: TypeAlias = Callable[[Action, str, str | None], bool]
"""(action, topic, key) -> whether what a client has shown allows it. If it raises, that is logged, and means no."""


class Credentials(msgspec.Struct, frozen=True):
    """What a client shows.

    Attributes:
        token: The text that it sent, or None.
        certificate: Of its TLS connection, as `ssl.SSLSocket.getpeercert()` gives it; None without one.
    """

    token: str | None
    certificate: Mapping[str, Any] | None

    def __repr__(self) -> str:
        return f"Credentials(token={'...' if self.token else None}, certificate={'...' if self.certificate else None})"


class Grant(msgspec.Struct, frozen=True):
    """Who a client is.

    Attributes:
        principal: For `authorize`, and for `revoke`.
        expires: When it ends, in POSIX seconds; None: never.
        may: What its credentials allow. Asked besides the server's `authorize`: both must allow it. None: everything.
    """

    principal: Hashable
    expires: float | None = None
    may: May | None = None


Authenticate: TypeAlias = Callable[[Credentials], Grant | Awaitable[Grant | None] | None]
"""Says who a client is; None, or a `NotAuthorized` that it raises: nobody, and the client is told so for good.

What else it raises is logged, and the client comes again later. It has `greeting_seconds`."""

Authorize: TypeAlias = Callable[[Hashable, Action, str, str | None], bool]
"""(principal, action, topic, key) -> whether it may. The key is None where it is about the whole topic.

If it raises, that is logged, and means no."""


class ServerLimits(msgspec.Struct, frozen=True, kw_only=True):
    """The most that one client gets.

    Args:
        subscriptions: Open at once on one connection.
        topics: Used on one connection.
        message_bytes: Of one message, and so of one published batch.
        greeting_seconds: For the first message to arrive, and for `authenticate`.
        created_topics: Topics that clients may create, all together.
        created_retain: Events that such a topic retains, and that its readers may be behind, whatever clients ask for.
    """

    subscriptions: int = 10_000
    topics: int = 1_000
    message_bytes: int = 16 * 1024 * 1024
    greeting_seconds: float = 10.0
    created_topics: int = 1_000
    created_retain: int = 65_536

    def __post_init__(self) -> None:
        counts = (self.subscriptions, self.topics, self.message_bytes, self.created_topics, self.created_retain)
        if min(counts) < 1:
            raise ValueError(f"limits are positive: {self}")
        if self.greeting_seconds <= 0:
            raise ValueError(f"greeting_seconds is a time in seconds, not {self.greeting_seconds}")
