"""Positions, topics, names and errors: the values that everything else speaks."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal, NewType, TypedDict

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventstream import (
    EARLIEST,
    Event,
    EventStreamError,
    InvalidName,
    InvalidPosition,
    PayloadTypeError,
    Position,
    SnapshotFailed,
    Topic,
    errors,
)
from eventstream.events import MAX_INDEX, check_headers, check_name
from support import Price


class Test_Position:
    @given(st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True), st.integers(0, MAX_INDEX))
    def test_its_text_can_be_read_back(self, epoch: str, index: int) -> None:
        position = Position(epoch, index)
        assert Position.parse(str(position)) == position

    @given(st.text())
    def test_any_other_text_is_refused_or_means_just_itself(self, text: str) -> None:
        try:
            assert str(Position.parse(text)) == text
        except InvalidPosition as error:
            assert error.text == text

    @pytest.mark.parametrize(
        "text",
        ["", "x", ".1", "e.", "e.-1", "e.01", "e.1 ", "e.1\n", "e.١", f"e.{2**63}", "é.1", "a.b.1", 7, None, b"e.1"],
    )
    def test_what_is_no_token_is_refused_with_the_offender(self, text: Any) -> None:
        with pytest.raises(InvalidPosition, match="is not a position") as caught:
            Position.parse(text)
        assert caught.value.text == text

    def test_it_fits_a_header_line(self) -> None:
        text = str(Position("e" * 64, MAX_INDEX))
        assert text.isascii()
        assert text.isprintable()
        assert len(text) <= 84

    def test_EARLIEST_shows_its_name(self) -> None:
        assert repr(EARLIEST) == "EARLIEST"


class Test_names:
    @pytest.mark.parametrize("good", ["a", "ä" * 127, "x" * 255, "with space", "日本", "no\u00a0break", "a/b.c*>"])
    def test_printable_text_up_to_255_bytes_is_a_name(self, good: str) -> None:
        assert check_name("key", good) == good

    @pytest.mark.parametrize(
        ("bad", "why"),
        [
            ("", "must not be empty"),
            ("x" * 256, "256 UTF-8 bytes"),
            ("ä" * 128, "256 UTF-8 bytes"),
            ("a\nb", "control"),
            ("\x00", "control"),
            ("\x7f", "control"),
            ("\x85", "control"),
            ("a\u2028b", "control"),
            ("\ud800", "not valid Unicode"),
            (7, "must be text, not int"),
            (None, "must be text, not NoneType"),
            (b"a", "must be text, not bytes"),
        ],
    )
    def test_anything_else_is_a_ValueError_that_shows_the_offender(self, bad: object, why: str) -> None:
        with pytest.raises(InvalidName, match=why) as caught:
            check_name("key", bad)
        assert isinstance(caught.value, ValueError)
        assert caught.value.value == bad
        assert repr(bad)[:20] in str(caught.value)

    def test_an_error_shows_no_more_than_the_start_of_a_long_offender(self) -> None:
        with pytest.raises(InvalidName) as caught:
            check_name("key", "x" * 1_000_000)
        assert len(str(caught.value)) < 200

    def test_a_subclass_of_str_becomes_plain_text(self) -> None:
        class Text(str):
            __slots__ = ()

        assert type(check_name("key", Text("a"))) is str

    def test_headers_are_copied_and_immutable(self) -> None:
        given_headers = {"trace": "1"}
        headers = check_headers(given_headers)
        given_headers["trace"] = "2"
        assert headers == {"trace": "1"}
        with pytest.raises(TypeError):
            headers["trace"] = "3"  # type: ignore[index]  # that is the point

    @pytest.mark.parametrize("bad", [{"": "x"}, {"a\n": "x"}, {"a": 1}, {1: "a"}, {"a": "x" * 9000}, ["a"], "a"])
    def test_headers_out_of_bounds_are_refused(self, bad: Any) -> None:
        with pytest.raises(InvalidName):
            check_headers(bad)

    def test_no_headers_cost_nothing(self) -> None:
        assert check_headers(None) is check_headers({})


class Named(TypedDict):
    name: str


@dataclasses.dataclass
class Point:
    x: str


UserId = NewType("UserId", str)


class Test_Topic:
    @pytest.mark.parametrize(
        ("type_", "good", "bad"),
        [
            (int, 1, "1"),
            (float, 1, "1"),
            (bytes, b"", ""),
            (str, "", b""),
            (dict, {}, []),
            (dict[str, int], {}, []),
            (list[int], [], ()),
            (Price, Price("X", 1.0), {"symbol": "X"}),
            (Point, Point("x"), Price("X", 1.0)),
            (int | str, "x", b""),
            (Price | None, None, 1),
            (Annotated[int, msgspec.Meta(gt=0)], 1, "1"),
            (Literal["a", "b"], "a", 1),
            (Named, {"name": "x"}, []),
            (UserId, "x", 1),
            (None, None, 1),
        ],
    )
    def test_a_payload_of_another_class_is_refused(self, type_: Any, good: Any, bad: Any) -> None:
        topic: Topic[Any] = Topic("t", type_)
        assert topic.key_for(good) == ""
        with pytest.raises(PayloadTypeError, match="topic 't' carries") as caught:
            topic.key_for(bad)
        assert isinstance(caught.value, TypeError)
        assert (caught.value.topic, caught.value.expected, caught.value.actual) == ("t", type_, type(bad))

    @pytest.mark.parametrize("payload", [1, "x", None, object()])
    def test_Any_takes_everything(self, payload: object) -> None:
        topic: Topic[Any] = Topic("t", Any)
        assert topic.key_for(payload) == ""

    def test_the_key_is_a_field_an_item_or_what_a_callable_says(self) -> None:
        assert Topic("t", Price, key="symbol").key_for(Price("X", 1.0)) == "X"
        assert Topic("t", Point, key="x").key_for(Point("X")) == "X"
        assert Topic("t", dict, key="name").key_for({"name": "X"}) == "X"
        assert Topic("t", Named, key="name").key_for({"name": "X"}) == "X"
        anything: Topic[Any] = Topic("t", Any, key="name")
        assert anything.key_for({"name": "X"}) == "X"
        assert Topic("t", int, key=lambda number: f"n{number % 2}").key_for(3) == "n1"

    @pytest.mark.parametrize("payload", [{}, {"name": 7}, {"name": ""}, {"name": "\n"}])
    def test_a_payload_without_a_good_key_is_refused(self, payload: dict[str, object]) -> None:
        with pytest.raises(InvalidName, match="key"):
            Topic("t", dict, key="name").key_for(payload)

    def test_a_key_is_given_only_where_the_topic_does_not_find_it(self) -> None:
        assert Topic("t", int).key_for(1, "k") == "k"
        assert Topic("t", int).key_for(1, "") == ""
        with pytest.raises(InvalidName):
            Topic("t", int).key_for(1, "\n")
        with pytest.raises(ValueError, match="finds the key in the payload"):
            Topic("t", Price, key="symbol").key_for(Price("X", 1.0), "X")

    def test_None_is_not_published_to_a_compacted_topic(self) -> None:
        topic = Topic("t", Price | None, key=lambda _: "k", compacted=True)
        with pytest.raises(ValueError, match="use delete"):
            topic.key_for(None)

    @pytest.mark.parametrize(
        ("arguments", "error", "text"),
        [
            ({"name": ""}, InvalidName, "topic name"),
            ({"compacted": True}, ValueError, "without a key"),
            ({"retain": -1}, ValueError, "retain must be"),
            ({"retain": 1.5}, ValueError, "retain must be"),
            ({"max_lag": 0}, ValueError, "max_lag must be"),
            ({"type": list[int] | set[int]}, TypeError, "unions"),
            ({"type": Price, "key": "nothing"}, ValueError, "has no field 'nothing'; it has symbol, bid"),
            ({"key": 7}, TypeError, "key must be"),
        ],
    )
    def test_a_wrong_declaration_says_what_is_wrong(
        self, arguments: dict[str, Any], error: type[Exception], text: str
    ) -> None:
        with pytest.raises(error, match=text):
            Topic(**{"name": "t", "type": dict, **arguments})

    def test_it_is_frozen(self) -> None:
        topic = Topic("t", int)
        with pytest.raises(AttributeError, match="frozen"):
            topic.retain = 5
        with pytest.raises(AttributeError, match="frozen"):
            del topic.retain
        assert repr(topic) == "Topic('t', int, key=None)"

    def test_two_declarations_tell_their_first_difference(self) -> None:
        topic = Topic("t", int)
        assert topic.differs_in(Topic("t", int)) is None
        assert topic.differs_in(Topic("t", str)) == "type"
        assert topic.differs_in(Topic("t", int, retain=5)) == "retain"


class Test_Event:
    def test_it_is_frozen(self) -> None:
        event = Event("t", "k", 1, "payload", 0.0)
        with pytest.raises(AttributeError):
            event.index = 2  # type: ignore[misc]  # that is the point
        assert event.headers == {}


class Test_errors:
    def test_every_error_is_in_the_tree_of_the_module_and_says_whose_fault_it_is(self) -> None:
        assert errors.__doc__ is not None
        for name in errors.__all__:
            error = getattr(errors, name)
            assert issubclass(error, EventStreamError)
            assert name in errors.__doc__
            assert isinstance(error.temporary, bool)
            assert error is EventStreamError or "fault" in (error.__doc__ or "")

    def test_only_what_can_help_to_try_again_is_temporary(self) -> None:
        temporary = {name for name in errors.__all__ if getattr(errors, name).temporary}
        assert temporary == {"BadFrame", "LinkSilent", "LogFailed", "LogFull", "NotStored", "SnapshotFailed"}
        assert SnapshotFailed("t", None, "raised", "x").key is None
