"""Who may go on with a pipe: the holder of its token, with what was said just now, and nobody else."""

from __future__ import annotations

import hmac
from typing import Any

import pytest
from msgspec.structs import replace

from eventstream.errors import BadFrame, LinkRefused, ResumeRefused
from eventstream.pipes import BackedWriter
from eventstream.pipes.frames import MAX_POSITION, VERSION, Ack, Decoder, Hello, Reject, Welcome, encode
from eventstream.pipes.handshake import (
    check_welcome,
    hello_proof,
    make_hello,
    make_welcome,
    proof,
    proves,
    refuse_resume,
    welcome_proof,
)

PIPE, TOKEN, EPOCH = b"p" * 16, b"t" * 32, b"e" * 16
HAVE = Ack(5, 1000)


class Held:
    """What a server has of the pipe: ten bytes sent, three of them acknowledged, last linked by dial 4."""

    token, generation = TOKEN, 4

    def __init__(self) -> None:
        self.writer = BackedWriter(100)
        self.writer.accept(b"0123456789")
        self.writer.resume(0, 100)
        self.writer.next_output(100)
        self.writer.acknowledge(3, 100)

    def check_resume(self, position: int) -> None:
        self.writer.check_resume(position)


def first_hello(generation: int = 5) -> Hello:
    return make_hello(PIPE, TOKEN, b"", generation, HAVE)


def later_hello(generation: int = 5, have: Ack = HAVE) -> Hello:
    return make_hello(PIPE, TOKEN, EPOCH, generation, have)


hellos = pytest.mark.parametrize("hello", [first_hello(), later_hello()], ids=["first", "later"])


@hellos
def test_the_holder_of_the_token_goes_on(hello: Hello) -> None:
    """And the server proves in turn that it knows the pipe."""
    assert refuse_resume(hello, Held()) is None
    welcome = make_welcome(TOKEN, hello, EPOCH, Ack(7, 2000))
    check_welcome(TOKEN, hello, welcome)
    assert (welcome.epoch, welcome.position, welcome.limit) == (EPOCH, 7, 2000)


def test_the_token_travels_only_until_the_epoch_is_known() -> None:
    assert (first_hello().token, first_hello().epoch) == (TOKEN, b"")
    assert (later_hello().token, later_hello().epoch) == (b"", EPOCH)
    assert TOKEN not in encode(later_hello())
    assert TOKEN not in encode(make_welcome(TOKEN, first_hello(), EPOCH, HAVE))


@hellos
@pytest.mark.parametrize(
    "change",
    [
        {"pipe": b"P" * 16},
        {"generation": 6},
        {"position": 6},
        {"limit": 1001},
        {"position": 4, "limit": 1001},
        {"proof": bytes(32)},
        {"proof": b""},
        {"token": b"T" * 32},
        {"epoch": b"E" * 16},
        {"epoch": bytes(16)},
        {"epoch": bytes(8)},
    ],
    ids=str,
)
def test_a_hello_changed_in_any_field_is_refused(hello: Hello, change: dict[str, Any]) -> None:
    changed = replace(hello, **change)
    assert not proves(TOKEN, changed)
    assert refuse_resume(changed, Held()) == Reject("proof")


@pytest.mark.parametrize(
    "change",
    [{"epoch": b"E" * 16}, {"epoch": b""}, {"position": 8}, {"limit": 2001}, {"proof": bytes(32)}, {"proof": b"short"}],
    ids=str,
)
def test_a_welcome_changed_in_any_field_is_a_bad_frame(change: dict[str, Any]) -> None:
    welcome = make_welcome(TOKEN, first_hello(), EPOCH, Ack(7, 2000))
    with pytest.raises(BadFrame, match="without the proof"):
        check_welcome(TOKEN, first_hello(), replace(welcome, **change))


@hellos
def test_no_single_bit_of_a_hello_can_be_changed(hello: Hello) -> None:
    """On the wire: what comes out of the decoder, if anything does, gets no link."""
    for changed in each_bit_flipped(encode(hello)):
        for frame in decoded(changed):
            assert isinstance(frame, Hello)
            assert frame.version != VERSION or refuse_resume(frame, Held()) == Reject("proof")


def test_no_single_bit_of_a_welcome_can_be_changed() -> None:
    hello = later_hello()
    for changed in each_bit_flipped(encode(make_welcome(TOKEN, hello, EPOCH, Ack(7, 2000)))):
        for frame in decoded(changed):
            assert isinstance(frame, Welcome)
            with pytest.raises((BadFrame, LinkRefused)):
                check_welcome(TOKEN, hello, frame)


def each_bit_flipped(data: bytes) -> list[bytes]:
    whole = int.from_bytes(data, "big")
    return [(whole ^ 1 << bit).to_bytes(len(data), "big") for bit in range(8 * len(data))]


def decoded(data: bytes) -> list[Any]:
    try:
        return list(Decoder().feed(data))
    except BadFrame:
        return []


def test_who_guesses_a_pipe_id_learns_nothing_but_that_the_proof_is_wrong() -> None:
    """Whatever else is wrong with the HELLO, the proof is judged first."""
    stranger = make_hello(PIPE, b"x" * 32, b"", 1, Ack(10**6, 10**6))
    assert refuse_resume(stranger, Held()) == Reject("proof")


@pytest.mark.parametrize("generation", [1, 3, 4])
def test_a_hello_that_is_replayed_or_was_overtaken_is_refused(generation: int) -> None:
    refused = refuse_resume(later_hello(generation), Held())
    assert refused == Reject("replayed", f"generation {generation} was seen before")


@pytest.mark.parametrize("generation", [5, 6, 1000, MAX_POSITION])
def test_dials_in_vain_leave_gaps_in_the_generations(generation: int) -> None:
    assert refuse_resume(later_hello(generation), Held()) is None


@pytest.mark.parametrize("position", [0, 2, 11, 12, 1001])
def test_a_position_that_cannot_be_resumed_is_refused_with_what_could_be(position: int) -> None:
    """Never a silent position 0: neither what is gone nor what was never sent."""
    refused = refuse_resume(later_hello(have=Ack(position, 1000)), Held())
    assert refused == Reject("position", f"it has {position}; 3 to 10 can be resumed")


@pytest.mark.parametrize("position", [3, 10])
def test_positions_at_the_bounds_can_be_resumed(position: int) -> None:
    assert refuse_resume(later_hello(have=Ack(position, 1000)), Held()) is None


def test_a_welcome_of_another_life_of_the_server_is_refused() -> None:
    """It knows the token (the dialer gave it to that life too), but not what this pipe has said."""
    hello = later_hello()
    with pytest.raises(ResumeRefused) as caught:
        check_welcome(TOKEN, hello, make_welcome(TOKEN, hello, b"E" * 16, HAVE))
    assert caught.value.reason == "epoch"


def test_the_first_welcome_may_have_any_epoch() -> None:
    check_welcome(TOKEN, first_hello(), make_welcome(TOKEN, first_hello(), b"E" * 16, HAVE))


def test_a_welcome_of_another_version_is_refused_for_good() -> None:
    welcome = make_welcome(TOKEN, first_hello(), EPOCH, HAVE)
    with pytest.raises(LinkRefused) as caught:
        check_welcome(TOKEN, first_hello(), replace(welcome, version=VERSION + 1))
    assert caught.value.reason == "version"
    assert not caught.value.temporary


@pytest.mark.parametrize(
    "other",
    [later_hello(6), replace(later_hello(), pipe=b"P" * 16)],
    ids=["another dial", "another pipe"],
)
def test_a_welcome_answers_one_hello_only(other: Hello) -> None:
    """One that was recorded is of no use for a later dial."""
    with pytest.raises(BadFrame, match="without the proof"):
        check_welcome(TOKEN, later_hello(), make_welcome(TOKEN, other, EPOCH, HAVE))


def test_who_does_not_know_the_token_cannot_welcome() -> None:
    with pytest.raises(BadFrame, match="without the proof"):
        check_welcome(TOKEN, later_hello(), make_welcome(b"x" * 32, later_hello(), EPOCH, HAVE))


def test_a_proof_of_a_hello_is_none_of_a_welcome() -> None:
    """Nothing can be made of what the other side said: the two are proved under different labels."""
    hello = later_hello(7, Ack(7, 7))
    welcome = Welcome(VERSION, EPOCH, 7, 7, b"")
    assert hello_proof(TOKEN, hello) != welcome_proof(TOKEN, hello.pipe, 7, welcome)


def test_no_two_lists_of_parts_have_the_same_proof() -> None:
    lists = [(b"abc",), (b"ab", b"c"), (b"a", b"bc"), (b"", b"abc"), (b"abc", b""), (b"abc", b"", b"")]
    assert len({proof(TOKEN, b"label", *parts) for parts in lists}) == len(lists)


@pytest.mark.parametrize("number", [0, 1, MAX_POSITION + 1])
def test_all_numbers_that_a_frame_may_have_can_be_proved(number: int) -> None:
    hello = later_hello(max(1, min(number, MAX_POSITION)), Ack(number, min(number, MAX_POSITION)))
    assert decoded(encode(hello)) == [hello]
    assert proves(TOKEN, hello)


def test_secrets_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """By `hmac.compare_digest` alone: if it says no, the answer is no."""
    hello, compared = first_hello(), list[Any]()
    welcome = make_welcome(TOKEN, hello, EPOCH, HAVE)

    def compare(one: bytes, other: bytes) -> bool:
        compared.append({one, other})
        return one == TOKEN

    monkeypatch.setattr(hmac, "compare_digest", compare)
    assert not proves(TOKEN, hello)
    with pytest.raises(BadFrame):
        check_welcome(TOKEN, hello, welcome)
    assert compared == [{TOKEN}, {hello.proof}, {welcome.proof}]
