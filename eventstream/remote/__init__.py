"""The bus over the network: a `Server` where the bus runs, a `RemoteBus` everywhere else.

Reading order: `messages` (what the two say), `faults` (errors across the network), `access` (the server's rules),
`tokens` (one way to say who a client is), `sharing` (each event is encoded once), `house` (what connections see of the
server), `rights`, `outgoing`, `feeding` and `connection` (one client on the server), `server`; then the client:
`requests`, `feed` (one subscription), `conversation` (what is said), `caller` (on which pipes), `client`, `urls`.
"""

from .access import Action, Authenticate, Authorize, Credentials, Grant, May, ServerLimits
from .client import RemoteBus
from .feed import RemoteSubscription
from .server import Server, ServerStatistics
from .tokens import JwtKeys, JwtRules, jwt_verifier
from .urls import open_bus

__all__ = (
    "Action",
    "Authenticate",
    "Authorize",
    "Credentials",
    "Grant",
    "JwtKeys",
    "JwtRules",
    "May",
    "RemoteBus",
    "RemoteSubscription",
    "Server",
    "ServerLimits",
    "ServerStatistics",
    "jwt_verifier",
    "open_bus",
)
