"""Frames as bytes and back: every kind, every bound, any cut, and whatever else a peer may send."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import weakref
from pathlib import Path
from struct import pack
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventstream.errors import BadFrame
from eventstream.pipes.frames import (
    MAX_CONTROL,
    MAX_PAYLOAD,
    MAX_POSITION,
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
    encode,
    encode_data,
)

ROOT = Path(__file__).parent.parent
KEPT = 5 + MAX_CONTROL  # bytes: the most that a decoder may keep back
HELLO = Hello(1, b"p" * 16, 3, 10, 20, b"s" * 32, epoch=b"e" * 16)
FIRST = Hello(1, b"p" * 16, 1, 0, 20, b"s" * 32, token=b"t" * 32)
WELCOME = Welcome(1, b"e" * 16, 10, 20, b"s" * 32)

numbers = st.one_of(st.integers(0, 300), st.integers(0, MAX_POSITION), st.just(MAX_POSITION))
details = st.text(max_size=40)
controls: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from([HELLO, FIRST, WELCOME, Reject("busy"), Close("finished")]),
    st.builds(Reject, st.just("position"), details),
    st.builds(Close, st.just("failed"), details),
    st.builds(Ack, numbers, numbers),
    st.builds(Fin, numbers),
    st.builds(Ping, numbers),
    st.builds(Pong, numbers),
)
datas = st.builds(Data, st.integers(0, MAX_POSITION - 5000), st.binary(min_size=1, max_size=5000))
streams = st.lists(st.one_of(controls, datas), max_size=8)


def wire(frames: list[Any]) -> bytes:
    return b"".join(
        encode_data(frame.sequence, len(frame.payload)) + frame.payload if isinstance(frame, Data) else encode(frame)
        for frame in frames
    )


def joined(frames: list[Frame]) -> list[Frame]:
    """With pieces of the stream that follow each other made one."""
    whole: list[Frame] = []
    for frame in frames:
        match whole[-1:], frame:
            case [Data(start, payload)], Data(sequence, more) if start + len(payload) == sequence:
                whole[-1] = Data(start, bytes(payload) + more)
            case _:
                whole.append(frame)
    return whole


def feed_in(decoder: Decoder, data: bytes, cuts: list[int]) -> list[Frame]:
    """Feeds `data` in chunks of these lengths, again and again; watches what is kept back."""
    frames: list[Frame] = []
    at, turn = 0, 0
    while at < len(data):
        step = cuts[turn % len(cuts)]
        frames += decoder.feed(data[at : at + step])
        assert len(decoder._kept) < KEPT
        at, turn = at + step, turn + 1
    return frames


def map_of(kind: int, fields: dict[str, object]) -> bytes:
    body = msgspec.msgpack.encode(fields)
    return pack(">BI", kind, len(body)) + body


def fields_of(frame: Hello | Welcome, **changes: object) -> dict[str, object]:
    return {name: getattr(frame, name) for name in frame.__struct_fields__} | changes


@given(streams)
def test_what_is_encoded_is_decoded(frames: list[Any]) -> None:
    assert joined(Decoder().feed(wire(frames))) == joined(frames)


@given(streams, st.lists(st.integers(1, 900), min_size=1, max_size=5))
def test_any_cut_of_the_bytes_gives_the_same_frames(frames: list[Any], cuts: list[int]) -> None:
    assert joined(feed_in(Decoder(), wire(frames), cuts)) == joined(frames)


def test_a_data_frame_is_handed_on_as_it_arrives() -> None:
    """So a frame cut in its middle loses nothing of what came, and the decoder keeps none of it."""
    data = encode_data(100, 10) + b"0123456789"
    decoder = Decoder()

    assert decoder.feed(data[:12]) == []
    assert decoder.feed(data[12:15]) == [Data(100, b"01")]
    assert decoder.feed(data[15:]) == [Data(102, b"23456789")]


def test_a_chunk_within_a_data_frame_is_not_copied() -> None:
    decoder = Decoder()
    decoder.feed(encode_data(0, 3000))
    chunk = bytes(1000)
    (piece,) = decoder.feed(chunk)
    assert isinstance(piece, Data)
    assert piece.payload is chunk


@pytest.mark.parametrize("size", [1, MAX_PAYLOAD])
def test_the_smallest_and_the_largest_payload_pass(size: int) -> None:
    assert Decoder().feed(encode_data(0, size) + bytes(size)) == [Data(0, bytes(size))]


@pytest.mark.parametrize(
    ("header", "why"),
    [
        pytest.param(pack(">BI", 5, 8), "DATA with a body of 8 bytes", id="DATA without payload"),
        pytest.param(pack(">BI", 5, 0), "DATA with a body of 0 bytes", id="DATA without sequence"),
        pytest.param(pack(">BI", 5, 9 + MAX_PAYLOAD), "DATA with a body of", id="DATA too long"),
        pytest.param(encode_data(MAX_POSITION, 1), "no stream is that long", id="DATA beyond all positions"),
        pytest.param(pack(">BI", 0, 0), "no frame is of kind 0", id="kind 0"),
        pytest.param(pack(">BI", 10, 0), "no frame is of kind 10", id="kind 10"),
        pytest.param(b"GET / HTTP/1.1\r\n", "no frame is of kind 71", id="another protocol"),
        pytest.param(pack(">BI", 6, 17), "kind 6 with a body of 17 bytes, it has 16", id="ACK of wrong length"),
        pytest.param(pack(">BI", 7, 7), "kind 7 with a body of 7 bytes, it has 8", id="FIN of wrong length"),
        pytest.param(pack(">BI", 1, MAX_CONTROL + 1), "it has at most 1024", id="HELLO too long"),
        pytest.param(pack(">BI", 4, 2**32 - 1), "it has at most 1024", id="CLOSE of 4 GiB"),
        pytest.param(pack(">BIQQ", 6, 16, 2**63, 0), "Ack with the number 9223372036854775808", id="ACK too far"),
        pytest.param(pack(">BIQ", 8, 8, 2**64 - 1), "Ping with the number", id="PING too high"),
        pytest.param(map_of(3, {"code": "because"}), "frame of kind 3", id="unknown code"),
        pytest.param(map_of(4, {}), "frame of kind 4", id="missing field"),
        pytest.param(pack(">BI", 4, 1) + b"\xc1", "frame of kind 4", id="no MessagePack"),
        pytest.param(pack(">BI", 4, 0), "frame of kind 4", id="empty body"),
        pytest.param(pack(">BI", 3, 12) + b"\x81\xa4code\xa5bus\xff\xff", "frame of kind 3", id="no UTF-8"),
        pytest.param(pack(">BI", 4, 1000) + b"\x81\xa1x" + b"\x91" * 997, "frame of kind 4", id="deeply nested"),
    ],
)
def test_what_is_no_frame_is_refused_as_soon_as_it_shows(header: bytes, why: str) -> None:
    """The header is enough: nobody waits for, or keeps, a body that cannot be."""
    with pytest.raises(BadFrame) as caught:
        Decoder().feed(header)
    assert why in caught.value.why
    assert caught.value.temporary


@pytest.mark.parametrize("frame", [HELLO, WELCOME], ids=["HELLO", "WELCOME"])
@pytest.mark.parametrize(
    "changes",
    [
        {"limit": -1, "position": 0},
        {"limit": -1, "position": -1},
        {"position": -1},
        {"position": 22},
        {"limit": 2**63},
        {"limit": 2**64 - 1, "position": 2**64 - 1},
        {"proof": b""},
        {"proof": b"s" * 33},
        {"epoch": b""},
        {"epoch": b"e" * 15},
        {"position": "10"},
        {"position": None},
        {"version": b"1"},
    ],
    ids=str,
)
def test_a_handshake_out_of_bounds_is_refused(frame: Hello | Welcome, changes: dict[str, object]) -> None:
    """Nothing that is not checked here reaches the proofs, which take numbers of eight bytes."""
    kind = 1 if isinstance(frame, Hello) else 2
    with pytest.raises(BadFrame):
        Decoder().feed(map_of(kind, fields_of(frame, **changes)))


@pytest.mark.parametrize(
    "changes",
    [
        {"pipe": b""},
        {"pipe": b"p" * 17},
        {"generation": 0},
        {"generation": -1},
        {"generation": 2**63},
        {"token": b"t" * 31, "epoch": b""},
        {"token": b"t" * 32},
        {"epoch": b""},
    ],
    ids=str,
)
def test_a_hello_names_its_pipe_and_has_either_a_token_or_an_epoch(changes: dict[str, object]) -> None:
    with pytest.raises(BadFrame):
        Decoder().feed(map_of(1, fields_of(HELLO, **changes)))


@pytest.mark.parametrize("frame", [HELLO, FIRST, WELCOME], ids=["HELLO", "first HELLO", "WELCOME"])
def test_a_handshake_at_its_bounds_passes(frame: Hello | Welcome) -> None:
    """A position may be one beyond the limit, as a FIN counts as one byte; fields that we do not know are skipped."""
    fields = fields_of(frame, limit=MAX_POSITION, position=MAX_POSITION + 1, later_version="x")
    (decoded,) = Decoder().feed(map_of(1 if isinstance(frame, Hello) else 2, fields))
    assert decoded == msgspec.structs.replace(frame, limit=MAX_POSITION, position=MAX_POSITION + 1)


def test_the_longest_control_frame_is_kept_back_and_no_more() -> None:
    body = msgspec.msgpack.encode({"code": "closed", "detail": "d" * (MAX_CONTROL - 23)})
    frame = pack(">BI", 4, len(body)) + body
    assert len(body) == MAX_CONTROL
    assert feed_in(Decoder(), frame + encode(Ping(1)), [1]) == [Close("closed", "d" * (MAX_CONTROL - 23)), Ping(1)]


def test_after_a_bad_frame_nothing_is_decoded_any_more() -> None:
    decoder = Decoder()
    for good in (b"\xff", encode(Ping(1)), b""):
        with pytest.raises(BadFrame, match="no frame is of kind 255"):
            decoder.feed(good + b"\0" * 5)
        assert decoder._kept == b""


def test_a_decoder_that_is_done_holds_on_to_nothing() -> None:
    """Its error does not keep the frames alive that raised it, nor grow each time that it is raised."""
    decoder = Decoder()

    def feed() -> weakref.ref[BadFrame]:
        with pytest.raises(BadFrame) as caught:
            decoder.feed(b"\xff" * 10)
        return weakref.ref(caught.value)

    watched = feed()
    gc.collect()
    assert watched() is None


def check_hostile(data: bytes, cuts: list[int]) -> None:
    decoder = Decoder()
    try:
        feed_in(decoder, data, cuts)
    except BadFrame as error:
        with pytest.raises(BadFrame) as caught:
            decoder.feed(encode(Ping(1)))
        assert caught.value.why == error.why


@given(st.binary(max_size=3000), st.lists(st.integers(1, 500), min_size=1, max_size=3))
def test_random_bytes_raise_only_bad_frame(data: bytes, cuts: list[int]) -> None:
    check_hostile(data, cuts)


@given(streams, st.data())
def test_mutated_streams_raise_only_bad_frame(frames: list[Any], data: st.DataObject) -> None:
    changed = bytearray(wire(frames))
    for _ in range(data.draw(st.integers(1, 4))):
        if changed:
            at = data.draw(st.integers(0, len(changed) - 1))
            changed[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    check_hostile(bytes(changed), [7, 1000])


@given(streams, st.integers(0, 5000))
def test_a_truncated_stream_is_a_stream_that_is_not_over(frames: list[Any], at: int) -> None:
    data = wire(frames)
    decoder = Decoder()
    assert joined(decoder.feed(data[:at]) + decoder.feed(data[at:])) == joined(frames)


def test_the_fuzz_target_finds_nothing() -> None:
    """`fuzz/frames.py` runs by itself, and says how fast."""
    command = [sys.executable, "fuzz/frames.py", "--runs", "3000", "--seed", "7"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "3000 runs" in done.stdout
    assert "runs/s" in done.stdout


def test_the_fuzz_target_tells_a_wrong_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """A target that cannot fail would prove nothing."""
    monkeypatch.syspath_prepend(str(ROOT / "fuzz"))
    import frames as target

    monkeypatch.setattr(Decoder, "feed", lambda self, chunk: [Ping(len(chunk))] if chunk else [])
    with pytest.raises(AssertionError):
        target.main(["--runs", "10", "--seed", "1"])
