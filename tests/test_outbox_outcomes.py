"""What becomes of an entry is decided in one table, for every error that there is."""

from __future__ import annotations

import pytest

from eventstream import errors
from eventstream.errors import EventStreamError
from eventstream.events import Position
from eventstream.outbox.outcome import TABLE, Outcome, outcome_of

HERE = Position("life", 3)
ANSWERS: dict[
    EventStreamError, tuple[str, bool]
] = {  # what a publish can raise: the decision, and whether about the bus
    errors.Conflict("t", "k", 1, 2): ("conflict", False),
    errors.OutcomeUnknown("t", "id", 130.0): ("unknown", False),
    errors.InvalidName("key", "", "is empty"): ("dead", False),
    errors.InvalidPayload("t", "$.a"): ("dead", False),
    errors.PayloadTypeError("t", int, "x"): ("dead", False),
    errors.NotCompacted("t", "delete from", "compacted=True"): ("dead", False),
    errors.ServerOnly("this"): ("dead", False),
    errors.NowaitUnsupported("a server"): ("dead", False),
    errors.LimitReached("message_bytes", 1): ("dead", False),
    errors.LimitReached("topics", 1): ("held", False),
    errors.NotAuthorized("me", "publish t/k"): ("held", False),
    errors.NotAuthorized("me", "delete t/k"): ("held", False),
    errors.NotAuthorized(None, "connect"): ("held", True),
    errors.NotAuthorized("me"): ("held", True),
    errors.TopicConflict("t", "type"): ("held", False),
    errors.UnknownTopic("t"): ("held", False),
    errors.IndexOrder("t", 1, 2): ("retry", False),
    errors.Reentered("t"): ("retry", False),
    errors.EventStreamError("the server failed: see its log"): ("retry", False),
    errors.LogError("its file"): ("retry", True),
    errors.LogInUse("log.db"): ("retry", True),
    errors.LogRefused("log.db", "damaged", "it is torn"): ("retry", True),
    errors.LogFull("log.db"): ("retry", True),
    errors.LogFailed("log.db", "disk I/O error"): ("retry", True),
    errors.BusClosed("closed"): ("retry", True),
    errors.PipeBroken("it broke"): ("retry", True),
    errors.ResumeRefused("unknown"): ("retry", True),
    errors.PipeClosed("failed"): ("retry", True),
    errors.PipeAbandoned("expired"): ("retry", True),
    errors.ReconnectFailed(3, 1.0): ("retry", True),
    errors.LinkRefused("busy"): ("retry", True),
    errors.LinkSilent(1.0): ("retry", True),
    errors.BadFrame("what"): ("retry", True),
}
NEVER_OF_A_PUBLISH = {  # of reading, of views, and of the outbox itself
    "InvalidPosition",
    "NotAccepted",
    "NotStored",
    "OutboxClosed",
    "OutboxFull",
    "OutboxUnusable",
    "PositionLost",
    "SlowSubscriber",
    "SnapshotFailed",
    "SubscriptionClosed",
    "SubscriptionReset",
    "UnknownEntry",
}


@pytest.mark.parametrize("error", ANSWERS, ids=repr)
def test_each_error_has_its_outcome(error: EventStreamError) -> None:
    """With its text as the reason."""
    outcome = outcome_of(error)
    assert (outcome.decision, outcome.about_bus) == ANSWERS[error]
    assert outcome.reason == str(error)


def test_no_error_is_undecided() -> None:
    """Who adds one says here what it means for an entry: it has a row in the table, or no publish can raise it."""
    decided = {kind.__name__ for kind in TABLE if issubclass(kind, EventStreamError)}
    assert decided | NEVER_OF_A_PUBLISH == {*errors.__all__}
    assert not decided & NEVER_OF_A_PUBLISH
    assert {type(error).__name__ for error in ANSWERS} == decided


@pytest.mark.parametrize(
    ("error", "decision", "about_bus"),
    [
        (ConnectionRefusedError("nobody"), "retry", True),
        (TimeoutError(), "retry", True),
        (OSError(28, "no space"), "retry", True),
        (TypeError("no such argument"), "dead", False),
        (ValueError("a key is given"), "dead", False),
        (RuntimeError("a bug of the bus"), "retry", False),
        (KeyError("a bug of the bus"), "retry", False),
        (ExceptionGroup("many", [ValueError()]), "retry", False),
    ],
    ids=repr,
)
def test_other_errors_lose_nothing(error: Exception, decision: str, about_bus: bool) -> None:
    outcome = outcome_of(error)
    assert (outcome.decision, outcome.about_bus) == (decision, about_bus)
    assert outcome.reason


def test_only_a_bus_that_looked_has_refused() -> None:
    """What may have been committed before the error came stays in doubt."""
    certain = {kind for kind, outcome in TABLE.items() if outcome.refused}
    assert not certain & {Exception, OSError, EventStreamError, errors.PipeBroken, errors.BusClosed, errors.LinkSilent}
    assert not outcome_of(errors.NotAuthorized(None, "connect")).refused
    assert all(TABLE[kind].refused for kind in (errors.Conflict, errors.InvalidPayload, errors.NotAuthorized))


def test_every_row_is_a_decision_of_the_table() -> None:
    assert {outcome.decision for outcome in TABLE.values()} <= {"retry", "held", "conflict", "unknown", "dead"}
    assert all(isinstance(outcome, Outcome) for outcome in TABLE.values())
