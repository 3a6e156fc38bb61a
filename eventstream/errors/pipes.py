"""Errors of pipes and their links."""

from __future__ import annotations

from anyio import BrokenResourceError

from .root import EventStreamError

__all__ = (
    "BadFrame",
    "LinkRefused",
    "LinkSilent",
    "PipeAbandoned",
    "PipeBroken",
    "PipeClosed",
    "ReconnectFailed",
    "ResumeRefused",
)


class PipeBroken(EventStreamError, BrokenResourceError):
    """A backed pipe has ended without having said all. Whose fault, and why, its subclasses say.

    The bytes that the peer did not acknowledge may be lost.

    Lost links never raise this; only what no reconnect can repair does. Open a new pipe, and let the protocol inside
    find out where it stood.
    """


class ResumeRefused(PipeBroken):
    """The peer does not go on with this pipe. Mostly nobody's fault: open a new pipe.

    Its bytes, or ours, cannot be completed.

    `reason` is one of `unknown` (it never had this pipe, or has forgotten it), `epoch` (it was restarted), `expired`
    (the grace time has passed), `evicted` (it needed the memory), `closed` (it closed the pipe), `finished` (it holds
    that all was said), `position` (what the two ends have does not fit together), `proof` (the HELLO was not made by
    the holder of this pipe's token).
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        self.reason = reason
        self.detail = detail
        super().__init__(f"the peer cannot resume this pipe ({reason}){': ' if detail else ''}{detail}; open a new one")


class PipeClosed(PipeBroken):
    """The peer ended the pipe before it had said all (`send_eof`). Its fault, or its wish.

    `reason` is one of `closed` (its program closed the pipe), `failed` (its program failed), `going-away` (it is
    shutting down), `finished` (it holds that all was said).
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        self.reason = reason
        self.detail = detail
        super().__init__(f"the peer ended this pipe ({reason}){': ' if detail else ''}{detail}")


class PipeAbandoned(PipeBroken):
    """The server gave this pipe up. Nobody's fault; the program that served it can only clean up.

    `reason` is one of `expired` (the grace time passed with no link), `evicted` (it had no link, and its bytes or
    its place were needed) and `going-away` (the server stopped).
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"the server gave this pipe up ({reason})")


class ReconnectFailed(PipeBroken):
    """No further dial will be made. The `__cause__` is the last dial's error.

    Either that error is not temporary (your fault: repair what it says), or `Retry.give_up_after` has passed.
    """

    def __init__(self, attempts: int, seconds: float) -> None:
        self.attempts = attempts
        self.seconds = seconds
        super().__init__(f"no link after {attempts} attempts in {seconds:.1f} s")


class LinkRefused(EventStreamError):
    """The peer gives no link now. Your fault only if the versions differ.

    `reason` is `busy` (it has as many pipes as it may) or `replayed` (a later HELLO, or a copy of this one, came before
    it), both temporary; or `version` (one of the two is too old: update it).
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        self.reason = reason
        self.detail = detail
        self.temporary: bool = reason != "version"
        super().__init__(f"the peer refused the link ({reason}){': ' if detail else ''}{detail}")


class LinkSilent(EventStreamError):
    """Nothing was heard over a link for too long, so it is taken for dead. Nobody's fault: a new one is dialed."""

    temporary = True

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        super().__init__(f"nothing was heard for at least {seconds:g} s")


class BadFrame(EventStreamError, ValueError):
    """What came over a link is no frame, or one that cannot come here.

    The peer's fault, or that of whoever changed its bytes: the link ends, and a new one is dialed.
    """

    temporary = True

    def __init__(self, why: str) -> None:
        self.why = why
        super().__init__(why)
