"""Clients that do not keep to the protocol: refused or harmless; the server lives on, and others do not notice."""

from __future__ import annotations

import re
from typing import Any

import anyio
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from remote_support import Town, drain, simulated, stranger

from eventstream import NotAuthorized, Position, Topic, errors
from eventstream.errors import BadFrame, EventStreamError
from eventstream.remote import faults
from eventstream.remote.faults import from_fault, to_fault
from eventstream.remote.messages import (
    VERSION,
    Bookmarked,
    Credit,
    Done,
    Ended,
    Events,
    Failed,
    Fault,
    Goodbye,
    Greeting,
    Head,
    ListTopics,
    Mark,
    Message,
    MessageDecoder,
    OpenTopic,
    Publish,
    Subscribe,
    TopicList,
    Unsubscribe,
    Welcome,
    encode,
)

words = Topic("words", str)
DEEP = msgspec.Raw(b"\x91" * 100_000 + b"\xc0")
OPEN = OpenTopic(1, "words", False, 1024, 65_536)
RAW = msgspec.Raw(msgspec.msgpack.encode("a"))


def message(kind: int, *fields: Any) -> bytes:
    """A message of whatever fields."""
    body = msgspec.msgpack.encode(fields)
    return (len(body) + 1).to_bytes(4, "big") + bytes([kind]) + body


def subscribe(number: int = 1, credit: int = 1000, after: str | None = None) -> Subscribe:
    return Subscribe(number, 1, None, None, after, credit)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "bytes, at most"),
        (b"\x7f\xff\xff\xff\x01", "bytes, at most"),
        (b"\x00\x00\x00\x00\x01", "a message of 0 bytes"),
        (b"\x00\x00\x00\x01\xc8", "no message is of kind 200"),
        (b"\x00\x00\x00\x02\x03\xc1", "message of kind 3"),
        (message(4, 2**32, 1, None, None, None, 10), "2\\*\\*32|4294967295|<="),
        (message(4, -1, 1, None, None, None, 10), ">= 0"),
        (message(4, 1, 1, None, None, None, -10), ">= 0"),
        (message(4, 1, 1, None, None, None, 2**63), "Expected `int` <="),
        (message(5, 1, -1), ">= 0"),
        (message(3, 1, "words", False, -1, 1), ">= 0"),
        (message(8, 1, 1, [[None, "a"]], "id", -1), ">= 0"),
        (message(8, 1, 1, "a", "id"), "Expected `array`"),
        (message(8, 1, 1, [[None, "a"]], "id", None, 0), ">= 1"),
        (message(8, 1, 1, [[None, b"\xc1"]], "id", None, None, None, "all"), "Invalid enum value"),
        ([OPEN, Publish(1, 1, [], "id")], "0 entries"),
        ([OPEN, Publish(1, 1, [(None, RAW), (None, RAW)], "id")], "2 entries"),
        ([OPEN, Publish(1, 1, [], "id", form="delete")], "0 entries"),
        ([OPEN, subscribe(7), subscribe(7)], "subscription 7 is open already"),
        ([subscribe()], "topic 1 was not opened"),
        ([Head(1, 9)], "topic 9 was not opened"),
        ([Welcome(1, 1)], "Welcome from a client"),
        ([Events(1, b"")], "events without|Events from a client"),
        ([Greeting(VERSION, None)], "Greeting from a client"),
        (message(8, 1, 1, [[None, DEEP]], "id"), "recursion|kind 8"),
    ],
)
@simulated
async def test_who_breaks_the_protocol_is_told_and_left(said: Any, why: str) -> None:
    """The others on the server go on."""
    async with Town(words).open() as town, town.client() as bus, stranger(town) as other:
        subscription = bus.subscribe(words)
        await other.say(*said if isinstance(said, list) else [said])
        refusal = await other.refusal()
        assert re.search(why, refusal), refusal
        await bus.publish(words, "a")
        assert await drain(subscription) == ["a"]
        assert town.server.statistics().connections == 1


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (OPEN, "OpenTopic before the greeting"),
        (Greeting(VERSION + 1, None), "this server speaks 1"),
        (message(1, VERSION, 7), "kind 1"),
    ],
)
@simulated
async def test_who_does_not_greet_properly_is_refused(said: Any, why: str) -> None:
    """Whatever else it said is not done."""
    async with Town(words).open() as town, stranger(town, greet=False) as other:
        await other.say(said, Publish(1, 1, [(None, RAW)], "id"))
        assert why in await other.refusal()
        assert town.server.statistics().connections == 0


@simulated
async def test_what_means_nothing_is_passed_over() -> None:
    """Numbers that were never given, and a credit beyond all bounds."""
    async with Town(words).open() as town, stranger(town) as other:
        await other.say(OPEN, Credit(9, 1), Unsubscribe(9), Bookmarked(9), subscribe(1, 2**62), Credit(1, 2**62))
        await other.say(Publish(5, 1, [(None, RAW)], "id"))
        assert (await other.hear(Done)).request == 5
        assert (await other.hear(Events)).subscription == 1
        await other.say(Unsubscribe(1), Unsubscribe(1), subscribe(2))
        assert (await other.hear(Mark)).subscription in (1, 2)


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (Publish(1, 1, [(None, msgspec.Raw(b"\x07"))], "id"), "InvalidPayload"),
        (Publish(1, 1, [(None, RAW)], ""), "InvalidName"),
        (Publish(1, 1, [("\n", RAW)], "id"), "InvalidName"),
        (Publish(1, 1, [(None, RAW)], "id", headers={"": "x"}), "InvalidName"),
        (Publish(1, 1, [("k", RAW)], "id", form="delete"), "NotCompacted"),
        (Publish(1, 1, [(None, RAW)], "id", expect=5), "Conflict"),
    ],
)
@simulated
async def test_a_publish_that_cannot_be_is_refused(said: Publish, error: str, caplog: Any) -> None:
    """With a name, and without a word in the server's log."""
    async with Town(words).open() as town, stranger(town) as other:
        await other.say(OPEN, said)
        assert (await other.hear(Failed)).fault.name == error
        await other.say(Publish(2, 1, [], "empty", form="many"))
        assert (await other.hear(Done)).index == 0
        assert (await town.bus.head(words)).index == 0
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (subscribe(after="nonsense"), "InvalidPosition"),
        (Subscribe(1, 1, "", None, None, 10), "InvalidName"),
        (Subscribe(1, 1, "k", "k", None, 10), "EventStreamError"),
        (subscribe(after="0000000000000000.5"), "PositionLost"),
    ],
)
@simulated
async def test_a_subscription_that_cannot_be_is_refused(said: Subscribe, error: str) -> None:
    """It alone."""
    async with Town(words).open() as town, stranger(town) as other:
        await other.say(OPEN, said)
        assert (await other.hear(Ended)).fault.name == error
        await other.say(subscribe(2))
        assert (await other.hear(Mark)).kind == "resumed"


@simulated
async def test_topics_that_cannot_be_declared_are_refused() -> None:
    """When they are used."""
    async with Town(create=True).open() as town, stranger(town) as other:
        wrong = [OpenTopic(1, "\n", False, 1, 1), OpenTopic(2, "t", True, 1, 1), OpenTopic(3, "", False, 1, 1)]
        await other.say(*wrong, *[Head(number, number) for number in (1, 2, 3)])
        assert {(await other.hear(Failed)).fault.name for _ in wrong} <= {"InvalidName", "EventStreamError"}


@simulated
async def test_many_requests_do_not_fill_the_servers_memory() -> None:
    """Who asks and does not listen is not listened to: of a hundred megabytes of answers, a few are made."""
    topics = [Topic(f"topic{number}", str) for number in range(200)]
    asked: list[str] = []

    def authorize(principal: Any, action: str, topic: str, key: str | None) -> bool:
        asked.append(topic)
        return True

    async with Town(*topics, authorize=authorize).open() as town, stranger(town) as other:
        for topic in topics:
            town.bus.publish_nowait(topic, "a")
        await other.say(b"".join(encode(ListTopics(number)) for number in range(5000)))
        await anyio.sleep(1)
        answer = await other.hear(TopicList)
        assert len(answer.topics) == 200
        assert len(asked) / 200 * len(encode(answer)) < 4 * 1024 * 1024


class Test_messages:
    @given(st.lists(st.binary(max_size=60), max_size=5))
    def test_whatever_comes_is_messages_or_refused(self, chunks: list[bytes]) -> None:
        decoder = MessageDecoder(1000)
        try:
            for chunk in chunks:
                list(decoder.feed(chunk))
        except BadFrame as error:
            assert error.why

    @given(st.integers(1, 17), st.lists(st.none() | st.integers() | st.text() | st.booleans(), max_size=8))
    def test_whatever_fields_come_too(self, kind: int, fields: list[Any]) -> None:
        try:
            data = message(kind, *fields)
        except (OverflowError, ValueError):
            return
        try:
            list(MessageDecoder().feed(data))
        except BadFrame as error:
            assert f"kind {kind}" in error.why

    @given(st.integers(1, 50))
    def test_they_are_found_however_the_bytes_are_cut(self, size: int) -> None:
        sent: list[Message] = [Greeting(1, "token"), OPEN, Events(7, b"\x90" * 30), Credit(1, 2), Goodbye()]
        data = b"".join(encode(one) for one in sent)
        decoder = MessageDecoder()
        found = [one for at in range(0, len(data), size) for one in decoder.feed(data[at : at + size])]
        assert found == sent

    def test_a_later_version_may_append_fields(self) -> None:
        assert list(MessageDecoder().feed(message(5, 1, 2, "later"))) == [Credit(1, 2)]


class Test_faults:
    def test_every_error_comes_back_as_it_was(self) -> None:
        sent = [
            errors.BusClosed("closed"),
            errors.Conflict("t", "k", 1, 2),
            errors.IndexOrder("t", 1, 2),
            errors.InvalidName("key", "\n", "is wrong"),
            errors.InvalidPayload("t", "$.a"),
            errors.InvalidPosition("x"),
            errors.LimitReached("topics", 3),
            errors.LogFailed("file", "disk I/O error"),
            errors.LogFull("file"),
            errors.LogRefused("file", "damaged", "SQLite says: malformed"),
            errors.NotAuthorized("p", "do"),
            errors.NotCompacted("t", "view", "more"),
            errors.OutcomeUnknown("t", "id", 130.5),
            errors.PositionLost("t", Position("e", 3), "f", 4, 5),
            errors.SlowSubscriber("t", 3, 2),
            errors.SnapshotFailed("t", None, "raised", "x"),
            errors.SubscriptionClosed("t"),
            errors.TopicConflict("t", "key"),
            errors.UnknownTopic("t"),
        ]
        assert {type(error).__name__ for error in sent} == set(faults._BUILDERS)
        for error in sent:
            back = from_fault(msgspec.msgpack.decode(msgspec.msgpack.encode(to_fault(error)), type=Fault))
            assert type(back) is type(error)
            if not isinstance(error, errors.InvalidName | errors.InvalidPosition):  # which show a value's repr
                assert str(back) == str(error)

    def test_others_come_as_their_text(self) -> None:
        back = from_fault(to_fault(EventStreamError("something")))
        assert (type(back), str(back)) == (EventStreamError, "something")
        assert "Newer" in str(from_fault(Fault("Newer", {"a": 1})))
        assert type(from_fault(Fault("Conflict", {"topic": 1}))) is EventStreamError

    @pytest.mark.parametrize("error", [NotAuthorized("a\ud800"), EventStreamError("no file \udcff")])
    def test_what_cannot_be_said_is_shown_as_well_as_can_be(self, error: EventStreamError) -> None:
        """A token's principal, or the name of a file: encoding it ended the whole connection, again and again."""
        fault = msgspec.msgpack.decode(msgspec.msgpack.encode(to_fault(error)), type=Fault)
        assert "?" in str(from_fault(fault))

    def test_a_principal_that_is_no_text_is_shown(self) -> None:
        assert to_fault(NotAuthorized(("a", 1))).fields["principal"] == "('a', 1)"
