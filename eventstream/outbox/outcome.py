"""What becomes of an entry, given what the bus said of it. One pure function and its table: nothing else decides.

    accepted   the event is on the bus                                     → it leaves the file
    retry      it was not, or maybe; later it can be                       → its key waits, backing off
    held       the bus does not let us: rights, a topic that is missing    → its key waits, lose nothing
    conflict   `expect` failed                                             → its key waits for a person
    unknown    it may have been accepted, and repeating it may double it   → its key waits for a person
    dead       it can never be accepted as it is                           → kept with the reason; its key goes on

`about_bus` says that the error is about the bus as a whole, so that all keys wait, and one entry tries again for all.
`refused` says that the bus has looked at this very attempt and did not commit it.

An error that no row names is the bus's own affair, and passes: `retry`. An entry must not be set aside by somebody
else's bug. Rejected: judging by `error.temporary` alone (it says whether the same *call* can help later, and not of
whom); methods on the errors (then the decisions would stand in thirty places).
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

import msgspec

from .. import errors

__all__ = ("ACCEPTED", "TABLE", "Decision", "Outcome", "outcome_of")

Decision: TypeAlias = Literal["accepted", "retry", "held", "conflict", "unknown", "dead"]


class Outcome(msgspec.Struct, frozen=True):
    """What was decided.

    Attributes:
        decision: See the module.
        reason: For the person who looks at the entry.
        about_bus: Whether all keys wait.
        refused: Whether this attempt certainly committed nothing.
    """

    decision: Decision
    reason: str = ""
    about_bus: bool = False
    refused: bool = False


ACCEPTED: Final = Outcome("accepted")

_RETRY: Final = Outcome("retry")
_RETRY_BUS: Final = Outcome("retry", about_bus=True)
_HELD: Final = Outcome("held", refused=True)
_HELD_BUS: Final = Outcome("held", about_bus=True)
_DEAD: Final = Outcome("dead", refused=True)

TABLE: Final[dict[type[BaseException], Outcome]] = {
    # About the entry.
    errors.Conflict: Outcome("conflict", refused=True),
    errors.OutcomeUnknown: Outcome("unknown"),
    errors.InvalidName: _DEAD,
    errors.InvalidPayload: _DEAD,
    errors.PayloadTypeError: _DEAD,
    errors.NotCompacted: _DEAD,
    errors.ServerOnly: _DEAD,
    errors.NowaitUnsupported: _DEAD,
    TypeError: _DEAD,
    ValueError: _DEAD,
    # About what the bus allows, or has.
    errors.NotAuthorized: _HELD,
    errors.TopicConflict: _HELD,
    errors.UnknownTopic: _HELD,
    errors.LimitReached: _HELD,
    # About the log behind the bus: another publish of this key can fare no better.
    errors.IndexOrder: Outcome("retry", refused=True),
    errors.Reentered: Outcome("retry", refused=True),
    errors.EventStreamError: _RETRY,
    # About the bus.
    errors.LogError: _RETRY_BUS,
    errors.LogInUse: _RETRY_BUS,
    errors.LogRefused: _RETRY_BUS,
    errors.LogFull: Outcome("retry", about_bus=True, refused=True),
    errors.LogFailed: _RETRY_BUS,  # it may be there after a restart
    errors.BusClosed: _RETRY_BUS,
    errors.PipeBroken: _RETRY_BUS,
    errors.ResumeRefused: _RETRY_BUS,
    errors.PipeClosed: _RETRY_BUS,
    errors.PipeAbandoned: _RETRY_BUS,
    errors.ReconnectFailed: _RETRY_BUS,
    errors.LinkRefused: _RETRY_BUS,
    errors.LinkSilent: _RETRY_BUS,
    errors.BadFrame: _RETRY_BUS,
    ConnectionRefusedError: Outcome("retry", about_bus=True, refused=True),  # nothing was said to anybody
    OSError: _RETRY_BUS,  # TimeoutError and ConnectionError among them
    Exception: _RETRY,
}

OF_THE_PUBLISH: Final = ("publish ", "delete ")  # how `NotAuthorized.action` begins if it is about one topic or key


def outcome_of(error: Exception) -> Outcome:
    """What an error means for the entry whose publish raised it. The most special row of `TABLE` decides."""
    row = next(TABLE[kind] for kind in type(error).__mro__ if kind in TABLE)
    if isinstance(error, errors.NotAuthorized) and not error.action.startswith(OF_THE_PUBLISH):
        row = _HELD_BUS  # we were not let in at all
    elif isinstance(error, errors.LimitReached) and error.limit == "message_bytes":
        row = _DEAD  # it will not become smaller
    return msgspec.structs.replace(row, reason=str(error) or type(error).__name__)
