"""Payloads and events as bytes: all types that msgspec knows, tombstones, headers, and errors that show the path."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from itertools import cycle, islice
from types import MappingProxyType
from typing import Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventstream import Event, Topic
from eventstream.codec import Keyed, TopicCodec, join_events
from eventstream.errors import InvalidPayload
from eventstream.events import NO_HEADERS
from support import Price

prices = Topic("prices", Price, key="symbol", compacted=True)


@dataclass(frozen=True)
class Place:
    name: str
    at: tuple[float, float]


class Color(enum.Enum):
    RED = "red"


class Nested(msgspec.Struct):
    prices: dict[str, list[Price]]


def event(payload: Any, **options: Any) -> Event[Any]:
    fields = {"topic": "t", "key": "k", "index": 7, "time": 1.5, "headers": MappingProxyType({}), **options}
    return Event(payload=payload, **fields)


class Test_payloads:
    @pytest.mark.parametrize(
        ("type_", "payload"),
        [
            (Price, Price("X", 1.0)),
            (Place, Place("here", (1.0, 2.0))),
            (str, "ü"),
            (bytes, b"\x00\xff"),
            (int, 2**62),
            (float, 1.5),
            (bool, True),
            (dict, {"a": [1, None, "x"]}),
            (list[int], [1, 2, 3]),
            (dict[str, Price], {"X": Price("X", 1.0)}),
            (Color, Color.RED),
            (Literal["a", "b"], "b"),
            (int | str | None, "either"),
            (Nested, Nested({"a": [Price("X", 1.0)]})),
            (Any, {"free": [1.5, b"bytes", None]}),
        ],
    )
    def test_come_back_as_they_were(self, type_: Any, payload: Any) -> None:
        codec = TopicCodec(Topic("t", type_))
        assert codec.decode_payload("k", codec.encode_payload(payload)) == payload
        assert codec.decode_events(codec.encode_events([event(payload)])) == [event(payload)]

    def test_that_do_not_fit_show_the_path(self) -> None:
        codec = TopicCodec(Topic("t", Nested))
        wrong = msgspec.msgpack.encode({"prices": {"a": [{"symbol": "X", "bid": "much"}]}})
        with pytest.raises(InvalidPayload, match=r"\$\.prices\[\.\.\.\]\[0\]\.bid"):
            codec.decode_payload("k", wrong)
        with pytest.raises(InvalidPayload) as caught:
            codec.decode_events(join_events([TopicCodec(Topic("t", Any)).encode_event(event({"prices": 7}))]))
        assert caught.value.topic == "t"
        assert "$[0][3].prices" in caught.value.why

    def test_that_cannot_be_encoded_are_refused(self) -> None:
        codec = TopicCodec(Topic("t", Any))
        endless: list[Any] = []
        endless.append(endless)
        payloads: list[Any] = [object(), 2**70, endless, {"a": {1j}}]
        for payload in payloads:
            with pytest.raises(InvalidPayload):
                codec.encode_payload(payload)
            with pytest.raises(InvalidPayload):
                codec.encode_event(event(payload))

    @given(st.binary(max_size=40))
    def test_whatever_comes_is_a_payload_or_refused(self, data: bytes) -> None:
        for type_ in (Price, Nested, Any, Keyed):
            codec: TopicCodec[Any] = TopicCodec(Topic("t", type_))
            try:
                codec.decode_events(data)
            except InvalidPayload as error:
                assert error.why

    def test_deep_nesting_is_refused(self) -> None:
        deep = b"\x91" * 100_000 + b"\xc0"
        for type_ in (Any, Keyed):
            codec: TopicCodec[Any] = TopicCodec(Topic("t", type_))
            with pytest.raises(InvalidPayload):
                codec.decode_events(b"\x91" + b"\x94\xa1k\x01\xca\x00\x00\x00\x00" + deep)
        with pytest.raises(InvalidPayload):
            TopicCodec(Topic("t", Any)).decode_payload("k", deep)


class Test_events:
    def test_a_tombstone_has_no_payload(self) -> None:
        codec = TopicCodec(prices)
        [back] = codec.decode_events(codec.encode_events([event(None, topic="prices")]))
        assert back == event(None, topic="prices")

    def test_headers_travel(self) -> None:
        codec = TopicCodec(Topic("t", str))
        sent = event("a", headers=MappingProxyType({"trace": "1"}))
        [back] = codec.decode_events(codec.encode_events([sent]))
        assert back.headers == {"trace": "1"}

    @pytest.mark.parametrize("count", [0, 1, 15, 16, 300, 65_535, 65_536, 70_000])
    def test_lists_of_any_length(self, count: int) -> None:
        codec = TopicCodec(Topic("t", int))
        one = codec.encode_event(event(1))
        assert len(codec.decode_events(join_events([one] * count))) == count

    def test_a_later_version_may_append_fields(self) -> None:
        longer = msgspec.msgpack.encode([["k", 7, 1.5, "a", None, "what comes later"]])
        assert TopicCodec(Topic("t", str)).decode_events(longer) == [event("a")]


class Test_keyed:
    """Who does not know a topic's type passes its payloads on as they came."""

    def test_bytes_pass_through(self) -> None:
        typed, blind = TopicCodec(Topic("t", Price)), TopicCodec(Topic("t", Keyed, key="key"))
        sent = typed.encode_events([event(Price("X", 1.0)), event(None)])
        passed = blind.decode_events(sent)
        assert [one.tombstone or one.payload.key for one in passed] == ["k", True]
        assert blind.encode_events(passed) == sent

    def test_a_payload_is_its_key_and_its_bytes(self) -> None:
        blind = TopicCodec(Topic("t", Keyed, key="key"))
        body = msgspec.msgpack.encode({"a": 1})
        payload = blind.decode_payload("k", body)
        assert (payload.key, blind.encode_payload(payload)) == ("k", body)


class Test_many_at_once:
    def test_each_is_encoded_as_it_is_alone(self) -> None:
        """With headers, tombstones, and payloads whose bytes are passed on."""
        codec: TopicCodec[Any] = TopicCodec(Topic("t", Any))
        events = [
            event(Price("X", 1.0), headers=NO_HEADERS),
            event(Price("Y", 2.0), headers={"a": "b"}),
            event(None),
            event(Keyed("k", msgspec.Raw(b"\x01"))),
        ]
        for count in (0, 3, 4, 15, 16, 70_000):
            many = list(islice(cycle(events), count))
            assert codec.encode_events(many) == join_events([codec.encode_event(one) for one in many])

    def test_one_that_cannot_be_encoded_is_named(self) -> None:
        """The error is that of a single event."""
        codec: TopicCodec[Any] = TopicCodec(Topic("t", Any))
        with pytest.raises(InvalidPayload, match=r"t.*object"):
            codec.encode_events([event(1), event(object(), headers=NO_HEADERS)])
