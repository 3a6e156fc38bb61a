"""The bus over the network: a `Server` where the bus runs, a `RemoteBus` everywhere else.

Reading order: `messages` (what the two say), `faults` (errors across the network), `access` (the server's rules),
`sharing` (each event is encoded once), `outgoing`, `feeding` and `connection` (one client on the server), `server`;
then the client: `requests`, `feed` (one subscription), `conversation` (what is said), `caller` (on which pipes),
`client`, `urls`.
"""

from .access import Action, Authenticate, Authorize, Credentials, Grant, ServerLimits
from .client import RemoteBus
from .feed import RemoteSubscription
from .server import Server, ServerStatistics
from .urls import open_bus

__all__ = (
    "Action",
    "Authenticate",
    "Authorize",
    "Credentials",
    "Grant",
    "RemoteBus",
    "RemoteSubscription",
    "Server",
    "ServerLimits",
    "ServerStatistics",
    "open_bus",
)
