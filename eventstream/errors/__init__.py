"""Every error of eventstream, in one tree.

Each class says whose fault it is and what to do next; what it knows is in attributes, and the text is built here.
`temporary` is True where trying the same again later can help without anything else being changed.

    EventStreamError
    ├── InvalidName (ValueError)          you: a topic name, key, id or header that is out of bounds
    ├── InvalidPosition (ValueError)      you: a token that is no position
    ├── PayloadTypeError (TypeError)      you: a payload that is not of its topic's type
    ├── InvalidPayload (ValueError)       you: a payload whose inside does not fit its topic's type
    ├── TopicConflict (ValueError)        you: one name declared in two ways on one bus
    ├── NotCompacted (ValueError)         you: a compacted topic, or one with a snapshot source, is needed here
    ├── NowaitUnsupported (RuntimeError)  you: the bus's log cannot commit without waiting
    ├── Reentered (RuntimeError)          you: a finalizer or signal handler interrupted a publish with another
    ├── UnknownTopic (LookupError)        you: a topic that the server does not have, and may not make
    ├── ServerOnly (RuntimeError)         you: what can be done only where the bus itself is
    ├── LimitReached                      you: more of something than the server gives to one client
    ├── Conflict                          another publisher was faster: read again, decide again
    ├── OutcomeUnknown                    the world: a publish happened or not, and nobody can tell any more
    ├── IndexOrder (ValueError)           you: a given index that does not grow, or was the last there is
    ├── BusClosed                         you: the bus is not running (any more)
    ├── SubscriptionClosed                you: the subscription or view was closed
    ├── NotAuthorized                     you: the principal lost (or never had) the right to read
    ├── PositionLost                      the world: this position cannot be resumed, and there is no snapshot
    ├── SlowSubscriber                    you: the reader fell behind its bound, and there is no snapshot
    ├── SubscriptionReset                 the world: forget what you know, a snapshot follows
    ├── SnapshotFailed                    the source: it failed, hung, or broke its promise (temporary)
    ├── LogError                          the file in which a log keeps its events
    │   ├── LogInUse                      you: another process, or another log of this one, has the file open
    │   ├── LogRefused                    the file: not a log, damaged, or of a newer version
    │   ├── LogFull                       the disk: no room for what was to be published (temporary)
    │   └── LogFailed                     the disk: it could not be read or written (temporary)
    ├── PipeBroken (BrokenResourceError)  the world: this backed pipe has ended, and not cleanly
    │   ├── ResumeRefused                 the peer: it cannot, or will not, go on with this pipe
    │   ├── PipeClosed                    the peer: it closed the pipe before everything was said
    │   ├── PipeAbandoned                 this end: the peer did not come back in time
    │   └── ReconnectFailed               the network, or you: dialing has failed for good
    ├── OutboxClosed                      you: the outbox is not open (any more)
    ├── OutboxFull                        you: its quota is used up; nothing was kept
    ├── OutboxUnusable                    you: its file is in use, foreign, of a newer program, or damaged
    ├── NotStored                         the disk: full, or failing; what was to be kept was not (temporary)
    ├── NotAccepted                       the bus, or you: this entry of the outbox will not be published
    ├── UnknownEntry (LookupError)        you: the outbox has no such entry (any more)
    ├── LinkRefused                       the peer: no link now (temporary, unless the versions differ)
    ├── LinkSilent                        the network: nothing was heard for too long (temporary)
    └── BadFrame (ValueError)             the peer: bytes that are no frame, or a frame out of order (temporary)

Two tasks that read one subscription or pipe at once get `anyio.BusyResourceError`; an empty `receive_nowait` raises
`anyio.WouldBlock`; a pipe that you closed yourself raises `anyio.ClosedResourceError`, one whose peer has said all
`anyio.EndOfStream`: these words are known already, so they have no second name here.

They are imported from here, whichever module of this package they stand in.
"""

from __future__ import annotations

from .bus import (
    BusClosed,
    Conflict,
    IndexOrder,
    InvalidName,
    InvalidPayload,
    InvalidPosition,
    LimitReached,
    NotAuthorized,
    NotCompacted,
    NowaitUnsupported,
    OutcomeUnknown,
    PayloadTypeError,
    PositionLost,
    Reentered,
    ServerOnly,
    SlowSubscriber,
    SnapshotFailed,
    SubscriptionClosed,
    SubscriptionReset,
    TopicConflict,
    UnknownTopic,
)
from .pipes import (
    BadFrame,
    LinkRefused,
    LinkSilent,
    PipeAbandoned,
    PipeBroken,
    PipeClosed,
    ReconnectFailed,
    ResumeRefused,
)
from .root import EventStreamError
from .root import shown as shown
from .storage import (
    LogError,
    LogFailed,
    LogFull,
    LogInUse,
    LogRefused,
    NotAccepted,
    NotStored,
    OutboxClosed,
    OutboxFull,
    OutboxUnusable,
    UnknownEntry,
)

__all__ = (
    "BadFrame",
    "BusClosed",
    "Conflict",
    "EventStreamError",
    "IndexOrder",
    "InvalidPayload",
    "InvalidName",
    "InvalidPosition",
    "LimitReached",
    "LinkRefused",
    "LinkSilent",
    "LogError",
    "LogFailed",
    "LogFull",
    "LogInUse",
    "LogRefused",
    "NotAuthorized",
    "NotCompacted",
    "NotAccepted",
    "NotStored",
    "NowaitUnsupported",
    "OutboxClosed",
    "OutboxFull",
    "OutboxUnusable",
    "OutcomeUnknown",
    "PayloadTypeError",
    "PipeAbandoned",
    "PipeBroken",
    "PipeClosed",
    "PositionLost",
    "ReconnectFailed",
    "Reentered",
    "ResumeRefused",
    "ServerOnly",
    "SlowSubscriber",
    "SnapshotFailed",
    "SubscriptionClosed",
    "SubscriptionReset",
    "TopicConflict",
    "UnknownEntry",
    "UnknownTopic",
)
