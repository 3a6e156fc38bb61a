"""What passes over a link: nine kinds of frame, as bytes and back.

    kind (1 byte) | length of the body (4 bytes) | body          all numbers big-endian

    HELLO, WELCOME, REJECT, CLOSE    body: a MessagePack map, at most MAX_CONTROL bytes
    DATA       sequence number of the first byte (8) | payload, at most MAX_PAYLOAD bytes
    ACK        position received (8) | limit: how far the peer may send (8)
    FIN        position at which the sender's bytes end (8)
    PING, PONG a number that the answer repeats (8)

The payload of a DATA frame is handed on piece by piece as it arrives: a frame cut in its middle loses nothing of what
came, and nothing but a header is ever kept back here. So the decoder's memory is bounded by MAX_CONTROL, whatever a
peer claims to send.

This file does no I/O and decides nothing: it turns bytes into frames or into one `BadFrame`, after which a decoder is
done for good. Rejected: a checksum for each frame (the links are TCP or TLS, which have theirs).
"""

from __future__ import annotations

from struct import Struct as Layout
from typing import Any, Final, Literal, TypeAlias

import msgspec

from ..errors import BadFrame
from .pieces import Piece

__all__ = (
    "MAX_CONTROL",
    "MAX_PAYLOAD",
    "MAX_POSITION",
    "VERSION",
    "Ack",
    "Close",
    "CloseCode",
    "Data",
    "Decoder",
    "Fin",
    "Frame",
    "Hello",
    "Ping",
    "Pong",
    "Reject",
    "RejectCode",
    "Welcome",
    "encode",
    "encode_data",
)

VERSION: Final = 1
MAX_CONTROL: Final = 1024  # bytes of a control frame's body: a HELLO has about 200
MAX_PAYLOAD: Final = 256 * 1024  # bytes of one DATA frame: a control frame never waits behind more
LARGE: Final = 4096  # bytes: below it a copy costs less than a view
MAX_POSITION: Final = 2**63 - 1  # five thousand years at 50 MB/s: no honest end comes near it


RejectCode: TypeAlias = Literal[
    "version", "busy", "unknown", "epoch", "proof", "replayed", "position", "expired", "evicted", "closed", "finished"
]
CloseCode: TypeAlias = Literal["finished", "closed", "going-away", "failed"]


class Hello(msgspec.Struct, frozen=True, omit_defaults=True):
    """The dialer's first frame: who I am, what I have of yours, and a proof that I am the one who began this pipe."""

    version: int
    pipe: bytes
    generation: int
    position: int
    limit: int
    proof: bytes
    token: bytes = b""  # until the first WELCOME has come
    epoch: bytes = b""  # from then on: of the server's life in which the pipe began


class Welcome(msgspec.Struct, frozen=True):
    """The server's answer: what I have of yours, and a proof that I am the one whom you gave the token."""

    version: int
    epoch: bytes
    position: int
    limit: int
    proof: bytes


class Reject(msgspec.Struct, frozen=True, omit_defaults=True):
    """The server's answer to a HELLO that gets no link."""

    code: RejectCode
    detail: str = ""


class Close(msgspec.Struct, frozen=True, omit_defaults=True):
    """The pipe has ended; no link will be accepted for it any more."""

    code: CloseCode
    detail: str = ""


class Data(msgspec.Struct, frozen=True):
    """A piece of the stream: `payload` stands at `sequence` of the sender's bytes."""

    sequence: int
    payload: Piece


class Ack(msgspec.Struct, frozen=True):
    """All bytes before `position` have arrived; bytes before `limit` may be sent. A FIN counts as one byte."""

    position: int
    limit: int


class Fin(msgspec.Struct, frozen=True):
    """No byte will stand at `position` or after it."""

    position: int


class Ping(msgspec.Struct, frozen=True):
    """Asks for a PONG with the same number."""

    number: int


class Pong(msgspec.Struct, frozen=True):
    """Answers the PING with this number."""

    number: int


Frame: TypeAlias = Hello | Welcome | Reject | Close | Data | Ack | Fin | Ping | Pong

HEADER: Final = Layout(">BI")
ONE: Final = Layout(">BIQ")
TWO: Final = Layout(">BIQQ")
KINDS: Final[dict[type, int]] = {Hello: 1, Welcome: 2, Reject: 3, Close: 4, Data: 5, Ack: 6, Fin: 7, Ping: 8, Pong: 9}
DATA: Final = KINDS[Data]
MAPS: Final[dict[int, msgspec.msgpack.Decoder[Any]]] = {
    KINDS[kind]: msgspec.msgpack.Decoder(kind) for kind in (Hello, Welcome, Reject, Close)
}
NUMBERS: Final[dict[int, tuple[type[Any], Layout]]] = {
    KINDS[Ack]: (Ack, Layout(">QQ")),
    KINDS[Fin]: (Fin, Layout(">Q")),
    KINDS[Ping]: (Ping, Layout(">Q")),
    KINDS[Pong]: (Pong, Layout(">Q")),
}
_encoder: Final = msgspec.msgpack.Encoder()


def encode(frame: Hello | Welcome | Reject | Close | Ack | Fin | Ping | Pong) -> bytes:
    """A control frame as bytes."""
    kind = KINDS[type(frame)]
    match frame:
        case Ack():
            return TWO.pack(kind, 16, frame.position, frame.limit)
        case Fin():
            return ONE.pack(kind, 8, frame.position)
        case Ping() | Pong():
            return ONE.pack(kind, 8, frame.number)
        case _:
            body = _encoder.encode(frame)
            return HEADER.pack(kind, len(body)) + body


def encode_data(sequence: int, length: int) -> bytes:
    """What stands before `length` bytes of payload. The payload itself is never copied here."""
    return ONE.pack(DATA, 8 + length, sequence)


class Decoder:
    """Turns the bytes of one link into frames. Written and read by the task that receives from that link.

    Invariant: what is kept back is shorter than a header and a control frame.
    """

    __slots__ = ("_bad", "_kept", "_left", "_sequence")

    def __init__(self) -> None:
        self._kept = b""
        self._left = 0  # bytes still to come of the DATA frame that we are in
        self._sequence = 0  # of the next of them
        self._bad: str | None = None  # why; not the error itself, which would hold on to the frames that raised it

    def feed(self, chunk: bytes) -> list[Frame]:
        """The frames that `chunk` completes, in order.

        Raises:
            BadFrame: if the bytes are no frames. The frames before the bad one are lost with it, as if the link had
                been cut before them; every later call raises the same.
        """
        if self._bad is not None:
            raise BadFrame(self._bad)
        try:
            return self._split(self._kept + chunk if self._kept else chunk)
        except BadFrame as error:
            self._bad = error.why
            self._kept = b""
            raise

    def _split(self, chunk: bytes) -> list[Frame]:
        frames: list[Frame] = []
        at, end = 0, len(chunk)
        while at < end:
            if self._left:
                taken = self._left if self._left < end - at else end - at
                # A large piece is handed on without a copy, if it is most of its chunk, which it keeps alive.
                source = memoryview(chunk) if taken >= LARGE and end <= 2 * taken < 2 * end else chunk
                frames.append(Data(self._sequence, source[at : at + taken]))
                self._sequence += taken
                self._left -= taken
                at += taken
                continue
            if end - at < HEADER.size:
                break
            kind, length = HEADER.unpack_from(chunk, at)
            if kind == DATA:
                if not 8 < length <= 8 + MAX_PAYLOAD:
                    raise BadFrame(f"DATA with a body of {length} bytes, it has 9 to {8 + MAX_PAYLOAD}")
                if end - at < ONE.size:
                    break
                _, _, self._sequence = ONE.unpack_from(chunk, at)
                self._left = length - 8
                if self._sequence > MAX_POSITION - self._left:
                    raise BadFrame(f"DATA at {self._sequence}: no stream is that long")
                at += ONE.size
                continue
            body = at + HEADER.size
            check_control(kind, length)
            if end - body < length:
                break
            frames.append(decode_control(kind, chunk[body : body + length]))
            at = body + length
        self._kept = chunk[at:]
        return frames


def check_control(kind: int, length: int) -> None:
    """Raises BadFrame: if no control frame is of this kind and length."""
    if kind in NUMBERS:
        wanted = NUMBERS[kind][1].size
        if length != wanted:
            raise BadFrame(f"frame of kind {kind} with a body of {length} bytes, it has {wanted}")
    elif kind not in MAPS:
        raise BadFrame(f"no frame is of kind {kind}")
    elif length > MAX_CONTROL:
        raise BadFrame(f"frame of kind {kind} with a body of {length} bytes, it has at most {MAX_CONTROL}")


def decode_control(kind: int, body: bytes) -> Frame:
    """The control frame of this kind.

    Raises:
        BadFrame: if a field is missing, of the wrong type, or out of bounds.
    """
    if kind in NUMBERS:
        frame_type, layout = NUMBERS[kind]
        numbers = layout.unpack(body)
        if max(numbers) > MAX_POSITION:
            raise BadFrame(f"{frame_type.__name__} with the number {max(numbers)}: no stream is that long")
        frame: Frame = frame_type(*numbers)
        return frame
    try:
        control: Frame = MAPS[kind].decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadFrame(f"frame of kind {kind}: {error}") from error
    return check_fields(control)


def check_fields(frame: Frame) -> Frame:
    """Raises BadFrame: if a handshake's numbers or ids are out of bounds."""
    if isinstance(frame, Hello | Welcome):
        if not (0 <= frame.limit <= MAX_POSITION and 0 <= frame.position <= frame.limit + 1):  # a FIN counts as a byte
            raise BadFrame(f"{type(frame).__name__} with position {frame.position} and limit {frame.limit}")
        known = 16 if isinstance(frame, Welcome) or not frame.token else 0
        if len(frame.proof) != 32 or len(frame.epoch) != known:
            raise BadFrame(f"{type(frame).__name__} whose proof or epoch has the wrong length")
    if isinstance(frame, Hello) and (
        len(frame.pipe) != 16 or len(frame.token) not in (0, 32) or not 0 < frame.generation <= MAX_POSITION
    ):
        raise BadFrame("Hello whose pipe, token or generation is out of bounds")
    return frame
