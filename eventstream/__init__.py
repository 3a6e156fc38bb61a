"""eventstream: an embeddable event bus with history, resume and snapshots.

    async with EventBus() as bus:
        await bus.publish(prices, Price("X", 1.0))
        async with bus.subscribe(prices, key="X", after=saved) as subscription:
            async for event in subscription:
                ...

Every event after your position, in order, once, or an explicit reset. `open_bus(url)` gives the same bus when it runs
in another process.

What serves the network is imported when it is first asked for: who has a bus within one process does not pay for it.
"""

import importlib
import typing

from .bus import BusStatistics as BusStatistics
from .bus import EventBus as EventBus
from .bus import Handler as Handler
from .bus import OnError as OnError
from .errors import BusClosed as BusClosed
from .errors import Conflict as Conflict
from .errors import EventStreamError as EventStreamError
from .errors import IndexOrder as IndexOrder
from .errors import InvalidName as InvalidName
from .errors import InvalidPayload as InvalidPayload
from .errors import InvalidPosition as InvalidPosition
from .errors import LimitReached as LimitReached
from .errors import LogError as LogError
from .errors import LogFailed as LogFailed
from .errors import LogFull as LogFull
from .errors import LogInUse as LogInUse
from .errors import LogRefused as LogRefused
from .errors import NotAuthorized as NotAuthorized
from .errors import NotCompacted as NotCompacted
from .errors import NowaitUnsupported as NowaitUnsupported
from .errors import OutcomeUnknown as OutcomeUnknown
from .errors import PayloadTypeError as PayloadTypeError
from .errors import PositionLost as PositionLost
from .errors import Reentered as Reentered
from .errors import ServerOnly as ServerOnly
from .errors import SlowSubscriber as SlowSubscriber
from .errors import SnapshotFailed as SnapshotFailed
from .errors import SubscriptionClosed as SubscriptionClosed
from .errors import SubscriptionReset as SubscriptionReset
from .errors import TopicConflict as TopicConflict
from .errors import UnknownTopic as UnknownTopic
from .events import EARLIEST as EARLIEST
from .events import Bookmark as Bookmark
from .events import Event as Event
from .events import Frame as Frame
from .events import Position as Position
from .events import ResetReason as ResetReason
from .events import Resumed as Resumed
from .events import SnapshotEnd as SnapshotEnd
from .events import SnapshotStart as SnapshotStart
from .events import Topic as Topic
from .logs import Log as Log
from .logs import MemoryLog as MemoryLog
from .logs import Retention as Retention
from .logs import SQLiteLog as SQLiteLog
from .snapshots import Append as Append
from .snapshots import CacheStatistics as CacheStatistics
from .snapshots import SnapshotOptions as SnapshotOptions
from .snapshots import Source as Source
from .snapshots import View as View
from .snapshots import ViewStatistics as ViewStatistics
from .topics import Subscription as Subscription
from .topics import SubscriptionStatistics as SubscriptionStatistics
from .topics import TopicStatistics as TopicStatistics

if typing.TYPE_CHECKING:
    from .remote import RemoteBus as RemoteBus
    from .remote import Server as Server
    from .remote import open_bus as open_bus

__version__ = "0.1.0"

# Of `eventstream.remote`, which adds a quarter to the time that importing all the rest takes.
_LATER: typing.Final = ("RemoteBus", "Server", "open_bus")


def __getattr__(name: str) -> object:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(".remote", __name__), name)
    globals()[name] = value  # the next time it is found at once
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
