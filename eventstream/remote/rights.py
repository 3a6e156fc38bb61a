"""Who a client is, and what it may do: the application's own callables are asked here, whatever they raise."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Hashable, Mapping
from typing import Any, Final

from ..errors import EventStreamError, NotAuthorized, shown
from .access import Action, Authorize, Credentials, Grant
from .house import House

__all__ = ("NotKnownYet", "Rights", "recognise")

logger: Final = logging.getLogger("eventstream.remote")


class NotKnownYet(Exception):
    """It could not be told in time who the client is, for whatever reason: it may come again."""

    def __init__(self, refusal: EventStreamError) -> None:
        self.refusal = refusal


class Rights:
    """What one client may do, from its greeting on.

    Args:
        grant: What it has shown.
        authorize: What the server says to everything that it asks for.

    Attributes:
        principal: Who it is.
        expires: Until when, in POSIX seconds; None: for ever.
    """

    def __init__(self, grant: Grant, authorize: Authorize | None) -> None:
        self.principal: Hashable = grant.principal
        self.expires: float | None = grant.expires
        self._shown = grant.may
        self._authorize = authorize

    def allow(self, action: Action, topic: str, key: str | None) -> bool:
        """Whether it may. What cannot be told is refused, and logged."""
        authorize = self._authorize
        try:
            if self._shown is not None and not self._shown(action, topic, key):
                return False
            return authorize is None or authorize(self.principal, action, topic, key)
        except Exception:
            logger.exception("authorize failed for %s of topic %r, and so refuses it", action, topic)
            return False

    def check(self, action: Action, topic: str, key: str | None) -> None:
        """Raises NotAuthorized: if it may not."""
        if not self.allow(action, topic, key):
            raise NotAuthorized(self.principal, f"{action} {topic}" if not key else f"{action} {topic}/{key}")


async def recognise(house: House, token: str | None, certificate: Mapping[str, Any] | None) -> Rights:
    """Asks the server's `authenticate` who shows this.

    Raises:
        NotAuthorized: if it is nobody who may connect.
        NotKnownYet: if that cannot be told now.
    """
    authenticate = house.authenticate
    if authenticate is None:
        return Rights(Grant(None), house.authorize)
    try:
        answer = authenticate(Credentials(token, certificate))
        grant = await answer if inspect.isawaitable(answer) else answer
        if not isinstance(grant, Grant | None):
            raise TypeError(f"authenticate gave {shown(grant)}, not a Grant or None")
    except EventStreamError:
        raise
    except Exception:
        logger.exception("authenticate failed")
        raise NotKnownYet(EventStreamError("the server cannot tell who you are now: see its log")) from None
    if grant is None or (grant.expires is not None and grant.expires <= house.clock()):
        raise NotAuthorized(None, "connect")
    return Rights(grant, house.authorize)
