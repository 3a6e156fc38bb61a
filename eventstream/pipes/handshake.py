"""How a link is bound to its pipe: decided here, in pure functions, before anything is attached.

    dialer                                              server
      HELLO(pipe, generation, position, limit, proof) ───▶  judge
      ◀─── WELCOME(epoch, position, limit, proof)  or  REJECT(code)

The dialer makes up the pipe's id and its token, and sends the token with each HELLO until a WELCOME has come; so a
lost WELCOME does not make a second pipe. From then on the token never travels: both sides prove that they know it by
an HMAC over what they say. The generation, one number for each dial, is under the proof and has to grow: a HELLO that
is replayed, or that was overtaken by a later dial, gets nothing. The epoch names one life of the server's memory: a
server that forgot a pipe says so instead of beginning it anew.

What this does not do: keep secrets from who can read or change the link (that is TLS's job), or say who the
dialer is (that is for the protocol inside).
"""

from __future__ import annotations

import hmac
from typing import Final, Protocol

from ..errors import BadFrame, LinkRefused, ResumeRefused
from .frames import VERSION, Ack, Hello, Reject, Welcome

__all__ = ("Held", "check_welcome", "make_hello", "make_welcome", "proves", "refuse_resume")

HELLO_LABEL: Final = b"eventstream pipe hello 1"
WELCOME_LABEL: Final = b"eventstream pipe welcome 1"


class Held(Protocol):
    """What a server knows of a pipe that a HELLO names."""

    @property
    def token(self) -> bytes:
        """The secret that its dialer made up."""
        ...

    @property
    def generation(self) -> int:
        """Of its latest link."""
        ...

    def check_resume(self, position: int) -> None:
        """Raises ResumeRefused: if a link cannot go on from there."""
        ...


def proof(token: bytes, label: bytes, *parts: bytes | int) -> bytes:
    """An HMAC over all parts, each with its length, so that no two different lists give the same bytes."""
    texts = (part if isinstance(part, bytes) else part.to_bytes(8, "big") for part in parts)
    return hmac.digest(token, label + b"".join(bytes([len(text)]) + text for text in texts), "sha256")


def hello_proof(token: bytes, hello: Hello) -> bytes:
    """What the holder of `token` puts into this HELLO."""
    return proof(token, HELLO_LABEL, hello.pipe, hello.epoch, hello.generation, hello.position, hello.limit)


def welcome_proof(token: bytes, pipe: bytes, generation: int, welcome: Welcome) -> bytes:
    """What the holder of `token` puts into this WELCOME."""
    return proof(token, WELCOME_LABEL, pipe, welcome.epoch, generation, welcome.position, welcome.limit)


def make_hello(pipe: bytes, token: bytes, epoch: bytes, generation: int, have: Ack) -> Hello:
    """The HELLO of a dial; without an epoch (no WELCOME has come yet) it hands over the token."""
    hello = Hello(VERSION, pipe, generation, have.position, have.limit, bytes(32), b"" if epoch else token, epoch)
    return Hello(
        VERSION, pipe, generation, have.position, have.limit, hello_proof(token, hello), hello.token, hello.epoch
    )


def make_welcome(token: bytes, hello: Hello, epoch: bytes, have: Ack) -> Welcome:
    """The WELCOME that answers `hello`."""
    welcome = Welcome(VERSION, epoch, have.position, have.limit, bytes(32))
    signed = welcome_proof(token, hello.pipe, hello.generation, welcome)
    return Welcome(VERSION, epoch, have.position, have.limit, signed)


def proves(token: bytes, hello: Hello) -> bool:
    """Whether `hello` was made by one who knows `token`."""
    return hmac.compare_digest(hello.token or token, token) and hmac.compare_digest(
        hello.proof, hello_proof(token, hello)
    )


def refuse_resume(hello: Hello, held: Held) -> Reject | None:
    """Why `hello` may not go on with the pipe that it names; None if it may.

    The proof comes first: who does not know the token learns nothing else.
    """
    if not proves(held.token, hello):
        return Reject("proof")
    if hello.generation <= held.generation:
        return Reject("replayed", f"generation {hello.generation} was seen before")
    try:
        held.check_resume(hello.position)
    except ResumeRefused as error:
        return Reject("position", error.detail)
    return None


def check_welcome(token: bytes, hello: Hello, welcome: Welcome) -> None:
    """Whether `welcome` is the answer of the server that has our pipe.

    Raises:
        LinkRefused: if it speaks another version.
        BadFrame: if its proof is wrong: somebody else answered.
        ResumeRefused: if it is of another life of the server than the pipe is.
    """
    if welcome.version != VERSION:
        raise LinkRefused("version", f"this end speaks version {VERSION}")
    if not hmac.compare_digest(welcome.proof, welcome_proof(token, hello.pipe, hello.generation, welcome)):
        raise BadFrame("WELCOME without the proof that its sender knows this pipe")
    if hello.epoch and welcome.epoch != hello.epoch:
        raise ResumeRefused("epoch", "the server that had this pipe is gone")
