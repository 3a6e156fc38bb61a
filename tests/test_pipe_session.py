"""One end of a pipe without its links: its states, what it makes of each frame, and what it says in which order."""

from __future__ import annotations

from typing import Any

import pytest

from eventstream.errors import BadFrame, PipeAbandoned, PipeClosed
from eventstream.pipes.frames import (
    Ack,
    Close,
    Data,
    Decoder,
    Fin,
    Frame,
    Hello,
    Ping,
    Pong,
    Reject,
    Welcome,
    encode_data,
)
from eventstream.pipes.session import FLUSH, MAX_CAPACITY, TABLE, Event, Session, State

CUT = ConnectionError("cut")
PEER = Ack(0, 1 << 30)


def clock() -> float:
    return 100.0


def linked(*, capacity: int = 1000, peer: Ack = PEER) -> Session:
    session = Session(capacity, 10.0)
    session.reader.tell()
    session.link_up(1, peer, 0.0)
    return session


def session_in(state: State) -> Session:
    session = Session(1000, 10.0) if state is State.CONNECTING else linked()
    if state is State.SUSPENDED:
        session.link_lost(CUT)
    if state is State.CLOSED:
        session.end(None)
    assert session.state is state
    return session


def output(session: Session) -> list[Frame]:
    return Decoder().feed(session.next_output())


def can_send(session: Session) -> bool:
    return session.has_output


def apply(session: Session, *frames: Frame) -> None:
    session.apply(frames, clock)


def all_said(session: Session) -> Session:
    """Both ends have finished, and know it."""
    session.writer.finish()
    apply(session, Fin(0))
    output(session)
    apply(session, Ack(1, 1000))
    assert session.finished
    return session


# States


@pytest.mark.parametrize("event", Event)
@pytest.mark.parametrize("state", State)
def test_the_table_of_states_is_complete(state: State, event: Event) -> None:
    """What it allows happens; anything else raises, says which state and event, and changes nothing."""
    session = session_in(state)
    if (state, event) in TABLE:
        session._move(event)
        assert session.state is TABLE[state, event]
    else:
        with pytest.raises(RuntimeError, match=f"^a {state.value} pipe cannot be {event.value}$"):
            session._move(event)
        assert session.state is state


def test_nothing_leads_out_of_closed_and_all_else_leads_there() -> None:
    ended = {state for (state, event), then in TABLE.items() if event is Event.ENDED and then is State.CLOSED}
    assert ended == {state for state, _ in TABLE} == set(State) - {State.CLOSED}


@pytest.mark.parametrize("state", [State.CONNECTING, State.CONNECTED, State.SUSPENDED])
def test_a_link_connects_from_any_state_but_closed(state: State) -> None:
    session = session_in(state)
    links = session.links
    session.link_up(7, PEER, 0.0)
    assert (session.state, session.generation, session.links) == (State.CONNECTED, 7, links + 1)


def test_a_closed_pipe_gets_no_link() -> None:
    session = session_in(State.CLOSED)
    with pytest.raises(RuntimeError, match="a closed pipe cannot be linked"):
        session.link_up(7, PEER, 0.0)
    assert (session.generation, session.links) == (1, 1)


@pytest.mark.parametrize("state", State)
def test_a_lost_link_suspends_only_who_had_one(state: State) -> None:
    """A dial that failed is noted, and changes no state."""
    session = session_in(state)
    session.link_lost(CUT)
    assert session.state is (State.SUSPENDED if state is State.CONNECTED else state)
    assert session.last_error is CUT
    session.link_lost(None)
    assert session.last_error is CUT


@pytest.mark.parametrize("state", [State.CONNECTING, State.CONNECTED, State.SUSPENDED])
def test_the_first_end_stays_and_gives_the_bytes_up(state: State) -> None:
    session = session_in(state)
    session.writer.accept(b"0123")
    first = PipeAbandoned("expired")
    session.end(first)
    session.end(PipeClosed("closed"))
    assert session.is_closed
    assert session.ended_by is first
    assert session.statistics().in_ring == 0
    assert (session.statistics().sequence, session.statistics().acknowledged) == (4, 0)


@pytest.mark.parametrize("capacity", [0, -1, MAX_CAPACITY + 1, 2**63 - 1])
def test_a_capacity_out_of_bounds_is_refused(capacity: int) -> None:
    """`sys.maxsize` is no capacity: limits told to the peer would exceed any position."""
    with pytest.raises(ValueError, match=f"not {capacity}"):
        Session(capacity, 10.0)
    Session(MAX_CAPACITY, 10.0)


@pytest.mark.parametrize("heartbeat", [0.0, -1.0, float("nan")])
def test_a_heartbeat_is_a_positive_time(heartbeat: float) -> None:
    with pytest.raises(ValueError, match="heartbeat is a positive time"):
        Session(1000, heartbeat)


# What a link brings


def test_each_frame_goes_to_its_part() -> None:
    session = linked()
    session.writer.accept(b"0123")
    output(session)
    apply(session, Data(0, b"hello"), Ack(3, 50), Fin(5))
    assert (session.reader.position, session.reader.ended) == (5, True)
    assert session.writer.acknowledged == 3


def test_whatever_is_heard_is_a_sign_of_life() -> None:
    session = linked()
    session.liveness.heard = False
    apply(session)
    assert session.liveness.heard


@pytest.mark.parametrize(
    "frame",
    [
        Hello(1, b"p" * 16, 1, 0, 9, b"s" * 32, token=b"t" * 32),
        Welcome(1, b"e" * 16, 0, 9, b"s" * 32),
        Reject("busy"),
    ],
    ids=lambda frame: type(frame).__name__,
)
def test_a_handshake_has_no_place_on_a_link(frame: Any) -> None:
    with pytest.raises(BadFrame, match=f"{type(frame).__name__} after the handshake"):
        apply(linked(), frame)


def test_frames_before_a_bad_one_count() -> None:
    """Their acknowledgement is told on the next link, so the peer will not send them again."""
    session = linked()
    with pytest.raises(BadFrame):
        apply(session, Data(0, b"0123"), Data(9, b"x"), Data(4, b"4"))
    assert session.reader.position == 4


def test_a_ping_is_answered_and_a_flood_of_them_once() -> None:
    session = linked()
    apply(session, *[Ping(number) for number in range(1000)])
    assert can_send(session)
    assert output(session) == [Pong(999)]
    assert not can_send(session)


def test_pings_of_ours_do_not_pile_up() -> None:
    """A peer that speaks but does not read keeps its link alive; it must not cost memory."""
    session = linked()
    for now in range(1000):
        session.ping(float(now))
    assert output(session) == [Ping(1000)]
    apply(session, Pong(1000))
    assert session.statistics().round_trip == clock() - 999.0


def test_progress_is_bytes_that_pass_and_pings_that_are_answered() -> None:
    """It outlives the link; sending, asking and linking alone are none."""
    session = linked()
    seen = [session.progress]
    session.writer.accept(b"0123")
    output(session)
    session.ping(0.0)
    session.link_up(2, Ack(0, 1000), 0.0)
    for frame in (Data(0, b"x"), Data(0, b"x"), Pong(1)):
        seen.append(session.progress)
        apply(session, frame)
    session.link_up(3, Ack(2, 1000), 0.0)
    assert [*seen, session.progress] == [(0, 0, 0), (0, 0, 0), (1, 0, 0), (1, 0, 0), (1, 2, 1)]


# What it says


def test_control_frames_come_before_the_backlog() -> None:
    session = linked()
    session.writer.accept(b"0123")
    session.ping(0.0)
    apply(session, Data(0, b"x"), Ping(7))
    session.ack_soon()
    assert output(session) == [Ping(1), Pong(7), Ack(1, 1000), Data(0, b"0123")]
    assert not can_send(session)
    assert session.next_output() == b""


def test_what_comes_alone_does_not_pass_by_control_frames() -> None:
    """A PING, or an acknowledgement that is urgent, goes first: then it is not alone."""
    session = linked()
    session.ping(0.0)
    assert session.pass_on(b"data") is None
    session.next_output()
    assert session.pass_on(b"data") == encode_data(0, 4) + b"data"
    apply(session, Data(0, bytes(250)))
    assert session.pass_on(b"more") is None
    assert output(session) == [Ack(250, 1000)]
    assert session.pass_on(b"more") == encode_data(4, 4) + b"more"


def test_an_acknowledgement_that_is_not_urgent_waits_to_be_asked_for() -> None:
    session = linked()
    apply(session, Data(0, bytes(249)))
    assert not can_send(session)
    session.ack_soon()
    assert can_send(session)
    assert output(session) == [Ack(249, 1000)]


def test_an_urgent_acknowledgement_goes_by_itself() -> None:
    session = linked()
    apply(session, Data(0, bytes(250)))
    assert can_send(session)
    assert output(session) == [Ack(250, 1000)]


def test_nothing_is_acknowledged_twice() -> None:
    session = linked()
    apply(session, Data(0, bytes(250)))
    output(session)
    session.ack_soon()
    assert not can_send(session)
    assert output(session) == []


def test_one_output_is_bounded_and_the_rest_follows() -> None:
    """A PING that is due meanwhile waits behind no more than that."""
    session = linked(capacity=3 * FLUSH)
    session.writer.accept(bytes(2 * FLUSH + 1))
    lengths = []
    while can_send(session):
        lengths.append(len(session.next_output()))
    assert [length // FLUSH for length in lengths] == [1, 1, 0]


def test_a_new_link_forgets_what_was_to_be_said_on_the_old_one() -> None:
    """But not the CLOSE, which is for any."""
    session = linked()
    session.writer.accept(b"0123")
    output(session)
    apply(session, Data(0, b"x"), Ping(7))
    session.ack_soon()
    session.ping(0.0)
    session.close("failed")
    session.link_up(2, Ack(4, 1000), 50.0)
    session.reader.tell()
    assert can_send(session)
    assert output(session) == [Close("failed")]
    assert session.liveness.tick(50.0) is not None
    assert session.statistics().round_trip is None


def test_a_close_is_the_last_word_once() -> None:
    session = linked(capacity=2 * FLUSH)
    session.writer.accept(bytes(FLUSH + 1))
    session.writer.finish()
    session.close("closed")
    session.next_output()
    assert can_send(session)
    assert output(session) == [Data(FLUSH, b"\0"), Fin(FLUSH + 1), Close("closed")]
    assert not can_send(session)
    assert session.next_output() == b""


def test_a_close_does_not_wait_for_room() -> None:
    """Who says it before all was said has no time for a peer that does not read."""
    session = linked(peer=Ack(0, 2))
    session.writer.accept(b"0123")
    session.close("failed")
    assert output(session) == [Data(0, b"01"), Close("failed")]


# Ends


def test_all_is_said_when_both_have_finished_and_know_it() -> None:
    session = linked()
    finished = [session.finished]
    session.writer.finish()
    output(session)
    for frame in (Fin(0), Ack(1, 1000)):
        finished.append(session.finished)
        apply(session, frame)
    assert [*finished, session.finished] == [False, False, False, True]


def test_a_close_after_all_was_said_is_a_clean_end() -> None:
    session = all_said(linked())
    apply(session, Close("finished"))
    assert session.is_closed
    assert session.ended_by is None


def test_a_close_of_a_peer_that_holds_all_for_said_is_clean_only_if_it_is() -> None:
    session = linked()
    session.writer.accept(b"0123")
    apply(session, Fin(0), Close("finished"))
    assert isinstance(session.ended_by, PipeClosed)
    assert session.ended_by.reason == "finished"


@pytest.mark.parametrize("code", ["closed", "failed", "going-away"])
def test_any_other_close_is_told_with_its_reason(code: Any) -> None:
    session = all_said(linked())
    apply(session, Close(code, "why not"))
    assert isinstance(session.ended_by, PipeClosed)
    assert (session.ended_by.reason, session.ended_by.detail) == (code, "why not")


def test_what_follows_a_close_does_not_count() -> None:
    session = linked()
    apply(session, Data(0, b"01"), Close("closed"), Data(2, b"23"), Reject("busy"))
    assert session.reader.take(10) == b"01"


def test_bytes_that_had_arrived_outlive_the_end() -> None:
    session = linked()
    apply(session, Data(0, b"0123"))
    session.end(PipeAbandoned("evicted"))
    assert session.reader.take(10) == b"0123"


def test_statistics_say_how_it_stands() -> None:
    session = linked()
    session.writer.accept(b"0123")
    output(session)
    apply(session, Ack(1, 1000), Data(0, b"hello"))
    session.reader.take(2)
    session.link_lost(CUT)
    seen = session.statistics()
    assert (seen.state, seen.generation, seen.links, seen.last_error) == ("suspended", 1, 1, CUT)
    assert (seen.sequence, seen.acknowledged, seen.in_ring) == (4, 1, 3)
    assert (seen.received, seen.unread, seen.round_trip) == (5, 3, None)
