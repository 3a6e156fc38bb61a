"""The two halves of a session: what is said is kept until it is acknowledged, what is heard is heard once."""

from __future__ import annotations

from typing import Any

import pytest

from eventstream.errors import BadFrame, ResumeRefused
from eventstream.pipes import BackedReader, BackedWriter
from eventstream.pipes.frames import MAX_PAYLOAD, Ack, Data, Decoder, Fin, Frame
from eventstream.pipes.pieces import SMALL

ALL = 1 << 30


def linked_writer(data: bytes = b"", *, capacity: int = 10, limit: int = ALL) -> BackedWriter:
    writer = BackedWriter(capacity)
    assert writer.accept(data)
    writer.resume(0, limit)
    return writer


def output(writer: BackedWriter, budget: int = ALL) -> list[Frame]:
    """What it sends, as the peer's decoder sees it."""
    return Decoder().feed(b"".join(writer.next_output(budget)))


def can_send(writer: BackedWriter) -> bool:
    return writer.has_output


def is_urgent(reader: BackedReader) -> bool:
    return reader.ack_is_urgent


def finished_writer(data: bytes = b"") -> BackedWriter:
    """One that has sent all, FIN included."""
    writer = linked_writer(data)
    writer.finish()
    output(writer)
    return writer


def reader_with(data: bytes = b"", *, capacity: int = 10) -> BackedReader:
    reader = BackedReader(capacity)
    reader.tell()
    reader.feed(0, data)
    return reader


# The writer


def test_one_frame_carries_all_pieces_that_may_go() -> None:
    """Small and large ones, up to the budget: each frame is a step of its own for the peer."""
    writer = linked_writer(b"head", capacity=ALL)
    body = bytes(2 * SMALL)
    assert writer.accept(body)
    assert writer.accept(b"tail")
    pieces = writer.next_output(ALL)
    assert any(piece is body for piece in pieces)
    [frame] = Decoder().feed(b"".join(pieces))
    assert isinstance(frame, Data)
    assert (frame.sequence, bytes(frame.payload)) == (0, b"head" + body + b"tail")


def test_what_comes_alone_is_passed_on_in_one_step() -> None:
    """It is kept as all else that was sent, and can be sent again."""
    writer = linked_writer(b"ab")
    output(writer)
    frame = writer.pass_on(b"cde")
    assert frame is not None
    assert Decoder().feed(frame) == [Data(2, b"cde")]
    assert not can_send(writer)
    assert (writer.sequence, writer.ring.sent, writer.ring.free) == (5, 5, 5)
    writer.check_resume(5)
    writer.resume(1, ALL)
    assert output(writer) == [Data(1, b"bcde")]


@pytest.mark.parametrize(
    ("waiting", "data", "limit", "finish"),
    [
        (b"w", b"data", ALL, False),
        (b"", b"", ALL, False),
        (b"", b"eleven bytes", ALL, False),
        (b"", b"data", 3, False),
        (b"", b"data", ALL, True),
    ],
    ids=["behind others", "empty", "larger than the ring", "beyond the peer's limit", "after the end"],
)
def test_what_cannot_go_at_once_is_not_passed_on(waiting: bytes, data: bytes, limit: int, finish: bool) -> None:
    """Nothing is accepted of it then."""
    writer = linked_writer(waiting, limit=limit)
    if finish:
        writer.finish()
    assert writer.pass_on(data) is None
    assert (writer.sequence, writer.ring.sent) == (len(waiting), 0)


def test_what_one_frame_cannot_carry_is_not_passed_on() -> None:
    writer = linked_writer(capacity=ALL)
    assert writer.pass_on(bytes(MAX_PAYLOAD + 1)) is None
    assert writer.pass_on(bytes(MAX_PAYLOAD)) is not None


def test_a_frame_ends_at_the_limit_and_at_its_largest_size() -> None:
    """The peer's room and `MAX_PAYLOAD` bound it, wherever pieces begin and end."""
    writer = linked_writer(bytes(6), capacity=ALL, limit=MAX_PAYLOAD + 10)
    assert writer.accept(bytes(2 * MAX_PAYLOAD))
    lengths = [len(frame.payload) for frame in output(writer) if isinstance(frame, Data)]
    assert lengths == [MAX_PAYLOAD, 10]
    assert not can_send(writer)


def test_a_new_writer_has_said_nothing() -> None:
    writer = BackedWriter(10)
    assert (writer.sequence, writer.acknowledged, writer.finished, writer.settled) == (0, 0, False, True)
    assert not can_send(writer)
    assert output(writer) == []


def test_without_a_link_bytes_are_accepted_and_wait() -> None:
    """The peer has told no limit, so nothing may go out."""
    writer = BackedWriter(10)
    assert writer.accept(b"hello")
    assert (writer.sequence, can_send(writer), writer.settled) == (5, False, False)
    assert output(writer) == []


@pytest.mark.parametrize(("size", "fits"), [(0, True), (9, True), (10, True), (11, False)])
def test_bytes_are_accepted_whole_or_not_at_all(size: int, fits: bool) -> None:
    writer = BackedWriter(10)
    assert writer.accept(bytes(size)) == fits
    assert writer.sequence == (size if fits else 0)


def test_what_is_sent_bears_its_place() -> None:
    writer = linked_writer(b"hello")
    assert can_send(writer)
    assert output(writer) == [Data(0, b"hello")]
    assert not can_send(writer)
    assert writer.accept(b"you")
    assert output(writer) == [Data(5, b"you")]


def test_nothing_is_sent_beyond_the_peers_limit() -> None:
    writer = linked_writer(b"0123456789", limit=4)
    assert output(writer) == [Data(0, b"0123")]
    assert not can_send(writer)
    writer.acknowledge(2, 7)
    assert can_send(writer)
    assert output(writer) == [Data(4, b"456")]


def test_a_budget_is_kept_and_the_rest_goes_later() -> None:
    writer = linked_writer(b"0123456789")
    assert [output(writer, 4), output(writer, 0), output(writer, 4), output(writer, 4)] == [
        [Data(0, b"0123")],
        [],
        [Data(4, b"4567")],
        [Data(8, b"89")],
    ]


def test_a_large_payload_is_cut_into_frames_and_not_copied() -> None:
    data = bytes(MAX_PAYLOAD + 1)
    writer = linked_writer(data, capacity=2 * MAX_PAYLOAD)
    header, first, _, last = writer.next_output(ALL)
    assert [len(header), len(first), len(last)] == [13, MAX_PAYLOAD, 1]
    assert all(isinstance(part, memoryview) and part.obj is data for part in (first, last))


def test_an_acknowledgement_makes_room_and_settles() -> None:
    writer = linked_writer(b"0123456789")
    output(writer)
    writer.acknowledge(6, ALL)
    assert (writer.acknowledged, writer.ring.free, writer.settled) == (6, 6, False)
    writer.acknowledge(10, ALL)
    assert (writer.acknowledged, writer.ring.free, writer.settled) == (10, 10, True)


def test_older_news_changes_nothing() -> None:
    writer = linked_writer(b"0123456789", limit=4)
    output(writer)
    writer.acknowledge(4, 9)
    writer.acknowledge(2, 5)
    assert writer.acknowledged == 4
    assert output(writer) == [Data(4, b"45678")]


@pytest.mark.parametrize("finish", [False, True])
def test_an_acknowledgement_of_what_was_never_sent_is_a_bad_frame(finish: bool) -> None:
    """It changes nothing, the limit included."""
    writer = linked_writer(b"0123456789", limit=4)
    output(writer)
    if finish:
        writer.finish()
        output(writer)
    with pytest.raises(BadFrame, match="ACK of 5, but only 4 was sent"):
        writer.acknowledge(5, ALL)
    assert writer.acknowledged == 0
    assert not can_send(writer)


def test_the_fin_follows_the_last_byte_once() -> None:
    writer = linked_writer(b"0123", limit=3)
    writer.finish()
    assert output(writer) == [Data(0, b"012")]
    writer.acknowledge(3, 4)
    assert output(writer) == [Data(3, b"3"), Fin(4)]
    assert not can_send(writer)
    assert output(writer) == []


def test_a_fin_needs_no_room() -> None:
    """It is no byte that the peer would have to keep."""
    writer = linked_writer(limit=0)
    assert not can_send(writer)
    writer.finish()
    assert can_send(writer)
    assert output(writer) == [Fin(0)]


def test_it_is_settled_only_when_the_fin_is_acknowledged() -> None:
    writer = finished_writer(b"0123")
    settled = []
    for position in (4, 5):
        writer.acknowledge(position, ALL)
        settled.append(writer.settled)
    assert settled == [False, True]
    assert writer.acknowledged == 4


@pytest.mark.parametrize("position", range(11))
def test_a_resume_sends_again_exactly_what_the_peer_lacks(position: int) -> None:
    writer = linked_writer(b"0123456789")
    output(writer)
    writer.check_resume(position)
    writer.resume(position, ALL)
    assert writer.acknowledged == position
    assert output(writer) == [Data(position, b"0123456789"[position:])] * (position < 10)


def test_new_bytes_come_after_those_that_are_sent_again() -> None:
    writer = linked_writer(b"0123", capacity=20)
    output(writer)
    assert writer.accept(b"45")
    writer.resume(2, ALL)
    assert writer.accept(b"67")
    assert output(writer) == [Data(2, b"234567")]


def test_a_resume_takes_the_new_limit_only() -> None:
    """What the peer had room for on another link does not count on this one."""
    writer = linked_writer(b"0123456789", limit=9)
    writer.resume(0, 3)
    assert output(writer) == [Data(0, b"012")]


@pytest.mark.parametrize("position", [1, 5, 10, 11])
def test_a_peer_cannot_have_what_was_never_sent(position: int) -> None:
    """Accepted is not sent: a position between the two is as false as one beyond."""
    writer = linked_writer(b"0123456789", limit=0)
    with pytest.raises(ResumeRefused, match=f"it has {position}; 0 to 0 can be resumed") as caught:
        writer.check_resume(position)
    assert caught.value.reason == "position"


def test_what_was_sent_on_any_link_may_have_arrived() -> None:
    """Bytes that are to be sent again may be with the peer already, by the link before the last."""
    writer = linked_writer(b"0123456789")
    output(writer)
    writer.resume(2, 2)
    writer.check_resume(10)
    writer.resume(10, ALL)
    assert writer.settled


def test_a_peer_cannot_lack_what_it_acknowledged() -> None:
    writer = linked_writer(b"0123456789")
    output(writer)
    writer.acknowledge(4, ALL)
    writer.check_resume(4)
    with pytest.raises(ResumeRefused, match="it has 3; 4 to 10 can be resumed"):
        writer.check_resume(3)


def test_a_fin_that_was_lost_is_sent_again() -> None:
    writer = finished_writer(b"0123")
    writer.resume(4, ALL)
    assert output(writer) == [Fin(4)]
    writer.acknowledge(5, ALL)
    assert writer.settled


def test_a_fin_that_arrived_is_not_sent_again_and_may_be_acknowledged_again() -> None:
    """A peer that takes bytes later acknowledges anew, FIN included; that ended every further link."""
    writer = finished_writer(b"0123")
    writer.check_resume(5)
    writer.resume(5, ALL)
    assert output(writer) == []
    assert writer.settled
    writer.acknowledge(5, ALL)
    writer.resume(5, ALL)
    writer.acknowledge(5, ALL)
    with pytest.raises(BadFrame):
        writer.acknowledge(6, ALL)


def test_a_peer_cannot_lack_the_fin_that_it_acknowledged() -> None:
    writer = finished_writer(b"0123")
    writer.acknowledge(5, ALL)
    with pytest.raises(ResumeRefused, match="it has 4; 5 to 5 can be resumed"):
        writer.check_resume(4)


def test_what_is_abandoned_counts_as_never_acknowledged() -> None:
    writer = linked_writer(b"0123456789")
    output(writer)
    writer.acknowledge(4, ALL)
    writer.abandon()
    writer.abandon()
    assert (writer.sequence, writer.acknowledged, writer.ring.size, writer.settled) == (10, 4, 0, False)


# The reader


def test_a_new_reader_has_heard_nothing_and_promises_its_room() -> None:
    reader = BackedReader(10)
    assert (reader.position, reader.consumed, reader.unread, reader.ended) == (0, 0, 0, False)
    assert reader.take(5) == b""
    assert reader.tell() == Ack(0, 10)
    assert not reader.owes_ack


def test_bytes_are_taken_in_order_in_any_portions() -> None:
    reader = reader_with(b"01234")
    reader.feed(5, b"56789")
    assert [reader.take(3), reader.take(1), reader.take(3), reader.take(ALL)] == [b"012", b"3", b"4", b"56789"]
    assert reader.take(1) == b""
    assert (reader.position, reader.consumed, reader.unread) == (10, 10, 0)


@pytest.mark.parametrize("payload", [b"0123", memoryview(b"0123")], ids=["bytes", "view"])
def test_what_is_taken_is_bytes(payload: Any) -> None:
    reader = reader_with()
    reader.feed(0, payload)
    assert type(reader.take(2)) is bytes
    assert type(reader.take(2)) is bytes


def test_a_large_payload_is_given_out_as_it_came() -> None:
    payload = bytes(SMALL)
    reader = reader_with(payload, capacity=SMALL)
    assert reader.take(ALL) is payload


@pytest.mark.parametrize(
    ("sequence", "payload"), [(0, b"0123"), (0, b"01"), (3, b"3"), (0, b""), (4, b"")], ids=lambda part: str(part)
)
def test_what_it_has_is_dropped(sequence: int, payload: bytes) -> None:
    reader = reader_with(b"0123")
    reader.feed(sequence, payload)
    assert (reader.position, reader.take(ALL)) == (4, b"0123")


@pytest.mark.parametrize("sequence", [0, 3, 4])
def test_only_the_new_part_of_what_is_repeated_counts(sequence: int) -> None:
    reader = reader_with(b"0123")
    reader.feed(sequence, b"012345"[sequence:])
    assert (reader.position, reader.take(ALL)) == (6, b"012345")


def test_a_gap_is_a_bad_frame() -> None:
    reader = reader_with(b"0123")
    with pytest.raises(BadFrame, match="DATA at 5, but 4 was to come"):
        reader.feed(5, b"5")
    assert (reader.position, reader.take(ALL)) == (4, b"0123")


def test_more_than_was_promised_is_a_bad_frame() -> None:
    """What we have room for now does not matter, but what the peer was told."""
    reader = reader_with(b"0123456789")
    reader.take(ALL)
    with pytest.raises(BadFrame, match="DATA up to 11, but there was room up to 10"):
        reader.feed(10, b"x")
    assert reader.tell() == Ack(10, 20)
    reader.feed(10, b"0123456789")
    assert reader.unread == 10


def test_room_is_promised_only_when_bytes_are_taken() -> None:
    reader = reader_with(b"0123")
    assert reader.acknowledgement == Ack(4, 10)
    reader.take(3)
    assert reader.acknowledgement == Ack(4, 13)


def test_the_end_follows_the_last_byte() -> None:
    reader = reader_with(b"0123")
    reader.finish(4)
    assert reader.ended
    assert reader.acknowledgement == Ack(5, 10)
    assert reader.take(ALL) == b"0123"


@pytest.mark.parametrize("position", [3, 5])
def test_an_end_elsewhere_is_a_bad_frame(position: int) -> None:
    reader = reader_with(b"0123")
    with pytest.raises(BadFrame, match=f"FIN at {position}, but 4 was to come"):
        reader.finish(position)
    assert not reader.ended


def test_after_the_end_only_what_it_has_may_come() -> None:
    """Repeated bytes and a repeated FIN are dropped; a byte after it, or another FIN, is a bad frame."""
    reader = reader_with(b"0123")
    reader.finish(4)
    reader.feed(2, b"23")
    reader.finish(4)
    with pytest.raises(BadFrame, match="DATA up to 5 after the FIN at 4"):
        reader.feed(4, b"4")
    with pytest.raises(BadFrame, match="FIN at 3"):
        reader.finish(3)
    assert reader.acknowledgement == Ack(5, 10)


def test_news_is_owed_until_it_is_told() -> None:
    reader = reader_with(capacity=100)
    owed = []
    for step in (lambda: reader.feed(0, b"01"), lambda: reader.take(1), lambda: reader.finish(2)):
        step()
        owed.append(reader.owes_ack)
        reader.tell()
        owed.append(reader.owes_ack)
    assert owed == [True, False] * 3


@pytest.mark.parametrize(("capacity", "quarter"), [(1, 1), (2, 1), (7, 1), (8, 2), (1000, 250)])
def test_a_quarter_of_the_room_is_urgent_news(capacity: int, quarter: int) -> None:
    """Arrived or taken: either may be what the peer waits for."""
    reader = reader_with(capacity=capacity)
    reader.feed(0, bytes(quarter - 1))
    assert not is_urgent(reader)
    reader.feed(quarter - 1, b"x")
    assert is_urgent(reader)
    reader.tell()
    reader.take(quarter - 1)
    assert not is_urgent(reader)
    reader.take(1)
    assert is_urgent(reader)
    reader.tell()
    assert not is_urgent(reader)


def test_an_end_is_urgent_news_once() -> None:
    reader = reader_with(capacity=100)
    reader.finish(0)
    assert is_urgent(reader)
    reader.tell()
    reader.finish(0)
    assert not is_urgent(reader)


def test_what_nobody_will_take_is_acknowledged_and_dropped() -> None:
    reader = reader_with(b"0123")
    reader.discard()
    assert (reader.unread, reader.acknowledgement) == (0, Ack(4, 14))
    reader.tell()
    reader.feed(4, b"456789")
    assert (reader.unread, reader.take(ALL), reader.acknowledgement) == (0, b"", Ack(10, 20))


def test_a_flood_of_one_byte_frames_costs_few_objects() -> None:
    reader = reader_with(capacity=100_000)
    for position in range(100_000):
        reader.feed(position, b"x")
    assert len(reader._pieces._queue) < 1000
